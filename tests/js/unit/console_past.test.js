/** A run that was under way before the page looked: what it did comes from the log, what it does comes live. */

import assert from "node:assert/strict"
import { test } from "node:test"

globalThis.document ??= { hidden: true }
const { readPast } = await import("../../../gateway/console/past.js")
const { Run } = await import("../../../gateway/console/runs.js")

const event = (offset, kind, data = {}) => ({
  event_type: kind, event_id: `evt-${offset}`, offset, user_id: "alice", thread_id: "t", run_id: "r", request_id: "q",
  agent_name: "data", attempt: 1, timestamp: new Date(1_800_000_000_000 + offset * 100).toISOString(), data,
})
const BEGUN = [
  event(1, "run_accepted", { agent_name: "data", stages: ["data"] }),
  event(2, "agent_started", { agent_name: "data", stage: 0 }),
  event(3, "agent_thinking", { text: "first" }),
]
const ASKED = event(4, "input_required", { input_id: "i", prompt: "Which?" })
const ON = [event(5, "run_attempt", { attempt: 2, reason: "input_provided" }), event(6, "agent_thinking", { text: "second" })]

/** A stream of a run's events: what is there, what is added, and no end. */
class Stream {
  constructor(events) {
    this.events = events
    this.opened = 0
    this.open = async function* (signal) {
      this.opened += 1
      for (let at = 0; ; ) {
        if (at < this.events.length) yield this.events[at++]
        else await new Promise((resolve, reject) => {
          this.woken = resolve
          signal.onabort = () => reject(signal.reason)
        })
      }
    }.bind(this)
  }

  add(...events) {
    this.events.push(...events)
    this.woken?.()
  }
}

const until = async (holds) => {
  for (let waited = 0; !holds(); waited += 5) {
    assert.ok(waited < 5000)
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
}
const shown = (run) => run.steps.map(({ name }) => name)
const options = { most: 1000, quietMs: 60_000 }

test("the steps of a run that waits are shown while its stream goes on", async () => {
  const run = new Run("r", "t")
  run.tell({ status: "WAITING", agent_name: "data", waiting_for: ASKED.data })
  const stream = new Stream([...BEGUN, ASKED])
  const read = readPast(run, stream.open, options)
  assert.equal(run.loading, true)
  await until(() => !run.loading)
  assert.deepEqual(shown(run), ["data", "first", "Asks: Which?"])
  assert.deepEqual([run.status, run.whole], ["WAITING", false])
  // It goes on: the stream's events come first, then the same ones live, and the stream is not needed any more.
  stream.add(...ON)
  await until(() => run.count === 6)
  for (const each of ON) run.take(each)
  // What REST said when the page was loaded is not how it stands.
  assert.deepEqual([run.status, run.question], ["RUNNING", null])
  const last = event(7, "agent_thinking", { text: "third" })
  run.take(last)
  stream.add(last)
  await read
  assert.deepEqual([run.whole, run.count, run.status, run.question], [true, 7, "RUNNING", null])
  assert.deepEqual(shown(run).slice(3), ["Answer received, going on", "second", "third"])
})

test("a run that is quiet holds no stream, and is read again once something of it came live", async () => {
  const run = new Run("r", "t")
  const stream = new Stream([...BEGUN, ASKED])
  await readPast(run, stream.open, { most: 1000, quietMs: 30 })
  assert.deepEqual([run.loading, run.whole, run.count], [false, false, 4])
  // Of what came meanwhile, only the last was live.
  stream.add(...ON)
  run.take(ON[1])
  assert.deepEqual(shown(run).slice(3), ["second"])
  await readPast(run, stream.open, options)
  assert.deepEqual([run.whole, run.count], [true, 6])
  assert.deepEqual(shown(run).slice(3), ["Answer received, going on", "second"])
})

test("of a run whose events are not kept nothing is read for ever, and a stream that fails says so", async () => {
  const run = new Run("r", "t")
  await readPast(run, new Stream([]).open, { most: 1000, quietMs: 30 })
  assert.deepEqual([run.loading, run.whole, run.count], [false, false, 0])
  const broken = async function* () {
    yield* BEGUN
    throw new Error("away")
  }
  await assert.rejects(readPast(run, broken, options), /away/)
  // What had come by then is here.
  assert.deepEqual([run.loading, run.whole, run.count], [false, false, 3])
})

test("after an end, and after as many as are wanted, it is whole", async () => {
  const ended = new Run("r", "t")
  await readPast(ended, new Stream([...BEGUN, event(4, "run_completed", { status: "SUCCEEDED" })]).open, options)
  assert.deepEqual([ended.whole, ended.partial, ended.status], [true, false, "SUCCEEDED"])
  const long = new Run("r", "t")
  await readPast(long, new Stream([...BEGUN, ASKED]).open, { ...options, most: 3 })
  assert.deepEqual([long.whole, long.partial, long.count], [true, true, 3])
})
