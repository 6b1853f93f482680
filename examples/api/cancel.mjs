// Cancel a run: node cancel.mjs URL TOKEN
import { CarrelClient } from "carrel-client"

const [url, token] = process.argv.slice(2)
const client = await new CarrelClient({ url, token }).connect()
const { runId } = await client.execute("Take your time", { agentName: "slow", params: { seconds: 30 } })
await client.cancel(runId, { reason: "not needed any more" })
for await (const { event_type, data } of client.runEvents(runId)) {
  if (event_type === "run_completed") console.log(data.status)
}
client.close()
