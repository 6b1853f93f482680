// Stop reading, and go on later from where you were: node resume.mjs URL TOKEN
import { formatPosition, Rest } from "carrel-client"

const [url, token] = process.argv.slice(2)
const rest = new Rest({ url, token })
const run = await rest.execute("Say three lines", { agentName: "quick" })
let saved
for await (const event of rest.runEvents(run.run_id)) {
  console.log("offset", event.offset)
  saved = formatPosition(event.position)
  if (event.offset === 3) break
}
// Another day, another process:
for await (const event of rest.runEvents(run.run_id, { resume: saved })) {
  console.log("offset", event.offset)
}
