/**
 * The real @ag-ui/client against a whole stack: what HttpAgent verifies and puts together, and our subclass over cuts.
 *
 * Run by test_http_agent.py, which gives the address, tokens and the gateway's process.
 */

import assert from "node:assert/strict"
import { test } from "node:test"

import { HttpAgent } from "@ag-ui/client"

import { CarrelHttpAgent } from "./carrel-ag-ui/index.js"

const { URL_, ALICE, BOB, GATEWAY_PID } = process.env
const QUICK = { firstMs: 5, longestMs: 300, attempts: 60 }

const warned = []
console.warn = (...words) => warned.push(words.join(" "))
console.error = () => undefined

/** What a subscriber sees, without what the client adds. */
function recorder() {
  const events = []
  return { events, onEvent: ({ event }) => void events.push(structuredClone(event)) }
}

function settings(agent, { token = ALICE, threadId = "a thread of theirs", text = "hello", ...rest } = {}) {
  const initialMessages = [{ id: "m1", role: "user", content: text }]
  return { url: `${URL_}/ag-ui/${agent}`, headers: { Authorization: `Bearer ${token}` }, threadId, initialMessages, ...rest }
}

/** A fetch whose responses end after so many bytes, which `sizes` gives one by one; whole when it has no more. */
function cutting(sizes) {
  const counts = { requests: 0, cuts: 0 }
  const fetched = async (url, init) => {
    counts.requests += 1
    const response = await fetch(url, init)
    const size = sizes.next().value
    if (size === undefined || !response.body) return response
    let left = size
    const cut = new TransformStream({
      transform(chunk, controller) {
        controller.enqueue(chunk.subarray(0, left))
        left -= chunk.length
        if (left <= 0) {
          counts.cuts += 1
          // As a connection ends that is reset, and as one does that a proxy closes.
          if (counts.cuts % 2) controller.terminate()
          else controller.error(new TypeError("terminated"))
        }
      },
    })
    return new Response(response.body.pipeThrough(cut), { status: response.status, headers: response.headers })
  }
  return { fetched, counts }
}

const LLM_COSTS = { threadId: "costs", text: "Write a report on what this trace costs" }
let whole

test("a whole run of the llm_costs pipeline passes the client's verification", async () => {
  const agent = new HttpAgent(settings("supervisor", LLM_COSTS))
  const seen = recorder()
  const { result, newMessages } = await agent.runAgent({ runId: "their run" }, seen)
  whole = { events: seen.events, state: agent.state, messages: agent.messages, result }
  assert.equal(seen.events[0].threadId, "costs")
  assert.equal(seen.events[0].runId, "their run")
  assert.equal(result.report.name, "report.md")
  assert.deepEqual(agent.state.carrel.stages.map((stage) => stage.agent_name), ["supervisor", "data", "optimization", "report"])
  assert.equal(agent.state.carrel.status, "SUCCEEDED")
  assert.ok(newMessages.some((message) => message.role === "assistant" && message.content?.includes("2,000 requests")))
  const kinds = new Set(seen.events.map((event) => event.type))
  for (const kind of ["STEP_STARTED", "STEP_FINISHED", "REASONING_MESSAGE_CONTENT", "TOOL_CALL_RESULT", "STATE_DELTA"]) {
    assert.ok(kinds.has(kind), kind)
  }
})

for (const [name, sizes] of [
  ["after every 700 bytes", () => Array(400).fill(700)],
  ["in the first records", () => [1, 60, 500, 900, 901]],
  ["in the middle", () => [9_000, 20_000, 1]],
]) {
  test(`the subclass loses and repeats nothing when it is cut ${name}`, async () => {
    // Records may be larger than a piece: each connection gives one more byte than the one before.
    let grown = 0
    const { fetched, counts } = cutting(sizes().map((size) => size + (grown += size === 700 ? 400 : 0)).values())
    const agent = new CarrelHttpAgent({ ...settings("supervisor", LLM_COSTS), fetch: fetched, resume: QUICK })
    const seen = recorder()
    const { result } = await agent.runAgent({ runId: "their run" }, seen)
    assert.ok(counts.cuts >= 3, `${counts.cuts} cuts`)
    assert.deepEqual(seen.events, whole.events)
    assert.deepEqual(agent.state, whole.state)
    assert.deepEqual(agent.messages, whole.messages)
    assert.deepEqual(result, whole.result)
  })
}

test("HttpAgent itself does not come back", async () => {
  const { fetched, counts } = cutting([2_000].values())
  const agent = new HttpAgent({ ...settings("supervisor", LLM_COSTS), fetch: fetched })
  const { result } = await agent.runAgent({ runId: "their run" })
  assert.deepEqual([result, counts.requests], [undefined, 1])
})

test("an approval ends a run, and its answer begins another that goes on", async () => {
  const agent = new CarrelHttpAgent({ ...settings("mail", { threadId: "mails" }), resume: QUICK })
  const first = recorder()
  await agent.runAgent({ runId: "m1" }, first)
  const [interrupt] = agent.pendingInterrupts
  assert.equal(interrupt.reason, "tool_approval")
  assert.equal(interrupt.metadata.carrel.tool_name, "send_mail")
  await assert.rejects(agent.runAgent({ runId: "m2" }), /pending interrupt/)
  const second = recorder()
  const { result } = await agent.runAgent(
    { runId: "m2", resume: [{ interruptId: interrupt.id, status: "resolved", payload: true }] },
    second,
  )
  assert.deepEqual(result, { mail: { sent: "bob@example.com" } })
  assert.deepEqual(agent.pendingInterrupts, [])
  assert.equal(second.events[0].metadata.carrel.run_id, first.events[0].metadata.carrel.run_id)
})

test("a run is cancelled, live, after a cut", async () => {
  const { fetched } = cutting([1_500].values())
  const config = { ...settings("talk", { threadId: "talks" }), fetch: fetched, resume: QUICK }
  const agent = new CarrelHttpAgent(config)
  const seen = recorder()
  let asked
  const onReasoningMessageContentEvent = () => void (asked ??= agent.cancelRun("enough"))
  await agent.runAgent({ runId: "t1", forwardedProps: { seconds: 60 } }, { ...seen, onReasoningMessageContentEvent })
  await asked
  assert.deepEqual(seen.events.at(-1).outcome, { type: "cancelled" })
})

test("a run that fails is a RUN_ERROR that says what to do", async () => {
  const agent = new CarrelHttpAgent({ ...settings("loud", { threadId: "loud" }), resume: QUICK })
  const seen = recorder()
  await agent.runAgent({ runId: "l1", forwardedProps: { fails: true } }, seen)
  const end = seen.events.at(-1)
  assert.equal(end.type, "RUN_ERROR")
  assert.equal(end.code, "AGENT_FAILED")
  assert.ok(end.metadata.carrel.error.advice)
})

test("an unknown agent is a 404 that names those there are", async () => {
  const agent = new CarrelHttpAgent({ ...settings("nobody"), resume: QUICK })
  const error = await agent.runAgent({ runId: "u1" }).catch((problem) => problem)
  assert.equal(error.status, 404)
  assert.equal(error.payload.error.code, "UNKNOWN_AGENT")
  assert.match(error.payload.error.advice, /supervisor/)
})

test("another user's names are nobody's but his own", async () => {
  const ids = []
  for (const token of [ALICE, BOB]) {
    const agent = new CarrelHttpAgent({ ...settings("talk", { token, threadId: "same", text: `of ${token.slice(-4)}` }), resume: QUICK })
    const seen = recorder()
    const { result } = await agent.runAgent({ runId: "same" }, seen)
    assert.equal(result.answer, `to of ${token.slice(-4)}`)
    assert.deepEqual(result.history, [])
    ids.push(seen.events[0].metadata.carrel.run_id)
  }
  assert.notEqual(ids[0], ids[1])
})

test("a gateway that is killed in the middle is come back to", async () => {
  const agent = new CarrelHttpAgent({ ...settings("talk", { threadId: "killed" }), resume: QUICK })
  const seen = recorder()
  const onReasoningMessageContentEvent = () => void process.kill(Number(GATEWAY_PID), "SIGKILL")
  const { result } = await agent.runAgent({ runId: "k1", forwardedProps: { seconds: 1 } }, { ...seen, onReasoningMessageContentEvent })
  assert.equal(result.answer, "to hello")
  assert.equal(seen.events.filter((event) => event.type === "RUN_STARTED").length, 1)
})

test("nothing was stripped or translated by the client", () => assert.deepEqual(warned, []))
