/** The WebSocket for Node, against a peer that writes bytes. */

import assert from "node:assert/strict"
import { createHash } from "node:crypto"
import { once } from "node:events"
import { createServer } from "node:net"
import { test } from "node:test"

import { NodeWebSocket } from "../../../clients/js/src/node_websocket.js"

const GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

/** A peer that answers the upgrade, then does `play` with the socket; what the client said and met. */
async function met(play, answer = undefined, after = undefined) {
  const came = { messages: [], frames: [], open: false }
  const sockets = new Set()
  const server = createServer((socket) => {
    sockets.add(socket)
    socket.on("error", () => undefined)
    socket.once("data", (head) => {
      const key = /Sec-WebSocket-Key: (.*)\r\n/.exec(head.toString())[1]
      const accept = createHash("sha1")
        .update(key + GUID)
        .digest("base64")
      const lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        `Sec-WebSocket-Accept: ${accept}`,
        "Sec-WebSocket-Protocol: carrel.v1",
        "",
        "",
      ]
      socket.on("data", (data) => came.frames.push(data))
      socket.write(typeof answer === "function" ? answer(accept) : (answer ?? lines.join("\r\n")))
      play(socket)
    })
  })
  server.listen(0, "127.0.0.1")
  await once(server, "listening")
  const ws = new NodeWebSocket(`ws://127.0.0.1:${server.address().port}/ws`, "carrel.v1")
  came.ws = ws
  ws.onopen = () => (came.open = true)
  ws.onmessage = ({ data }) => {
    came.messages.push(data)
    if (data === "say") ws.send("said ä")
    if (data === "long") ws.send("x".repeat(70_000))
    if (data === "close") ws.close(1000)
  }
  came.end = await new Promise((resolve) => (ws.onclose = resolve))
  await after?.(came, [...sockets])
  for (const socket of sockets) socket.destroy()
  server.close()
  return came
}

/** A frame of a server. */
function frame(kind, payload = "", { last = true, mask = 0, rsv = 0, length = undefined } = {}) {
  const data = Buffer.from(payload)
  const size = length ?? data.length
  const head = size < 126 ? Buffer.from([0, mask | size]) : size < 65536 ? Buffer.alloc(4) : Buffer.alloc(10)
  if (head.length === 4) head.writeUInt16BE(size, 2)
  if (head.length === 10) head.writeBigUInt64BE(BigInt(size), 2)
  if (head.length > 2) head[1] = head.length === 4 ? 126 : 127
  head[0] = (last ? 128 : 0) | rsv | kind
  return Buffer.concat([head, data])
}

const close = (code, reason = "") => {
  const data = Buffer.alloc(2)
  data.writeUInt16BE(code)
  return frame(8, Buffer.concat([data, Buffer.from(reason)]))
}

/** Text of a client's frame. */
function unmasked(bytes) {
  const size = bytes[1] & 127
  const at = size < 126 ? 2 : size === 126 ? 4 : 10
  const mask = bytes.subarray(at, at + 4)
  return Buffer.from(bytes.subarray(at + 4).map((byte, index) => byte ^ mask[index & 3])).toString()
}

test("texts of all sizes, in pieces, split anywhere", async () => {
  const bytes = Buffer.concat([
    frame(1, "one"),
    frame(1, "t", { last: false }),
    frame(9, "hey"),
    frame(0, "w", { last: false }),
    frame(0, "o"),
    frame(1, "ä".repeat(100)),
    frame(1, "x".repeat(70_000)),
    frame(1, ""),
    close(4000, "drain"),
  ])
  const got = await met(async (socket) => {
    socket.setNoDelay(true)
    for (let at = 0; at < 40; at += 1) {
      socket.write(bytes.subarray(at, at + 1))
      await new Promise((resolve) => setImmediate(resolve))
    }
    socket.write(bytes.subarray(40))
  })
  assert.deepEqual(
    got.messages.map((text) => text.length),
    [3, 3, 100, 70_000, 0],
  )
  assert.deepEqual(got.messages.slice(0, 2), ["one", "two"])
  assert.deepEqual([got.open, got.end.code, got.end.reason, got.ws.protocol], [true, 4000, "drain", "carrel.v1"])
  const pong = got.frames.find((data) => data[0] === 0x8a)
  assert.equal(unmasked(pong.subarray(0, 9)), "hey")
})

test("what it sends is masked, and as long as it says", async () => {
  const sent = await met((socket) => {
    socket.write(frame(1, "say"))
    socket.once("data", () => socket.write(frame(1, "close")))
    socket.on("data", (data) => data[0] === 0x88 && socket.end(close(1000)))
  })
  assert.equal(unmasked(sent.frames[0]), "said ä")
  assert.ok(sent.frames[0][1] & 128)
  assert.equal(sent.end.code, 1000)
  const long = await met((socket) => {
    let size = 0
    socket.write(frame(1, "long"))
    socket.on("data", (data) => (size += data.length) === 70_014 && socket.end(close(4001)))
  })
  assert.equal(long.end.code, 4001)
})

test("everything that came before a break is given", async () => {
  const all = [...Array(50).keys()].map((n) => `text ${n}`)
  const got = await met((socket) =>
    socket.write(Buffer.concat(all.map((text) => frame(1, text))), () => socket.resetAndDestroy()),
  )
  assert.deepEqual(got.messages, all)
  assert.equal(got.end.code, 1006)
  const half = await met((socket) =>
    socket.end(Buffer.concat([frame(1, "whole"), frame(1, "half", { length: 100 })])),
  )
  assert.deepEqual([half.messages, half.end.code], [["whole"], 1006])
  const none = await met((socket) => socket.end(frame(8)))
  assert.equal(none.end.code, 1005)
})

test("what breaks the rules ends it", async () => {
  const wrong = {
    1002: [
      frame(1, "x", { mask: 128 }),
      frame(1, "x", { rsv: 0x40 }),
      frame(3, "x"),
      frame(11, ""),
      frame(0, "x"),
      frame(9, "x".repeat(126)),
      frame(9, "x", { last: false }),
      Buffer.concat([frame(1, "x", { last: false }), frame(1, "y")]),
      frame(8, "x"),
      ...[0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535].map((code) => close(code, "gone")),
    ],
    1007: [frame(1, Buffer.from([0xff, 0xfe]))],
    1009: [
      frame(1, "", { length: 2 ** 40 }),
      Buffer.concat([frame(1, "", { last: false }), ...Array(20_000).fill(frame(0, "", { last: false }))]),
    ],
  }
  for (const [code, all] of Object.entries(wrong)) {
    for (const bytes of all) {
      const got = await met((socket) => socket.write(bytes))
      assert.deepEqual([got.end.code, got.messages], [Number(code), []], bytes.subarray(0, 8).toString("hex"))
    }
  }
})

test("close codes that a peer may send are given as they are", async () => {
  for (const code of [1000, 1001, 1011, 1014, 3000, 4000, 4999]) {
    const got = await met((socket) => socket.write(close(code, "why")))
    assert.deepEqual([got.end.code, got.end.reason], [code, "why"])
  }
})

test("an upgrade to something else is none", async () => {
  const answers = {
    "Upgrade: h2c": /does not speak WebSocket/,
    "Upgrade: WebSocket": /does not speak carrel.v1/,
    "Upgrade: websocket\r\nSec-WebSocket-Protocol: other": /does not speak carrel.v1/,
    "Upgrade: websocket\r\nSec-WebSocket-Protocol: carrel.v1\r\nSec-WebSocket-Extensions: permessage-deflate":
      /does not speak carrel.v1/,
  }
  for (const [lines, problem] of Object.entries(answers)) {
    const got = await met(
      () => undefined,
      (accept) => `HTTP/1.1 101 Yes\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${accept}\r\n${lines}\r\n\r\n`,
    )
    assert.match(got.end.problem, problem, lines)
    assert.equal(got.open, false)
  }
})

test("a peer that goes on after its end is left, and nothing of it is kept", async () => {
  const got = await met(
    (socket) => {
      // It never ends its own side.
      socket.allowHalfOpen = true
      socket.write(close(4000))
      socket.more = setInterval(() => socket.write(frame(1, "x".repeat(1000))), 5)
    },
    undefined,
    async (came, [socket]) => {
      if (!came.ws._socket.destroyed) await once(came.ws._socket, "close")
      clearInterval(socket.more)
    },
  )
  assert.deepEqual([got.end.code, got.messages], [4000, []])
  assert.deepEqual([got.ws._chunks, got.ws._bytes.length], [[], 0])
})

test("who asks and does not read is not answered without end", async () => {
  const pings = Buffer.concat(Array(10_000).fill(frame(9, "x".repeat(125))))
  const got = await met((socket) => {
    socket.pause()
    const ask = (left) => (left ? socket.write(pings, () => ask(left - 1)) : socket.write(frame(8)))
    ask(4)
  })
  assert.equal(got.end.code, 1005)
  assert.ok(got.ws._socket.writableLength < 1.2 * 1024 * 1024, String(got.ws._socket.writableLength))
})

test("a large frame in small pieces costs what it holds", async () => {
  const size = 8 * 1024 * 1024
  const bytes = frame(1, "x".repeat(size))
  const began = performance.now()
  const got = await met((socket) => {
    socket.setNoDelay(true)
    let at = 0
    const go = () => {
      for (let n = 0; n < 64 && at < bytes.length; n += 1, at += 1024) socket.write(bytes.subarray(at, at + 1024))
      if (at < bytes.length) setImmediate(go)
      else socket.write(frame(8))
    }
    go()
  })
  assert.equal(got.messages[0].length, size)
  assert.ok(performance.now() - began < 4000)
})

test("a message in pieces holds its pieces, and nothing that came beside them", () => {
  const ws = new NodeWebSocket("ws://127.0.0.1:1/ws", "carrel.v1")
  ws.readyState = 1
  const beside = Buffer.concat(Array(500).fill(frame(10, "x".repeat(125))))
  for (let n = 0; n < 100; n += 1) ws._data(Buffer.concat([frame(n ? 0 : 1, "x", { last: false }), beside]))
  const held = [...new Set(ws._parts.map((part) => part.buffer))].reduce((sum, buffer) => sum + buffer.byteLength, 0)
  assert.equal(ws._parts.length, 100)
  assert.ok(held < 256 * 1024, String(held))
  ws.terminate()
})

test("why a connection was refused", async () => {
  const http = (status, more = "") => `HTTP/1.1 ${status}\r\n${more}Content-Length: 2\r\n\r\n{}`
  const nothing = () => undefined
  const busy = await met(nothing, http("503 Busy", "Retry-After: 7\r\n"))
  assert.deepEqual([busy.end.code, busy.end.httpStatus, busy.end.retryAfterMs, busy.open], [1006, 503, 7000, false])
  assert.equal((await met(nothing, http("401 No"))).end.httpStatus, 401)
  const other = "HTTP/1.1 101 Yes\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n"
  assert.match((await met(nothing, other)).end.problem, /does not speak WebSocket/)
  const away = new NodeWebSocket("ws://127.0.0.1:1/ws", "carrel.v1")
  const end = await new Promise((resolve) => (away.onclose = resolve))
  assert.match(end.problem, /ECONNREFUSED/)
})
