/** AG-UI's streams that come back by themselves: how long they wait, how much they read, and where runs are ended. */

import assert from "node:assert/strict"
import { test } from "node:test"

import { resumingFetch } from "../../../clients/js/ag-ui/fetch.js"
import { cancelAddress, textOf } from "../../../clients/js/ag-ui/requests.js"

const SILENCE_MS = 54_321
const HEADERS = { "content-type": "text/event-stream; charset=utf-8" }
const END = 'id: 2:run-1:e:2:evt-2\ndata: {"type":"RUN_FINISHED"}\n\n'

const record = (event, head = "") => `${head}data: ${JSON.stringify(event)}\n\n`
const stream = (...texts) => new Response(new Blob(texts).stream(), { status: 200, headers: HEADERS })
const leaving = (retry_ms) => record({ type: "RUN_ERROR", metadata: { carrel: { reconnect: true, retry_ms } } }, "event: bye\n")

/** The text of a stream that is answered so, one request after the other; the waits in between, which take no time. */
async function read(...answers) {
  const waits = []
  const kept = globalThis.setTimeout
  globalThis.setTimeout = (call, ms, ...rest) => {
    if (ms === SILENCE_MS) return kept(call, ms, ...rest)
    waits.push(ms)
    return kept(call, 0, ...rest)
  }
  const asked = []
  const base = async (url, { headers }) => {
    asked.push(new Headers(headers).get("Last-Event-ID"))
    return answers.shift()
  }
  try {
    const response = await resumingFetch(base, { firstMs: 100, longestMs: 100, silenceMs: SILENCE_MS })("http://h", {})
    return { text: await response.text(), waits, asked }
  } finally {
    globalThis.setTimeout = kept
  }
}

test("a gateway may ask to wait for an hour at most, in numbers", async () => {
  const wanted = [
    [1000, 1000],
    [1e12, 3_600_000],
    [-5, 0],
    ["7000", 0],
    [{ a: 1 }, 0],
    [undefined, 0],
  ]
  for (const [asks, least] of wanted) {
    const { text, waits } = await read(stream(leaving(asks)), stream(END))
    assert.equal(text, END)
    assert.ok(waits[0] >= least + 50 && waits[0] <= least + 100, `${asks}: ${waits}`)
  }
})

test("so may one that is busy, by Retry-After", async () => {
  for (const [asks, least] of [
    ["7", 7000],
    ["99999999999", 3_600_000],
    ["-1", 0],
    ["soon", 0],
    ["Wed, 21 Oct 2026 07:28:00 GMT", 0],
    [undefined, 0],
  ]) {
    const busy = new Response("busy", { status: 429, headers: asks === undefined ? {} : { "Retry-After": asks } })
    const { text, waits, asked } = await read(stream(": ping\n\n"), busy, stream(END))
    assert.match(text, /RUN_FINISHED/)
    assert.equal(asked.length, 3)
    assert.ok(waits[1] >= least + 50 && waits[1] <= least + 100, `${asks}: ${waits}`)
  }
})

test("a refusal ends it, and little of what it says is read", async () => {
  const large = new Response("x".repeat(2 ** 20), { status: 404 })
  await assert.rejects(read(stream(": ping\n\n"), large), ({ status, payload }) => {
    assert.equal(status, 404)
    assert.equal(payload.length, 64 * 1024 + 1)
    return true
  })
})

test("records are whole, wherever the connection splits or cuts them", async () => {
  const first = record({ type: "RUN_STARTED", text: "ä\n" }, "id: 1:run-1:e:1:evt-1\n")
  const bytes = Buffer.from(first + END)
  const split = (at, cut) => {
    const pieces = [bytes.subarray(0, at), bytes.subarray(at, cut)]
    const body = new ReadableStream({
      pull: (controller) => (pieces.length ? controller.enqueue(pieces.shift()) : controller.close()),
    })
    return new Response(body, { status: 200, headers: HEADERS })
  }
  for (let at = 0; at <= bytes.length; at += 1) {
    assert.equal((await read(split(at, bytes.length))).text, first + END, `split at ${at}`)
  }
  const cut = await read(split(3, bytes.length - 1), stream(END))
  assert.deepEqual([cut.text, cut.asked], [first + END, [null, "1:run-1:e:1:evt-1"]])
})

test("a record without end is left, and one in small pieces costs what it holds", async () => {
  const piece = new Uint8Array(256).fill(120)
  let left = 0
  const dust = (size, end) => {
    let sent = 0
    const body = new ReadableStream({
      pull(controller) {
        if (sent === 0) controller.enqueue(Buffer.from(": "))
        if (sent < size) controller.enqueue(piece)
        else if (end) (controller.enqueue(Buffer.from(`\n\n${END}`)), controller.close())
        sent += piece.length
      },
      cancel: () => void (left += 1),
    })
    return new Response(body, { status: 200, headers: HEADERS })
  }
  const began = performance.now()
  assert.ok((await read(dust(6 * 2 ** 20, true))).text.endsWith(END))
  assert.ok(performance.now() - began < 8000, `${performance.now() - began} ms`)
  assert.equal((await read(dust(Infinity, false), stream(END))).text, END)
  assert.equal(left, 1)
})

test("the address that ends a run is the gateway's, whatever the run is called", () => {
  assert.equal(cancelAddress("https://h/ag-ui/data,report", "run-1"), "https://h/api/runs/run-1/cancel")
  assert.equal(cancelAddress("https://h/base/ag-ui", "run-1"), "https://h/base/api/runs/run-1/cancel")
  assert.equal(cancelAddress("/ag-ui/a", "run-1", "https://page/x"), "https://page/api/runs/run-1/cancel")
  assert.equal(cancelAddress("https://h/ag-ui/a", "../x?y#z"), "https://h/api/runs/..%2Fx%3Fy%23z/cancel")
  assert.equal(cancelAddress("https://h/ag-ui/a", "$&$1"), "https://h/api/runs/%24%26%241/cancel")
})

test("of an answer's text the beginning is read", async () => {
  assert.equal(await textOf(new Response("ä")), "ä")
  assert.equal(await textOf(new Response(null)), "")
  let read = 0
  const body = new ReadableStream({ pull: (c) => void ((read += 1), c.enqueue(new Uint8Array(2 ** 16).fill(97))) })
  assert.equal((await textOf(new Response(body))).length, 64 * 1024 + 1)
  assert.ok(read < 6)
})
