// Start a run and follow its events as they happen: node events.mjs URL TOKEN
import { CarrelClient } from "carrel-client"

const [url, token] = process.argv.slice(2)
const client = await new CarrelClient({ url, token }).connect()
const { runId } = await client.execute("Say three lines", { agentName: "quick" })
for await (const event of client.runEvents(runId)) {
  console.log(event.event_type, event.data)
}
client.close()
