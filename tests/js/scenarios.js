/**
 * What goes wrong between a client and a gateway, played by scripted gateways (scripted.py): each event comes once, in
 * order, or a notice says what is missing. Run in Node by faults.test.js and in a page by test_in_browser.py; this file
 * knows neither.
 */

import { CarrelError, formatPosition, Gap, Notice, Reset } from "../../clients/js/src/index.js"
import { brief, check, collect, end, event, log, pause, same, until, whole, wholeLog } from "./stage.js"

// Dropped sockets.

/** A scenario for each frame of a recorded run after which the connection is cut. */
function cuts(recorded) {
  const frames = recorded.length + 1
  const cells = []
  for (const how of ["abort", "halfway", "bye"]) {
    for (let after = 0; after <= frames; after += 1) {
      cells.push([
        `cut ${how} after frame ${after}`,
        async (stage) => {
          const cut = { after, how, bye: { code: 4000, reason: "drain", retry_ms: 1 } }
          await stage.script({ log: recorded, plans: [{ cut }] })
          const client = stage.client()
          await wholeLog(stage, client, recorded)
          if (after < frames) same(client.reconnects, after === 0 ? 0 : 1, "reconnects")
          same(
            client.position,
            { epoch: "epoch-1", offset: frames - 1, event_id: recorded.at(-1).event_id },
            "the position",
          )
        },
      ])
    }
  }
  return cells
}

const every = (how, after, code) => async (stage) => {
  const events = log(12)
  await stage.script({ log: events, plans: [{ cut: { after, how, code } }], repeat: true, batch: 3 })
  await wholeLog(stage, stage.client(), events)
}

async function cutInReset(stage) {
  const events = log(5)
  await stage.script({ log: events, epoch: "epoch-2", plans: [{ cut: { after: 1, how: "abort" } }] })
  const client = await stage.client({ resume: "epoch-1:9:evt-9" }).connect()
  const got = await collect(client, 5)
  same(got.map(brief), ["reset", 1, 2, 3, 4, 5], "what came")
}

// Resets, gaps, nonsense.

async function resetLive(stage) {
  const events = log(8)
  const reset = { type: "reset", reason: "epoch_changed", epoch: "epoch-2", offset: 3 }
  const say = [{ at: 4, texts: [reset], becomes: { epoch: "epoch-2" } }]
  await stage.script({ log: events, plans: [{ say, cut: { after: 6, how: "abort" } }] })
  const told = []
  const client = await stage.client({ onReset: (notice) => void told.push(notice.reason) }).connect()
  const got = await collect(client, 8)
  same(got.map(brief), [1, 2, 3, "reset", 4, 5, 6, 7, 8], "what came")
  same(got[3] instanceof Reset && got[3].position, { epoch: "epoch-2", offset: 3, event_id: "" }, "the reset")
  same(told, ["epoch_changed"], "what onReset was told")
  const { connects } = await stage.told()
  same(connects[1].resume.epoch, "epoch-2", "the epoch that it resumed in")
}

async function resetWhileAway(stage) {
  const renewed = [...log(2), event(3, { event_id: "new-3" }), event(4, { event_id: "new-4" })]
  const plans = [{ cut: { after: 5, how: "abort" } }, { becomes: { epoch: "epoch-2", log: renewed } }]
  await stage.script({ log: log(4), plans })
  const client = await stage.client().connect()
  const got = await collect(client, 6)
  same(
    got.map((item) => item.event_id ?? item.kind),
    ["evt-1", "evt-2", "evt-3", "evt-4", "reset", "new-3", "new-4"],
    "it",
  )
}

const lostPlace = (resume, reason) => async (stage) => {
  await stage.script({ log: log(5, 11), first: 11 })
  const client = await stage.client({ resume }).connect()
  const got = await collect(client, 5)
  same(
    got.map((item) => (item instanceof Reset ? item.reason : brief(item))),
    [reason, 11, 12, 13, 14, 15],
    "what came",
  )
}

const hole = (repeat) => async (stage) => {
  const events = log(6)
  await stage.script({ log: events, plans: [{ without: [3] }], repeat })
  const client = await stage.client().connect()
  const got = await collect(client, repeat ? 5 : 6)
  if (!repeat) return whole(got, events)
  same(got.map(brief), [1, 2, "gap", 4, 5, 6], "what came")
  check(
    got[2] instanceof Gap && got[2].first === 3 && got[2].last === 3 && !got[2].announced,
    () => "the gap is another",
  )
}

async function missedTail(stage) {
  const events = log(6)
  await stage.script({ log: events, heartbeat: 0.2, plans: [{ without: [6] }] })
  await wholeLog(stage, stage.client(), events)
}

async function announcedGap(stage) {
  const say = [
    { at: 3, texts: [], instead: true },
    { at: 4, texts: [{ type: "gap", from: 3, to: 4 }], instead: true },
  ]
  await stage.script({ log: log(6), plans: [{ say }] })
  const got = await collect(await stage.client().connect(), 4)
  same(got.map(brief), [1, 2, "gap", 5, 6], "what came")
  check(got[2].announced && got[2].first === 3 && got[2].last === 4, () => "the gap is another")
}

const GARBAGE = {
  "no JSON": "{",
  "a number": "12",
  "a list": "[1, 2]",
  "an event without fields": '{"event_type": "agent_thinking"}',
  "a batch without events": '{"event_type": "event_batch", "batch_size": 2, "compressed": false}',
  "no gzip": '{"event_type": "event_batch", "compressed": true, "events_compressed": "zz"}',
  "a gzip cut off":
    '{"event_type": "event_batch", "compressed": true, "events_compressed": "1f8b0800000000000003ab5608"}',
  "another user's event": JSON.stringify(event(3, { user_id: "bob" })),
  "an offset beyond what numbers hold": JSON.stringify(event(3)).replace('"offset":3', '"offset":9007199254740993'),
  "an offset that is a text": JSON.stringify(event(3, { offset: "3" })),
  "another event at an offset": JSON.stringify(event(2, { event_id: "evt-other" })),
  "a reset without a place": '{"type": "reset"}',
}

const garbage = (text, at) => async (stage) => {
  const events = log(6)
  await stage.script({ log: events, plans: [{ say: [{ at, texts: [text] }] }] })
  await wholeLog(stage, stage.client(), events)
}

async function bomb(stage) {
  // 18 MiB of spaces in 18 KiB: more than a batch may grow to.
  const source = new Blob(Array(18).fill(new Uint8Array(2 ** 20).fill(32))).stream()
  const packed = new Uint8Array(await new Response(source.pipeThrough(new CompressionStream("gzip"))).arrayBuffer())
  const hex = Array.from(packed, (byte) => byte.toString(16).padStart(2, "0")).join("")
  await garbage(JSON.stringify({ event_type: "event_batch", compressed: true, events_compressed: hex }), 3)(stage)
}

async function alwaysGarbage(stage) {
  await stage.script({ log: log(3), plans: [{ say: [{ at: 2, texts: ["{"] }] }], repeat: true })
  const client = await stage.client().connect()
  const error = await collect(client, 3).then(
    () => undefined,
    (problem) => problem,
  )
  check(error instanceof CarrelError && error.code === "PROTOCOL", () => `the end was ${error}`)
  same((await stage.told()).attempts.length, 3, "attempts")
  same(client.state.phase, "closed", "the phase")
}

async function unknown(stage) {
  const texts = [{ type: "of_a_later_release", offset: 99 }]
  const events = [event(1), event(2, { event_type: "of_a_later_release", position: 7, later: { x: 1 } }), event(3)]
  await stage.script({ log: events, plans: [{ say: [{ at: 2, texts }] }] })
  const got = await collect(await stage.client().connect(), 3)
  same(got.map(brief), [1, "of_a_later_release", 2, 3], "what came")
}

// Slow consumers.

const slow = (granted) => async (stage) => {
  const events = log(400)
  await stage.script({ log: events, window: granted, batch: 16, ack_ms: 300 })
  const window = 32
  const client = await stage.client({ window }).connect()
  const items = client.items()
  const first = await collect(client, 5, { items })
  await pause(700)
  const held = client.health.held
  check(held <= window + 16, () => `${held} events were held, and the window is ${window}`)
  const rest = await collect(client, 395, { items, ms: 25_000 })
  whole([...first, ...rest], events)
  check(client._inbox.most <= 2 * window + 16, () => `${client._inbox.most} were held at some time`)
  const told = await stage.told()
  same(told.wrong, [], "what the client did wrong")
  if (granted) return check(told.ahead <= granted, () => `${told.ahead} were sent ahead of acknowledgements`)
  same(told.acks, [], "acknowledgements where no window was granted")
  // It comes back when half of its window is free, and not before.
  check(told.attempts.length <= 30, () => `${told.attempts.length} connections for 400 events`)
}

async function unhurried(stage) {
  // Nothing is acknowledged that was not worked on.
  await stage.script({ log: log(40), window: 8 })
  const client = await stage.client({ window: 8 }).connect()
  const items = client.items()
  await collect(client, 3, { items })
  await pause(300)
  const acked = Math.max(0, ...(await stage.told()).acks.map(([, offset]) => offset))
  check(acked <= 2, () => `${acked} was acknowledged while the third was being worked on`)
  await collect(client, 37, { items })
}

async function listened(stage) {
  const events = log(50)
  await stage.script({ log: events, window: 8 })
  const client = await stage.client({ window: 8 }).connect()
  const got = []
  let busy = 0
  await new Promise((resolve, reject) => {
    const stop = client.listen({
      onEvent: async (item) => {
        busy += 1
        if (busy > 1) reject(new Error("two at once"))
        await pause(1)
        busy -= 1
        got.push(item)
        if (item.offset === 50) resolve(stop())
      },
      onEnd: reject,
    })
  })
  whole(got, events)
}

// Silence, farewells, tokens.

async function stalled(stage) {
  const events = log(5)
  await stage.script({ log: events, heartbeat: 0.2, plans: [{ cut: { after: 3, how: "silence" } }] })
  const states = []
  const client = stage.client({ onState: ({ phase }) => states.push(phase) })
  const began = performance.now()
  await wholeLog(stage, client, events)
  check(performance.now() - began < 5000, () => "it took long to find out")
  same(states, ["connecting", "connected", "waiting", "connecting", "connected"], "the states")
}

async function lag(stage) {
  await stage.script({ log: log(30), window: 4, heartbeat: 0.1 })
  const client = await stage.client({ window: 4 }).connect()
  await until(() => client.health.behind === 26, "26 events behind")
  const { held, lastHeardMs, heartbeatMs } = client.health
  same([held, heartbeatMs], [4, 100], "what is held, and the heartbeat")
  check(lastHeardMs < 2000, () => `nothing was heard for ${lastHeardMs} ms`)
  await collect(client, 30)
  await until(() => client.health.behind === 0, "nothing left")
}

async function byeWaits(stage) {
  const events = log(4)
  const bye = { code: 4000, reason: "drain", retry_ms: 400 }
  await stage.script({ log: events, plans: [{ cut: { after: 3, how: "bye", bye } }] })
  await wholeLog(stage, stage.client(), events)
  const [first, second] = (await stage.told()).attempts
  check(second - first >= 0.39, () => `it came back after ${second - first} s`)
}

const CODES = {
  1009: "TOO_LARGE",
  4500: "TOKEN",
  4501: "FRAME",
  4503: "PERMISSION_DENIED",
  4504: "CONNECTIONS_LIMIT",
  4505: "HANDSHAKE_TIMEOUT",
  4999: "CLOSED",
}

const closedFor = (code) => async (stage) => {
  await stage.script({ log: log(2), plans: [{ cut: { after: 3, how: "code", code } }] })
  const client = await stage.client().connect()
  const error = await collect(client, 3).then(
    () => undefined,
    (problem) => problem,
  )
  check(error instanceof CarrelError, () => `the end was ${error}`)
  same([error.code, error.closeCode, Boolean(error.advice)], [CODES[code], code, true], "the error")
  await pause(100)
  same((await stage.told()).attempts.length, 1, "attempts")
}

const comesBack = (code) => async (stage) => {
  const events = log(3)
  await stage.script({ log: events, plans: [{ cut: { after: 2, how: "code", code } }] })
  await wholeLog(stage, stage.client(), events)
}

const jwt = (name, seconds) => `x.${btoa(JSON.stringify({ name, exp: Date.now() / 1000 + seconds }))}.y`

async function refreshed(stage) {
  await stage.script({ log: log(3), expires_ms: 2000 })
  let asked = 0
  const token = async () => jwt(`token ${(asked += 1)}`, 2.4)
  const client = await stage.client({ token }).connect()
  await collect(client, 3)
  for (let offset = 4; offset < 34; offset += 1) {
    await stage.commit(event(offset))
    await pause(90)
  }
  whole(await collect(client, 30), log(30, 4))
  const told = await stage.told()
  same([client.reconnects, told.refreshed.length >= 1], [0, true], "reconnects, and whether it was refreshed")
}

async function expired(stage) {
  // A source that gives no fresh token in time: the connection ends in the middle, and the next has another.
  await stage.script({ log: log(3), expires_ms: 400 })
  let asked = 0
  const client = await stage.client({ token: () => `opaque-${(asked += 1)}` }).connect()
  for (let offset = 4; offset < 24; offset += 1) {
    await stage.commit(event(offset))
    await pause(50)
  }
  whole(await collect(client, 23), log(23))
  const { connects } = await stage.told()
  check(client.reconnects >= 1, () => "the connection did not end")
  same(
    connects.slice(0, 2).map((item) => item.token),
    ["opaque-1", "opaque-2"],
    "the tokens",
  )
}

async function socketTokens(stage) {
  await stage.script({ log: log(5), tokens: ["st-1", "st-2"], plans: [{ cut: { after: 3, how: "abort" } }] })
  let asked = 0
  const client = stage.client({ token: undefined, socketToken: async () => `st-${(asked += 1)}` })
  await wholeLog(stage, client, log(5))
  same(
    (await stage.told()).connects.map((item) => item.socket_token),
    ["st-1", "st-2"],
    "the socket tokens",
  )
}

async function noToken(stage) {
  await stage.script({ log: log(5) })
  let asked = 0
  const token = async () => {
    asked += 1
    if (asked < 3) throw new TypeError("the issuer is away")
    return "a.good.token"
  }
  await wholeLog(stage, stage.client({ token }), log(5))
  const fail = () => Promise.reject(new CarrelError("sign in again", { code: "SIGNED_OUT" }))
  const error = await stage
    .client({ token: fail })
    .connect()
    .catch((problem) => problem)
  same(error.code, "SIGNED_OUT", "the source's own error")
}

async function wrongToken(stage) {
  await stage.script({ log: log(1), tokens: ["another"] })
  const error = await stage
    .client()
    .connect()
    .catch((problem) => problem)
  same([error.code, error.message, error.closeCode], ["TOKEN", "no valid token", 4500], "the error")
}

// Requests.

async function repeated(stage) {
  await stage.script({ log: log(2), answers: [null, null] })
  const client = await stage.client().connect()
  const run = await client.execute("hello", { clientRef: "ref-1", params: { x: 1 } })
  same([run.runId, run.clientRef], ["run-1", "ref-1"], "the answer")
  const { requests } = await stage.told()
  same(requests.length, 3, "requests")
  same(new Set(requests.map((item) => JSON.stringify(item))).size, 1, "how many different ones")
  await collect(client, 2)
}

async function refusedRequests(stage) {
  const busy = { type: "error", code: "THREAD_BUSY", status: "ABORTED", message: "busy", advice: "", retryable: true }
  const away = { ...busy, code: "DOWNSTREAM_UNAVAILABLE", status: "UNAVAILABLE", retry_after_s: 0.05 }
  await stage.script({ log: log(1), answers: [busy, away] })
  const client = await stage.client().connect()
  const error = await client.execute("one").catch((problem) => problem)
  same([error.code, error.name, error.retryable], ["THREAD_BUSY", "ConflictError", true], "the refusal")
  same((await client.execute("two")).runId, "run-1", "what was asked again")
  same(await client.cancel("run-7"), "RUNNING", "the cancelled run's status")
  same(await client.approve("run-7", "in-1", true, { reason: "fine" }), "RUNNING", "the approved run's status")
  same(await client.provideInput("run-7", "in-1", null), "RUNNING", "the answered run's status")
  const told = (await stage.told()).requests.slice(-3).map(({ client_ref: _, ...rest }) => rest)
  same(
    told,
    [
      { type: "agent_cancel", run_id: "run-7" },
      { type: "input_provide", run_id: "run-7", input_id: "in-1", value: { approved: true, reason: "fine" } },
      { type: "input_provide", run_id: "run-7", input_id: "in-1", value: null },
    ],
    "the frames",
  )
  check((await client.ping()) < 5000, () => "a ping takes long")
  const large = await client.execute("x".repeat(70_000)).catch((problem) => problem)
  same(large.code, "TOO_LARGE", "what is too large for a frame")
}

async function unanswered(stage) {
  await stage.script({ log: log(1), answers: [{ type: "nothing" }] })
  const client = await stage.client().connect()
  await collect(client, 1)
  await stage.change({ plans: [{ refuse: 503 }], repeat: true, answers: Array(9).fill(null) })
  const error = await client.execute("x", { timeoutMs: 300 }).catch((problem) => problem)
  same([error.code, error.retryable], ["DEADLINE", true], "the error")
  check(/no answer to agent_execute came within 300 ms: ./.test(error.message), () => error.message)
  const controller = new AbortController()
  setTimeout(() => controller.abort(new Error("enough")), 30)
  const aborted = await client.execute("x", { signal: controller.signal }).catch((problem) => problem)
  same(aborted.message, "enough", "the signal's reason")
}

async function signals(stage) {
  const events = log(3)
  await stage.script({ log: events })
  const client = await stage.client().connect()
  const first = await collect(client, 3)
  const controller = new AbortController()
  setTimeout(() => controller.abort(new Error("enough")), 50)
  const loop = async () => {
    for await (const item of client.events({ signal: controller.signal })) first.push(item)
  }
  const error = await loop().catch((problem) => problem)
  same(error.message, "enough", "the signal's reason")
  await stage.commit(event(4))
  whole([...first, ...(await collect(client, 1))], log(4))
  const two = client.items().next()
  const wrong = await client
    .items()
    .next()
    .catch((problem) => problem)
  check(/two loops/.test(wrong.message), () => "two readers at once were let")
  client.close()
  same((await two).done, true, "the end of who waited")
  same(
    (await client.execute("x").catch((problem) => problem)).message,
    "the client was closed",
    "what is asked after",
  )
}

async function closesWhileWaiting(stage) {
  await stage.script({ plans: [{ refuse: 503 }], repeat: true })
  const client = stage.client({ backoff: { attempts: Infinity, firstMs: 60_000, longestMs: 60_000, steady: 1 } })
  const connecting = client.connect().catch((problem) => problem)
  await until(() => client.state.phase === "waiting", "waiting")
  client.close()
  same((await connecting).message, "the client was closed", "what connect throws")
}

async function givesUp(stage) {
  await stage.script({ plans: [{ refuse: 503 }], repeat: true })
  const client = stage.client({ backoff: { attempts: 3, firstMs: 1, longestMs: 1 } })
  const error = await client.connect().catch((problem) => problem)
  same([error.code, (await stage.told()).attempts.length], ["UNAVAILABLE", 3], "the error, and attempts")
  const other = await stage
    .client({ patient: false })
    .connect()
    .catch((problem) => problem)
  same([other.code, /tried once/.test(other.message)], ["UNAVAILABLE", true], "who is not patient")
}

async function wakes(stage) {
  const events = log(2)
  await stage.script({ log: events, plans: [{ cut: { after: 2, how: "abort" } }] })
  const client = await stage.client({ backoff: { firstMs: 60_000, longestMs: 60_000, steady: 1 } }).connect()
  const got = collect(client, 2)
  await until(() => client.state.phase === "waiting", "waiting")
  client.wake()
  whole(await got, events)
}

async function probed(stage) {
  const events = log(4)
  await stage.script({ log: events, plans: [{ cut: { after: 3, how: "silence" } }] })
  const client = await stage.client().connect()
  const got = collect(client, 4)
  await until(() => client.position.offset === 2, "what came before the silence")
  client.wake()
  client.wake()
  whole(await got, events)
  same(client.reconnects, 1, "reconnects")
  const heard = performance.now()
  client.wake()
  await until(() => client.health.lastHeardMs < performance.now() - heard, "an answer")
  same(client.reconnects, 1, "reconnects of a line that holds")
}

// Filters, runs, positions.

async function filtered(stage) {
  const events = Array.from({ length: 19 }, (_, at) =>
    event(at + 1, { thread_id: (at + 1) % 3 ? "thread-2" : "thread-1" }),
  )
  await stage.script({
    log: events,
    batch: 4,
    plans: [{ cut: { after: 4, how: "abort" } }, { cut: { after: 3, how: "abort" } }],
  })
  const client = await stage.client({ threadId: "thread-1" }).connect()
  same((await collect(client, 6)).map(brief), [3, 6, 9, 12, 15, 18], "what came")
}

async function runs(stage) {
  const events = [event(1), event(2, { run_id: "run-2" }), end(3), end(4, "run-2"), event(5, { run_id: "run-3" })]
  await stage.script({ log: events })
  const client = await stage.client().connect()
  const got = []
  for await (const item of client.runEvents("run-1")) got.push(item.offset)
  same(got, [1, 3], "the run's events")
}

async function lostEnd(stage) {
  // The log is made anew, and the run's last event is gone with it: how it ended is told, or asked for.
  const run = { run_id: "run-1", status: "SUCCEEDED" }
  const plans = [{ cut: { after: 3, how: "abort" } }, { greet: [{ type: "run_state", ...run }] }]
  await stage.script({ log: log(2), plans, runs: { "run-1": run } })
  const client = await stage.client().connect()
  const items = client.runItems("run-1")
  const got = [(await items.next()).value, (await items.next()).value]
  await stage.change({ epoch: "epoch-2", log: log(1) })
  for await (const item of items) got.push(item)
  same(got.map(brief), [1, 2, "reset", "run_state"], "what came")
  same(client.runStatus("run-1").status, "SUCCEEDED", "the status")
}

async function saved(stage) {
  const events = log(9)
  await stage.script({ log: events })
  const client = await stage.client().connect()
  const first = await collect(client, 4)
  const text = formatPosition(client.position)
  client.close()
  same(text, "epoch-1:4:evt-4", "the position")
  same(formatPosition(first[3].position), text, "the event's position")
  const again = await stage.client({ resume: text }).connect()
  whole([...first, ...(await collect(again, 5))], events)
  same(
    (await stage.told()).connects[1].resume,
    { epoch: "epoch-1", offset: 4, event_id: "evt-4" },
    "what it resumed from",
  )
}

// Server-sent events.

const streamCut = (how, after) => async (stage) => {
  const events = [...log(4), event(5, { run_id: "run-2" }), event(6), end(7)]
  const plan = { cut: { after, how } }
  await stage.script({ log: events, plans: [plan, plan], runs: { "run-1": { run_id: "run-1", status: "RUNNING" } } })
  const got = []
  const backoff = { attempts: 20, firstMs: 2, longestMs: 10 }
  for await (const item of stage.rest().runEvents("run-1", { backoff })) got.push(item)
  whole(
    got,
    events.filter((item) => item.run_id === "run-1"),
  )
  const [, second] = (await stage.told()).connects
  const [began, given] = [second.resume.offset, Math.max(0, after - 1)]
  // A connection that breaks takes along what was not read yet; it is read again.
  check(
    how === "end" ? began === given : began <= given,
    () => `the second connection began at ${began}, not ${given}`,
  )
}

async function streamResumes(stage) {
  const events = [...log(6), end(7)]
  await stage.script({ log: events })
  const got = []
  for await (const item of stage.rest().runEvents("run-1", { resume: "epoch-1:4:evt-4" })) got.push(brief(item))
  same(got, [5, 6, 7], "what came")
  const reset = []
  for await (const item of stage.rest().runEvents("run-1", { resume: "epoch-0:4:evt-4" })) reset.push(brief(item))
  same(reset, ["reset", 1, 2, 3, 4, 5, 6, 7], "what came")
}

async function streamSignals(stage) {
  await stage.script({ log: log(3) })
  const controller = new AbortController()
  const got = []
  const loop = async () => {
    for await (const item of stage.rest().events({ resume: "oldest", signal: controller.signal })) {
      got.push(item.offset)
      if (item.offset === 3) setTimeout(() => controller.abort(new Error("enough")), 20)
    }
  }
  const error = await loop().catch((problem) => problem)
  same([got, error.message], [[1, 2, 3], "enough"], "what came, and the signal's reason")
}

/**
 * All scenarios.
 * @param {object[]} recorded A run's events.
 * @returns {[string, (stage: Stage) => Promise<void>][]}
 */
export function scenarios(recorded) {
  return [
    ...cuts(recorded),
    ...["abort", "halfway", "code"].flatMap((how) =>
      [2, 3, 5].map((after) => [`every connection cut ${how} after frame ${after}`, every(how, after, 4000)]),
    ),
    ["cut between connected and reset", cutInReset],
    ["reset in the middle", resetLive],
    ["the log made anew while away", resetWhileAway],
    ["reset: epoch_changed", lostPlace("epoch-0:12:evt-12", "epoch_changed")],
    ["reset: trimmed", lostPlace("epoch-1:4:evt-4", "trimmed")],
    ["reset: beyond_top", lostPlace("epoch-1:99:evt-99", "beyond_top")],
    ["reset: event_mismatch", lostPlace("epoch-1:12:evt-other", "event_mismatch")],
    ["a hole that is mended", hole(false)],
    ["a hole that stays", hole(true)],
    ["a last event that did not come", missedTail],
    ["a gap that is announced", announcedGap],
    ...Object.entries(GARBAGE).map(([name, text]) => [`garbage: ${name}`, garbage(text, 3)]),
    ["garbage: a gzip that grows beyond bounds", bomb],
    ["garbage on every connection", alwaysGarbage],
    ["what is unknown is no fault", unknown],
    ["slow consumer, window granted", slow(16)],
    ["slow consumer, no window granted", slow(0)],
    ["slow consumer, nothing acknowledged early", unhurried],
    ["callbacks, one at a time", listened],
    ["a gateway that stalls", stalled],
    ["how far behind it is", lag],
    ["bye says when to come back", byeWaits],
    ...Object.keys(CODES).map((code) => [`closed for good with ${code}`, closedFor(Number(code))]),
    ...[1001, 1011, 4000, 4001, 4002, 4003, 4004, 4005, 4499].map((code) => [
      `comes back after ${code}`,
      comesBack(code),
    ]),
    ["a token that is refreshed", refreshed],
    ["a token that ends in the middle", expired],
    ["socket tokens", socketTokens],
    ["a source of tokens that fails", noToken],
    ["a wrong token", wrongToken],
    ["a request without its answer is repeated", repeated],
    ["requests that are refused", refusedRequests],
    ["requests that nobody answers", unanswered],
    ["signals end waiting and lose nothing", signals],
    ["closed while it waits", closesWhileWaiting],
    ["gives up in the end", givesUp],
    ["woken while it waits", wakes],
    ["woken on a dead line", probed],
    ["one thread", filtered],
    ["one run of several", runs],
    ["a run whose last event is lost", lostEnd],
    ["a position outlives its client", saved],
    ...[
      ["abort", 1],
      ["abort", 3],
      ["halfway", 2],
      ["halfway", 4],
      ["end", 3],
    ].map(([how, after]) => [`stream of events cut ${how} after block ${after}`, streamCut(how, after)]),
    ["stream of events from a position", streamResumes],
    ["stream of events ended by a signal", streamSignals],
  ]
}
