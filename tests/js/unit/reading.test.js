/** Positions, the bookkeeping of a reader, and what a stream says about itself. */

import assert from "node:assert/strict"
import { test } from "node:test"

import { AstrayError, ProtocolError } from "../../../clients/js/src/errors.js"
import { formatPosition, Gap, Notice, parsePosition, Reset } from "../../../clients/js/src/index.js"
import { noticeOf } from "../../../clients/js/src/notices.js"
import { Reader } from "../../../clients/js/src/reading.js"
import { event } from "../stage.js"

const connected = (offset, more = {}) => ({
  type: "connected",
  epoch: "e",
  offset,
  event_id: offset ? `evt-${offset}` : "",
  ...more,
})
const items = (steps) => [...steps].map(({ item }) => item).filter((item) => item !== undefined)
const offsets = (steps) => items(steps).map((item) => (item instanceof Notice ? item.kind : item.offset))

function reader(resume = parsePosition("oldest"), options = {}) {
  const made = new Reader(resume, options)
  made.begin()
  made.connected(connected(0, { recovered: true }))
  return made
}

test("a position is text and object, whole or not at all", () => {
  const place = { epoch: "9f0c", offset: 41, event_id: "evt-1:2" }
  assert.deepEqual(parsePosition("9f0c:41:evt-1:2"), place)
  assert.equal(formatPosition(parsePosition(place)), "9f0c:41:evt-1:2")
  assert.equal(formatPosition(parsePosition("oldest")), ":0:")
  assert.deepEqual(parsePosition(":0:"), parsePosition("oldest"))
  for (const wrong of [
    "",
    "x",
    "e:-1:x",
    "e:1.5:x",
    ":4:evt-4",
    "e:99999999999999999:x",
    "e:4",
    null,
    7,
    { offset: "1" },
    {},
  ]) {
    assert.throws(() => parsePosition(wrong), { code: "INVALID_POSITION" }, String(wrong))
  }
})

test("every cut of a stream resumes to the whole of it", () => {
  const log = Array.from({ length: 12 }, (_, at) => event(at + 1))
  for (let first = 0; first <= 12; first += 1) {
    for (let second = first; second <= 12; second += 1) {
      const one = reader()
      const got = []
      for (const upTo of [first, second, 12]) {
        one.begin()
        const { offset } = one.resume().resume
        one.connected(connected(offset, { recovered: true }))
        got.push(...offsets(one.events(structuredClone(log.slice(offset, upTo)))))
      }
      assert.deepEqual(
        got,
        log.map((item) => item.offset),
      )
    }
  }
})

test("events that come twice are given once, also after a reset", () => {
  const one = reader()
  assert.deepEqual(offsets(one.events([event(1), event(2), event(2), event(1)])), [1, 2])
  const reset = items(one.control({ type: "reset", reason: "trimmed", epoch: "f", offset: 0 }))
  assert.ok(reset[0] instanceof Reset)
  assert.deepEqual(offsets(one.events([event(1), event(2), event(3)])), [3])
  assert.equal(one.duplicates, 4)
  const repeating = reader(undefined, { repeat: true })
  assert.deepEqual(offsets(repeating.events([event(1)])), [1])
  items(repeating.control({ type: "reset", reason: "trimmed", epoch: "f", offset: 0 }))
  assert.deepEqual(offsets(repeating.events([event(1)])), [1])
})

test("a place that was only told cannot be compared: all is read again, and what lies before it is dropped", () => {
  const one = new Reader(undefined)
  one.begin()
  one.connected({ type: "connected", epoch: "e", offset: 5 })
  one.begin()
  assert.deepEqual(one.resume(), { resume: { offset: 0 } })
  one.connected(connected(0, { recovered: true }))
  assert.deepEqual(offsets(one.events([1, 2, 3, 4, 5].map((offset) => event(offset)))), [])
  assert.equal(one.position.offset, 5)
  assert.deepEqual(offsets(one.events([event(6)])), [6])
})

test("what was given is remembered within bounds", () => {
  const one = reader()
  for (let offset = 1; offset <= 10_050; offset += 1) [...one.events([event(offset)])]
  assert.equal(one._seen.size, 10_000)
})

test("a jump of offsets is asked for once more, then told", () => {
  const one = reader()
  offsets(one.events([event(1)]))
  assert.throws(() => offsets(one.events([event(3)])), AstrayError)
  one.begin()
  one.connected(connected(1, { recovered: true }))
  const [gap, next] = items(one.events([event(3)]))
  assert.ok(gap instanceof Gap)
  assert.deepEqual([gap.first, gap.last, gap.announced, next.offset], [2, 2, false, 3])
})

test("through and gap explain what is left out", () => {
  const one = reader()
  assert.deepEqual(offsets(one.control({ type: "through", epoch: "e", offset: 4, event_id: "evt-4" })), [])
  assert.deepEqual(one.position, { epoch: "e", offset: 4, event_id: "evt-4" })
  assert.deepEqual(offsets(one.control({ type: "gap", from: 5, to: 7 })), ["gap"])
  assert.deepEqual(offsets(one.events([event(8)])), [8])
  assert.throws(() => offsets(one.control({ type: "through", epoch: "f", offset: 9, event_id: "x" })), AstrayError)
})

test("a heartbeat that tells another place sends the client back", () => {
  const one = reader()
  offsets(one.events([event(1), event(2)]))
  offsets(one.control({ type: "ping", epoch: "e", offset: 2, top: 9 }))
  assert.equal(one.behind, 7)
  for (const [epoch, offset] of [
    ["e", 1],
    ["e", 3],
    ["f", 2],
  ]) {
    assert.throws(() => offsets(one.control({ type: "ping", epoch, offset })), AstrayError)
  }
  const part = reader(undefined, { filtered: true })
  offsets(part.control({ type: "ping", epoch: "e", offset: 7, top: 7 }))
  assert.equal(part.behind, 0)
})

test("a lost position keeps until its reset has come", () => {
  const one = new Reader(parsePosition("old:9:evt-9"))
  one.begin()
  assert.deepEqual(one.connected(connected(0, { recovered: false })), [])
  assert.equal(formatPosition(one.position), "old:9:evt-9")
  assert.throws(() => offsets(one.events([event(1)])), ProtocolError)
  one.begin()
  one.connected(connected(0, { recovered: false }))
  assert.deepEqual(offsets(one.control({ type: "reset", reason: "epoch_changed", epoch: "e", offset: 0 })), ["reset"])
  assert.equal(formatPosition(one.position), "e:0:")
})

test("events without their fields, of others, or at a place that is taken, are not given", () => {
  for (const wrong of [
    { offset: 0 },
    { offset: 1.5 },
    { offset: "1" },
    { offset: 2 ** 53 },
    { event_id: 7 },
    { user_id: undefined },
    { data: [] },
  ]) {
    assert.throws(() => offsets(reader().events([event(1, wrong)])), ProtocolError, JSON.stringify(wrong))
  }
  const one = reader()
  offsets(one.events([event(1)]))
  assert.throws(() => offsets(one.events([event(2, { user_id: "bob" })])), /another user/)
  assert.throws(() => offsets(one.events([event(1, { event_id: "evt-x" })])), /another event/)
})

test("notices read what they need and nothing else", () => {
  const bye = noticeOf({ type: "bye", code: 4000, reason: "drain", retry_ms: 10 ** 12 })
  assert.deepEqual([bye.code, bye.reason, bye.reconnect, bye.retryMs], [4000, "drain", true, 3_600_000])
  assert.equal(noticeOf({ type: "bye", retry_ms: "7" }).retryMs, 0)
  const state = noticeOf({ type: "run_state", run_id: "r", status: "TIMED_OUT" })
  assert.deepEqual([state.runId, state.ended], ["r", true])
  assert.equal(noticeOf({ type: "run_state", run_id: 7, status: "RUNNING" }).ended, false)
  assert.equal(noticeOf({ type: "later" }).kind, "later")
})
