// Answer a run that asks: node answer.mjs URL TOKEN
import { Rest } from "carrel-client"

const [url, token] = process.argv.slice(2)
const rest = new Rest({ url, token })
// It is answered when the run asks, too.
const { run_id, waiting_for } = await rest.execute("Look into it", { agentName: "asking" })
console.log(waiting_for.prompt)
await rest.provideInput(run_id, waiting_for.input_id, "quick")
for await (const event of rest.runEvents(run_id)) {
  if (event.event_type === "run_completed") console.log((await rest.run(run_id)).result)
}
