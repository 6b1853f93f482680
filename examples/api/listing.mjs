// List runs, and threads with their messages: node listing.mjs URL TOKEN
import { Rest } from "carrel-client"

const [url, token] = process.argv.slice(2)
const rest = new Rest({ url, token })
await rest.execute("Say three lines", { agentName: "quick" })
const { runs } = await rest.runs({ pageSize: 10, status: ["SUCCEEDED", "FAILED"] })
for (const run of runs) console.log(run.run_id, run.status)
const { threads } = await rest.threads({ pageSize: 10 })
for (const { thread_id } of threads) {
  const { messages } = await rest.messages(thread_id)
  console.log(thread_id, messages.map((message) => message.text))
}
