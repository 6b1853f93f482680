// Start a run and wait for its result: node execute.mjs URL TOKEN
import { Rest } from "carrel-client"

const [url, token] = process.argv.slice(2)
const rest = new Rest({ url, token })
const run = await rest.execute("Say three lines", { agentName: "quick" })
console.log(run.status, run.result)
