// Read what a run leaves behind: node artifacts.mjs URL TOKEN
import { Rest } from "carrel-client"

const [url, token] = process.argv.slice(2)
const rest = new Rest({ url, token })
const run = await rest.execute("Write it down", { agentName: "writing" })
for (const artifact of await rest.artifacts(run.run_id)) {
  const blob = await rest.artifact(run.run_id, artifact) // compared with its hash
  console.log(artifact.name, blob.size)
}
