/** The inbox, waiting, backing off, logins, commands, batches, blocks of a stream of events, addresses. */

import assert from "node:assert/strict"
import { getEventListeners } from "node:events"
import { readFileSync } from "node:fs"
import { test } from "node:test"
import { gzipSync } from "node:zlib"

import { Backoff } from "../../../clients/js/src/backoff.js"
import { Commands, frameText } from "../../../clients/js/src/commands.js"
import { bodiesOf, parseObject } from "../../../clients/js/src/decoding.js"
import { CarrelError, errorFrom, ProtocolError, UnavailableError } from "../../../clients/js/src/errors.js"
import { addressOf } from "../../../clients/js/src/http.js"
import { Inbox, LATE } from "../../../clients/js/src/inbox.js"
import * as library from "../../../clients/js/src/index.js"
import { expiryOf, Login } from "../../../clients/js/src/login.js"
import { position } from "../../../clients/js/src/positions.js"
import { SseParser } from "../../../clients/js/src/sse.js"
import { Latch, sleep } from "../../../clients/js/src/waiting.js"

const at = (offset) => position("e", offset, `evt-${offset}`)
const signal = () => new AbortController().signal

test("the inbox gives in order, and tells what was worked on when more is asked for", async () => {
  const inbox = new Inbox(4, 1000, at(0))
  let done = 0
  inbox.onDone = () => (done += 1)
  for (let offset = 1; offset <= 3; offset += 1) inbox.put(`item ${offset}`, at(offset), 10)
  assert.equal(await inbox.take(), "item 1")
  assert.deepEqual([inbox.taken.offset, inbox.done.offset, done], [1, 0, 0])
  assert.equal(await inbox.take(), "item 2")
  assert.deepEqual([inbox.taken.offset, inbox.done.offset, done], [2, 1, 1])
  assert.deepEqual([inbox.length, inbox.room, inbox.full()], [1, 3, false])
})

test("progress alone takes one place, and is passed over", async () => {
  const inbox = new Inbox(4, 1000, at(0))
  for (let offset = 1; offset <= 100; offset += 1) inbox.put(undefined, at(offset), 1)
  assert.equal(inbox.length, 1)
  assert.equal(await inbox.take({ ms: 1 }), LATE)
  assert.deepEqual([inbox.taken.offset, inbox.done.offset, inbox._size], [100, 100, 0])
})

test("thousands pass through the inbox without being kept", async () => {
  const inbox = new Inbox(4, 1000, at(0))
  for (let offset = 1; offset <= 5000; offset += 1) {
    inbox.put(offset, at(offset), 1)
    if (offset > 3) await inbox.take()
  }
  assert.ok(inbox._entries.length < 2000, `${inbox._entries.length} places`)
  assert.equal(inbox.most, 4)
})

test("the inbox waits, ends, fails, and has one reader", async () => {
  const inbox = new Inbox(4, 1000, at(0))
  const waiting = inbox.take()
  await assert.rejects(inbox.take(), /two loops/)
  inbox.put("late", at(1))
  assert.equal(await waiting, "late")
  const controller = new AbortController()
  const aborted = inbox.take({ signal: controller.signal })
  controller.abort(new Error("enough"))
  await assert.rejects(aborted, /enough/)
  inbox.put("last", at(2))
  inbox.end(new UnavailableError("gone"))
  assert.equal(await inbox.take(), "last")
  await assert.rejects(inbox.take(), /gone/)
})

test("room is waited for, less of it when something is urgent", async () => {
  const inbox = new Inbox(4, 1000, at(0))
  for (let offset = 1; offset <= 4; offset += 1) inbox.put(offset, at(offset))
  let free = false
  let urgent = false
  const waiting = inbox.halfEmpty(() => urgent, signal()).then(() => (free = true))
  await inbox.take()
  await sleep(1)
  assert.equal(free, false)
  urgent = true
  inbox.nudge()
  await waiting
  assert.equal(inbox.length, 3)
})

test("a latch leaves nothing behind", async () => {
  const latch = new Latch()
  const controller = new AbortController()
  assert.equal(await latch.wait({ ms: 1, signal: controller.signal }), false)
  setTimeout(() => latch.set(), 1)
  assert.equal(await latch.wait({ ms: 60_000, signal: controller.signal }), true)
  assert.equal(latch._waiting.size, 0)
  assert.equal(getEventListeners(controller.signal, "abort").length, 0)
  controller.abort(new Error("enough"))
  await assert.rejects(latch.wait({ signal: controller.signal }), /enough/)
})

test("waits are spread under a bound that grows, on top of what was asked", () => {
  const high = new Backoff({ attempts: 9, firstMs: 100, longestMs: 500, random: () => 1 })
  assert.deepEqual(
    [1, 2, 3, 4, 8].map((n) => high.delayMs(n)),
    [100, 200, 400, 500, 500],
  )
  assert.equal(high.delayMs(9), undefined)
  assert.equal(new Backoff({ random: () => 0 }).delayMs(3), 0)
  assert.equal(new Backoff({ random: () => 0, steady: 0.5 }).delayMs(1, 700), 750)
  assert.ok(Number.isFinite(new Backoff({ attempts: Infinity }).delayMs(5000)))
})

const jwt = (claims) => `x.${Buffer.from(JSON.stringify(claims)).toString("base64url")}.y`

test("a token is asked for before it ends, and looked into no further", async () => {
  assert.equal(expiryOf(jwt({ exp: 7, who: "ä?>" })), 7000)
  for (const none of ["opaque", "a.b.c", jwt({}), jwt({ exp: "7" }), "x..y"]) assert.equal(expiryOf(none), undefined)
  let asked = 0
  const login = new Login(() => jwt({ exp: 1000 + 100 * (asked += 1) }))
  login.now = () => 1_000_000
  await login.token(signal())
  assert.equal(login.refreshInMs, 90_000)
  assert.equal(await login.present(), jwt({ exp: 1100 }))
  login.now = () => 1_096_000
  assert.equal(login.refreshInMs, 2000)
  assert.equal(await login.present(), jwt({ exp: 1200 }))
  assert.equal(new Login("fixed").refreshInMs, undefined)
  assert.throws(() => new Login(undefined), { code: "TOKEN" })
  await assert.rejects(new Login(() => 7).token(), { code: "TOKEN" })
  await assert.rejects(new Login(undefined, "st").token(), { code: "TOKEN" })
})

test("what waits for an answer is bounded, and ends with the client", async () => {
  const sent = []
  const commands = new Commands(
    (text) => sent.push(text),
    new Backoff(),
    () => "",
  )
  const options = { timeoutMs: 60_000 }
  const all = Array.from({ length: 1000 }, (_, n) =>
    commands.ask(`ref-${n}`, { type: "ping" }, options).catch((error) => error),
  )
  await assert.rejects(commands.ask("one-more", { type: "ping" }, options), { code: "LIMIT_EXCEEDED" })
  await assert.rejects(commands.ask("ref-1", { type: "ping" }, options), { code: "INVALID_REQUEST" })
  assert.equal(commands.answer({ type: "pong", client_ref: "ref-0" }), true)
  assert.equal(commands.answer({ type: "pong", client_ref: "ref-x" }), false)
  assert.equal(commands.answer({ event_type: "x", client_ref: "ref-1" }), false)
  assert.equal((await all[0]).type, "pong")
  assert.equal(commands.texts.length, 999)
  commands.fail(new UnavailableError("closed"))
  assert.equal((await all[999]).message, "closed")
  assert.equal(commands.texts.length, 0)
  assert.throws(() => frameText({ type: "x", message: "ä".repeat(40_000) }), { code: "TOO_LARGE" })
})

const packed = (value) => gzipSync(JSON.stringify(value)).toString("hex")

test("batches are their events, packed or not, or nothing at all", async () => {
  const events = [{ a: 1 }, { b: "ä" }]
  const size = Buffer.byteLength(JSON.stringify(events))
  const frame = { event_type: "event_batch", batch_size: 2 }
  const zip = { ...frame, compressed: true, original_size: size }
  assert.deepEqual(await bodiesOf({ event_type: "x" }), [{ event_type: "x" }])
  assert.deepEqual(await bodiesOf({ ...frame, compressed: false, events }), events)
  assert.deepEqual(await bodiesOf({ ...zip, events_compressed: packed(events) }), events)
  assert.deepEqual(await bodiesOf({ ...zip, events_compressed: packed(events).toUpperCase() }), events)
  const whole = packed(events)
  for (const wrong of [
    { ...frame, events: [1, 2] },
    { ...frame, events: "x" },
    { ...frame, batch_size: 3, events },
    { ...zip, events_compressed: whole.slice(0, -8) },
    { ...zip, events_compressed: "0g" },
    { ...zip, events_compressed: whole, original_size: 3 },
    {
      ...zip,
      original_size: undefined,
      events_compressed: gzipSync(Buffer.from([0x5b, 0xff, 0x5d])).toString("hex"),
    },
  ]) {
    await assert.rejects(bodiesOf(wrong), ProtocolError, JSON.stringify(wrong).slice(0, 100))
  }
  for (const wrong of ["{", "1", "null", "[]", new ArrayBuffer(2), `"${"x".repeat(9e6)}"`]) {
    assert.throws(() => parseObject(wrong), ProtocolError)
  }
})

test("a batch that grows without end is left unread", async () => {
  let read = 0
  class Endless {
    writable = new WritableStream()
    readable = new ReadableStream({
      pull(controller) {
        controller.enqueue(new Uint8Array(2 ** 20).fill(32))
        if ((read += 1) === 100) controller.close()
      },
    })
  }
  const kept = globalThis.DecompressionStream
  globalThis.DecompressionStream = Endless
  try {
    const frame = { event_type: "event_batch", compressed: true, events_compressed: "1f8b" }
    await assert.rejects(bodiesOf(frame), /far too large/)
  } finally {
    globalThis.DecompressionStream = kept
  }
  assert.ok(read < 25, `${read} MiB were read`)
})

test("a stream of events is the same, split anywhere", () => {
  const text =
    "id: e:1:x\nevent: a\ndata: {}\n\n: ping\nid: e:2:y\n\ndata: 1\r\ndata:2\r\n\r\nevent\rdata\r\rid: z\0\n\n"
  const want = [
    { event: "a", data: "{}", id: "e:1:x" },
    { event: "message", data: undefined, id: "e:2:y" },
    { event: "message", data: "1\n2", id: undefined },
    { event: "message", data: "", id: undefined },
    { event: "message", data: undefined, id: undefined },
  ]
  for (let one = 0; one <= text.length; one += 1) {
    const parser = new SseParser()
    const got = [...parser.feed(text.slice(0, one)), ...parser.feed(text.slice(one))]
    assert.deepEqual(got, want, `split at ${one}`)
  }
  assert.throws(() => [...new SseParser().feed("x".repeat(9e6))], ProtocolError)
})

test("addresses of gateways", () => {
  assert.equal(addressOf("http://h:1/"), "http://h:1")
  assert.equal(addressOf("wss://h/base//"), "https://h/base")
  assert.equal(addressOf(new URL("https://h")), "https://h")
  for (const wrong of [undefined, "", "h:1", "ftp://h", "http://", "http://a b"]) {
    assert.throws(() => addressOf(wrong), { code: "URL" }, String(wrong))
  }
})

test("errors are those of the tree, and keep what the gateway says", () => {
  const error = errorFrom({
    code: "ENGINES_LIMIT",
    status: "RESOURCE_EXHAUSTED",
    message: "m",
    advice: "a",
    retryable: true,
    retry_after_s: 3,
    details: { use: 2 },
  })
  assert.ok(error instanceof library.LimitExceededError && error instanceof CarrelError && error instanceof Error)
  assert.deepEqual(
    [error.name, error.code, error.message, error.advice, error.retryable, error.retryAfterMs, error.details],
    ["LimitExceededError", "ENGINES_LIMIT", "m", "a", true, 3000, { use: 2 }],
  )
  assert.equal(errorFrom({}).code, "CARREL")
  assert.equal(errorFrom({ code: "X", status: "FAILED_PRECONDITION" }).name, "ConflictError")
})

test("the types declare what the module offers, and nothing else", () => {
  const types = readFileSync(new URL("../../../clients/js/index.d.ts", import.meta.url), "utf8")
  const declared = [...types.matchAll(/^export (?:class|function|const) (\w+)/gm)].map((found) => found[1])
  assert.deepEqual(declared.sort(), Object.keys(library).sort())
  for (const name of ["CarrelClient", "Rest"]) {
    const body = types.slice(types.indexOf(`export class ${name} {`)).split("\n}")[0]
    const methods = [...body.matchAll(/^ {2}(?:readonly )?(\w+)[(:]/gm)].map((found) => found[1])
    const made = new library[name]({ url: "http://h", token: "t" })
    const own = Object.getOwnPropertyNames(library[name].prototype).concat(Object.keys(made))
    const open = own.filter((key) => !key.startsWith("_"))
    assert.deepEqual([...new Set(methods)].sort(), [...new Set(open)].sort(), name)
  }
})
