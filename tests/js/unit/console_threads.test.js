/** A conversation as the console has it from REST, page after page. */

import assert from "node:assert/strict"
import { test } from "node:test"

globalThis.document ??= { hidden: true }
const { Run } = await import("../../../gateway/console/runs.js")
const { Threads } = await import("../../../gateway/console/threads.js")

const COUNT = 450
const idOf = (number) => `run-${String(number).padStart(4, "0")}`
const RUNS = Array.from({ length: COUNT }, (_, number) => ({ run_id: idOf(number), thread_id: "t", status: "SUCCEEDED", agent_name: "a" }))
const MESSAGES = RUNS.flatMap(({ run_id }) => [
  { run_id, role: "user", text: `ask ${run_id}` },
  { run_id, role: "agent", text: `answer ${run_id}` },
])

/** A page of a list, as REST gives it. */
function paged(name, all, { pageSize, pageToken }) {
  const start = Number(pageToken ?? 0)
  const end = start + pageSize
  return { [name]: all.slice(start, end), next_page_token: end < all.length ? String(end) : null }
}

const sessionOf = (messages, runs) => {
  const known = new Map()
  const session = {
    reads: 0,
    rest: {
      messages: async (_, page) => ((session.reads += 1), paged("messages", messages, page)),
      runs: async ({ threadId, ...page }) => (assert.equal(threadId, "t"), paged("runs", runs, page)),
    },
    run: (runId, threadId) => known.get(runId) ?? known.set(runId, new Run(runId, threadId)).get(runId),
    history: async () => {},
  }
  return session
}

test("of a very long conversation the newest messages are kept, and it says how many are not", async () => {
  const count = 7100
  const messages = Array.from({ length: count }, (_, at) => ({ run_id: idOf(at >> 1), role: at % 2 ? "agent" : "user", text: `m${at}` }))
  const runs = Array.from({ length: count / 2 }, (_, at) => ({ run_id: idOf(at), thread_id: "t", status: "SUCCEEDED", agent_name: "a" })).reverse()
  const thread = new Threads(sessionOf(messages, runs)).thread("t")
  await thread.open()
  assert.deepEqual([thread.error, thread.left, thread.more], [null, 2100, false])
  assert.equal(thread.runs.at(-1).message, "m7098")
  assert.deepEqual(thread.runs.at(-1).texts.map(({ text }) => text), ["m7099"])
  assert.equal(thread.runs.filter(({ message }) => message).length, 2500)
  // One without an end is given up.
  const endless = sessionOf(messages, runs)
  endless.rest.messages = async () => ((endless.reads += 1), { messages: messages.slice(0, 100), next_page_token: "on" })
  const other = new Threads(endless).thread("t")
  await other.open()
  assert.deepEqual([endless.reads, other.left, other.more], [100, 5000, true])
})

test("every run of a long conversation has its state, and none is read again", async () => {
  const runs = new Map()
  const read = []
  const session = {
    rest: {
      messages: async (_, page) => paged("messages", MESSAGES, page),
      runs: async ({ threadId, ...page }) => (assert.equal(threadId, "t"), paged("runs", [...RUNS].reverse(), page)),
    },
    run: (runId, threadId) => runs.get(runId) ?? runs.set(runId, new Run(runId, threadId)).get(runId),
    history: async (run) => void read.push(run.runId),
  }
  const thread = new Threads(session).thread("t")
  await thread.open()
  assert.equal(thread.error, null)
  assert.deepEqual(thread.runs.map(({ runId }) => runId), RUNS.map(({ run_id }) => run_id))
  assert.ok(thread.runs.every((run) => run.ended))
  assert.deepEqual(read, [])
  assert.deepEqual(thread.runs[COUNT - 1].texts.map(({ text }) => text), [`answer ${idOf(COUNT - 1)}`])
})

test("after a reload a run is as it was: its result in a table, its files to be asked for", async () => {
  const messages = [
    { run_id: "r1", role: "user", text: "look" },
    { run_id: "r1", role: "assistant", text: '{"found": 3}' },
    { run_id: "r2", role: "user", text: "say" },
    { run_id: "r2", role: "assistant", text: "{curly} words" },
    { run_id: "r3", role: "user", text: "nothing" },
    { run_id: "r3", role: "assistant", text: "{}" },
  ]
  // As lists of runs are: without results and artifacts.
  const runs = ["r3", "r2", "r1"].map((run_id) => ({ run_id, thread_id: "t", status: "SUCCEEDED", agent_name: "a", result: null, artifacts: [] }))
  const session = sessionOf(messages, runs)
  const thread = new Threads(session).thread("t")
  await thread.open()
  const [one, two, three] = thread.runs
  assert.deepEqual([one.result, one.texts, one.artifacts], [{ found: 3 }, [], null])
  assert.deepEqual(two.texts.map(({ text }) => text), ["{curly} words"])
  assert.deepEqual([three.result, three.texts], [{}, []])
})
