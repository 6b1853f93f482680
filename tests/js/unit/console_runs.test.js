/** A run as the console tells it from events: in order, out of order, repeated, and after the log has lost its end. */

import assert from "node:assert/strict"
import { test } from "node:test"

globalThis.document ??= { hidden: true }
const { Run } = await import("../../../gateway/console/runs.js")

let offset = 0
const event = (kind, data = {}, more = {}) => ({
  event_type: kind, event_id: `evt-${offset + 1}`, offset: ++offset, user_id: "alice", thread_id: "t", run_id: "r", request_id: "q",
  agent_name: "data", attempt: 1, timestamp: new Date(1_800_000_000_000 + offset * 100).toISOString(), data, ...more,
})
const child = { request_id: "q_check", parent_request_id: "q" }

const EVENTS = [
  event("run_accepted", { agent_name: "data", stages: ["data"], client_ref: "c" }),
  event("agent_started", { agent_name: "data", stage: 0, attempt: 1 }),
  event("agent_thinking", { text: "first" }),
  event("agent_thinking", { text: "", heartbeat: true }),
  event("tool_executing", { tool_name: "load", tool_call_id: "1", arguments: { path: "x" } }),
  event("tool_completed", { tool_name: "load", tool_call_id: "1", status: "ok", duration_ms: 12, result: [1] }),
  event("agent_thinking", { text: "in the child" }, child),
  event("tool_executing", { tool_name: "query", tool_call_id: "2" }, child),
  event("tool_completed", { tool_name: "query", tool_call_id: "2", status: "error", duration_ms: 3, error: { message: "no" } }, child),
  event("tool_completed", { tool_name: "rm", tool_call_id: "3", status: "error", denied: true, duration_ms: 0 }),
  event("agent_message", { message_id: "m", delta: "Hello " }),
  event("input_required", { input_id: "i", prompt: "Which?" }),
  event("run_attempt", { attempt: 2, agent_name: "data", reason: "input_provided" }),
  event("agent_message", { message_id: "m", delta: "world" }),
  event("agent_completed", { agent_name: "data", result: { a: 1 }, duration_ms: 900 }),
  event("run_completed", { status: "SUCCEEDED", result: { answer: "Hello world" } }),
]

const told = (run) => ({
  status: run.status, texts: run.texts.map(({ text }) => text), tools: run.tools, attempts: run.attempts, question: run.question,
  steps: run.steps.map(({ id, kind, name, depth, status, duration }) => ({ id, kind, name, depth, status, duration })),
})

function inOrder() {
  const run = new Run("r", "t")
  for (const each of EVENTS) run.take(each)
  return run
}

test("a run in order", () => {
  const run = inOrder()
  assert.equal(run.status, "SUCCEEDED")
  // What the result says was written already.
  assert.deepEqual(run.texts.map(({ text }) => text), ["Hello world"])
  assert.deepEqual(run.steps.map(({ kind, name, depth, status }) => [kind, name, depth, status]), [
    ["agent", "data", 0, "ok"],
    ["thought", "first", 1, "ok"],
    ["tool", "load", 1, "ok"],
    ["child", "check", 1, "ok"],
    ["thought", "in the child", 2, "ok"],
    ["tool", "query", 2, "error"],
    ["tool", "rm", 1, "denied"],
    ["question", "Asks: Which?", 0, "ok"],
    ["note", "Answer received, going on", 0, "ok"],
  ])
  assert.equal(run.question, null)
})

test("any order, and anything twice, tells the same", () => {
  const expected = told(inOrder())
  let seed = 7
  const random = () => (seed = (seed * 48271) % 2147483647) / 2147483647
  for (let round = 0; round < 60; round += 1) {
    const run = new Run("r", "t")
    const mixed = [...EVENTS, ...EVENTS.slice(3, 9)].map((each) => [random(), each]).sort((a, b) => a[0] - b[0]).map(([, each]) => each)
    const cut = Math.floor(random() * mixed.length)
    run.merge(mixed.slice(0, cut))
    for (const each of mixed.slice(cut)) run.take(each)
    run.merge(EVENTS)
    assert.deepEqual(told(run), expected)
    assert.equal(run.count, EVENTS.length)
  }
})

const all = (...events) => {
  const run = new Run("r", "t")
  for (const each of events) run.take(each)
  return run
}
const rows = (run) => run.steps.map(({ kind, name, depth, status }) => [kind, name, depth, status])

test("sub-agents are below who runs them, also two of one name at once", () => {
  const one = { request_id: "q_words", parent_request_id: "q", agent_name: "words" }
  const two = { request_id: "q_words_2", parent_request_id: "q", agent_name: "words" }
  const begun = [
    event("agent_started", { agent_name: "compare", stage: 0 }, { agent_name: "compare" }),
    event("agent_started", { agent_name: "words", description: "Counts." }, one),
    event("agent_started", { agent_name: "words", description: "Counts." }, two),
    event("tool_executing", { tool_name: "count", tool_call_id: "1" }, one),
    event("tool_completed", { tool_name: "count", tool_call_id: "1", status: "ok", duration_ms: 3 }, one),
    event("agent_completed", { agent_name: "words", result: { words: 3 }, duration_ms: 40 }, one),
  ]
  const run = all(...begun)
  assert.deepEqual(rows(run), [
    ["agent", "compare", 0, "running"],
    ["child", "words", 1, "ok"],
    ["tool", "count", 2, "ok"],
    ["child", "words", 1, "running"],
  ])
  assert.deepEqual([run.steps[1].note, run.steps[1].duration, run.steps[1].result], ["Counts.", 40, { words: 3 }])
  run.take(event("agent_error", { agent_name: "words", code: "X", message: "no" }, two))
  assert.deepEqual([run.steps[3].status, run.error], ["error", null])
  run.take(event("agent_completed", { agent_name: "compare", result: {} }, { agent_name: "compare" }))
  assert.deepEqual(run.steps.map(({ status }) => status), ["ok", "ok", "ok", "error"])
  // One that nobody waits for any more tells no end.
  const given = all(...begun, event("agent_completed", { agent_name: "compare", result: {} }, { agent_name: "compare" }))
  assert.equal(given.steps[3].status, "cancelled")
})

test("what sub-agents do at once stands below each of them, in every depth and order", () => {
  const stage = { agent_name: "compare" }
  const one = { request_id: "q_words", parent_request_id: "q", agent_name: "words" }
  const two = { request_id: "q_words_2", parent_request_id: "q", agent_name: "words" }
  const inner = { request_id: "q_words_deep", parent_request_id: "q_words", agent_name: "deep" }
  const says = (text, of) => event("agent_thinking", { text }, of)
  const events = [
    event("agent_started", { agent_name: "compare" }, stage),
    event("agent_started", { agent_name: "words" }, one), event("agent_started", { agent_name: "words" }, two),
    says("2a", two), says("1a", one), event("agent_started", { agent_name: "deep" }, inner), says("2b", two), says("deep a", inner),
    says("1b", one), says("deep b", inner), says("stage", stage), says("2c", two), says("1c", one),
    // Another try is another tree, below all that was.
    event("run_attempt", { attempt: 2, reason: "worker_lost" }, { ...stage, attempt: 2 }),
    event("agent_started", { agent_name: "compare" }, { ...stage, attempt: 2 }),
    event("agent_started", { agent_name: "words" }, { ...one, attempt: 2 }), says("1 again", { ...one, attempt: 2 }),
  ]
  const tree = [
    [0, "compare"], [1, "words"], [2, "1a"], [2, "deep"], [3, "deep a"], [3, "deep b"], [2, "1b"], [2, "1c"],
    [1, "words"], [2, "2a"], [2, "2b"], [2, "2c"], [1, "stage"],
    [0, "Attempt 2: worker lost"], [0, "compare"], [1, "words"], [2, "1 again"],
  ]
  const shown = (run) => run.steps.map(({ depth, name }) => [depth, name])
  assert.deepEqual(shown(all(...events)), tree)
  // Read in the middle, a row stands where it will stand.
  const live = new Run("r", "t")
  for (const each of events) {
    live.take(each)
    const ids = live.steps.map(({ id }) => id)
    assert.deepEqual(ids, all(...events).steps.map(({ id }) => id).filter((id) => ids.includes(id)))
  }
  const late = new Run("r", "t")
  late.merge([...events].reverse())
  assert.deepEqual(shown(late), tree)
})

test("no chain of requests makes it endless or too deep", () => {
  const nested = Array.from({ length: 3000 }, (_, at) => event("agent_started", { agent_name: `a${at}` }, { request_id: `q${at + 1}`, parent_request_id: `q${at}` }))
  const run = all(...nested, event("agent_completed", { agent_name: "a0" }, { request_id: "q1", parent_request_id: "q0" }))
  assert.equal(run.steps.length, 3000)
  assert.ok(run.steps.every(({ name, status }, at) => name === `a${at}` && status !== "running"))
  // Each says that it is below the other, and one below itself.
  const circle = all(...[["x", "y"], ["y", "x"], ["z", "z"]].map(([id, parent]) => event("agent_started", { agent_name: id }, { request_id: id, parent_request_id: parent })),
    event("agent_completed", { agent_name: "w" }, { request_id: "w", parent_request_id: "q" }))
  assert.deepEqual(circle.steps.map(({ name }) => name), ["x", "y", "z", "w"])
})

test("a sub-agent that asks waits as its caller does", () => {
  const sub = { request_id: "q_mail", parent_request_id: "q", agent_name: "mail" }
  const run = all(
    event("agent_started", { agent_name: "data" }),
    event("agent_started", { agent_name: "mail" }, sub),
    event("input_required", { input_id: "i", prompt: "Which?" }, sub),
  )
  assert.deepEqual(run.steps.slice(0, 2).map(({ status }) => status), ["waiting", "waiting"])
  run.take(event("run_completed", { status: "TIMED_OUT" }))
  assert.deepEqual(run.steps.slice(0, 2).map(({ status }) => status), ["cancelled", "cancelled"])
})

test("a thought that comes in pieces is one row", () => {
  const piece = (text, more = {}) => event("agent_thinking", { text, delta: true, ...more })
  const run = all(piece("Let me "), piece("see.\n"), event("agent_thinking", { text: "", heartbeat: true }), piece("Yes."))
  assert.deepEqual([run.steps.length, run.steps[0].name, run.thought], [1, "Let me see.\nYes.", "Let me see.\nYes."])
  run.take(piece("Another", { message_id: "m" }))
  run.take(event("tool_executing", { tool_name: "load", tool_call_id: "1" }))
  run.take(piece("After it", { message_id: "m" }))
  run.take(event("agent_thinking", { text: "A step" }))
  run.take(piece("x".repeat(1500)))
  run.take(piece("y".repeat(1500)))
  assert.ok(run.steps[0].version > 0, "it is drawn anew")
  assert.deepEqual(run.steps.filter(({ kind }) => kind === "thought").map(({ name }) => name.slice(0, 8)), [
    "Let me s", "Another", "After it", "A step", "xxxxxxxx", "yyyyyyyy",
  ])
})

test("events that are not known are kept, and pass by", () => {
  const run = inOrder()
  const before = told(run)
  for (const kind of ["again", "clear", "step", "events", "_proto__", "constructor", ""]) run.take(event(kind))
  assert.deepEqual(told(run), before)
  assert.equal(run.count, EVENTS.length + 7)
})

test("no state of an event's is a class of the page", async () => {
  const { runState, stepState } = await import("../../../gateway/console/states.js")
  for (const known of ["running", "ok", "error", "timeout", "cancelled", "denied", "warned", "waiting"]) assert.equal(stepState(known).look, known)
  for (const strange of ["shade", "x menu-open popover", "constructor", "__proto__", "", undefined, {}, 7]) {
    assert.equal(stepState(strange).look, "other")
    assert.equal(runState(strange).look, "idle")
    for (const state of [stepState(strange), runState(strange)]) assert.ok(state.word && state.word.length <= 40)
  }
  assert.deepEqual(runState("TIMED_OUT"), { word: "Out of time", look: "bad" })
})

test("of a question about a call is said what its name does not say", async () => {
  const { aboutCall } = await import("../../../gateway/console/format.js")
  const about = (prompt) => aboutCall({ prompt, tool_name: "send_mail" })
  assert.equal(about("Allow send_mail: Sends a mail."), "Sends a mail.")
  assert.equal(about("Allow send_mail"), "")
  assert.equal(about(undefined), "")
  assert.equal(about("Allow send_mailing: Sends many."), "Allow send_mailing: Sends many.")
  assert.equal(about("May it go out?"), "May it go out?")
})

test("what is shown of a value hides nothing", async () => {
  const { pretty } = await import("../../../gateway/console/format.js")
  const shown = pretty({ path: "/safe\u202egpj.exe", "a\u200bb": "ä\u2066" }, 4_000_000)
  assert.equal(shown, '{\n  "path": "/safe\\u202egpj.exe",\n  "a\\u200bb": "ä\\u2066"\n}')
  assert.deepEqual(JSON.parse(shown), { path: "/safe\u202egpj.exe", "a\u200bb": "ä\u2066" })
})

test("a question is open until it is answered, and its agent waits meanwhile", () => {
  const run = new Run("r", "t")
  for (const each of EVENTS.slice(0, 12)) run.take(each)
  assert.equal(run.status, "WAITING")
  assert.equal(run.question.input_id, "i")
  assert.equal(run.steps[0].status, "waiting")
  run.take(EVENTS[12])
  assert.equal(run.question, null)
  assert.equal(run.steps[0].status, "running")
})

test("what the log has lost has not happened", () => {
  const run = inOrder()
  run.dropAfter(EVENTS[4].offset)
  assert.equal(run.status, "RUNNING")
  assert.equal(run.steps.at(-1).status, "running")
  for (const each of EVENTS.slice(5)) run.take(each)
  assert.deepEqual(told(run), told(inOrder()))
})

test("an attempt that is cut off leaves nothing open", () => {
  const run = new Run("r", "t")
  for (const each of EVENTS.slice(0, 5)) run.take(each)
  run.take({ ...EVENTS[12], offset: EVENTS[4].offset + 1, data: { attempt: 2, reason: "worker_lost" } })
  assert.deepEqual(run.steps.filter(({ kind }) => kind !== "thought").map(({ status }) => status), ["cancelled", "cancelled", "warned"])
})

test("what REST says of a run's end is believed when its last event is gone", () => {
  const run = new Run("r", "t")
  for (const each of EVENTS.slice(0, 5)) run.take(each)
  run.tell({ status: "FAILED", error: { code: "X", message: "no" }, ended_at: "2027-01-15T08:00:01Z" })
  assert.equal(run.status, "FAILED")
  assert.equal(run.error.code, "X")
  assert.ok(run.steps.every(({ status }) => status !== "running"))
  run.tell({ status: "RUNNING" })
  assert.equal(run.status, "FAILED")
})
