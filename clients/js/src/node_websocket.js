/**
 * A WebSocket for Node (RFC 6455, clients' side, text messages, no extensions), with the part of the browsers'
 * interface that `socket.js` uses. Node 20 has none of its own without a flag. This one also says why a connection was
 * refused (`httpStatus` of the close event), and gives on everything that arrived before a connection broke.
 *
 * Loaded in Node alone; no bundle for browsers needs it.
 */

import { createHash, randomBytes } from "node:crypto"
import { request as httpRequest } from "node:http"
import { request as httpsRequest } from "node:https"

const GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
const MOST = 32 * 1024 * 1024
// A gateway sends whole messages; what stands between may cut them, but not into dust.
const MOST_PARTS = 16_384
// What may wait to be sent before pings go unanswered: a peer that asks and does not read gets no more.
const MOST_UNSENT = 1024 * 1024
const LINGER_MS = 500
// Close codes of the protocol that are never sent: they say what an end of another kind looks like.
const UNSENT_CODES = new Set([1004, 1005, 1006])
const TEXT = 1
const BINARY = 2
const CLOSE = 8
const PING = 9
const PONG = 10
const CONNECTING = 0
const OPEN = 1
const CLOSING = 2
const CLOSED = 3

export class NodeWebSocket {
  /**
   * @param {string} url
   * @param {string} protocol
   */
  constructor(url, protocol) {
    this.url = url
    this.protocol = ""
    this.readyState = CONNECTING
    /** @type {((event: {type: "open"}) => void) | null} */
    this.onopen = null
    /** @type {((event: {data: string | Uint8Array}) => void) | null} */
    this.onmessage = null
    /** @type {((event: {code: number, reason: string, httpStatus?: number, retryAfterMs?: number,
     *   problem?: string}) => void) | null} */
    this.onclose = null
    this.onerror = null
    this._code = 1006
    this._reason = ""
    // What has come and was not taken: it is put together only when that can make a frame whole.
    /** @type {Buffer[]} */
    this._chunks = []
    this._held = 0
    this._wanted = 2
    /** @type {Buffer} */
    this._bytes = Buffer.alloc(0)
    /** @type {Buffer[]} */
    this._parts = []
    this._partsSize = 0
    this._kind = 0
    this._decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true })
    /** @type {import("node:net").Socket | undefined} */
    this._socket = undefined
    const address = new URL(url.replace(/^ws/, "http"))
    const key = randomBytes(16).toString("base64")
    this._request = (address.protocol === "https:" ? httpsRequest : httpRequest)(address, {
      // A connection of its own: a shared one would keep the process alive.
      agent: false,
      headers: {
        Connection: "Upgrade",
        Upgrade: "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": key,
        "Sec-WebSocket-Protocol": protocol,
      },
    })
    this._request.on("error", (error) => this._end({ problem: error.message }))
    this._request.on("response", (response) => this._refused(response))
    this._request.on("upgrade", (response, socket, head) => {
      this._upgraded(response, /** @type {import("node:net").Socket} */ (socket), head, key, protocol)
    })
    this._request.end()
  }

  /** @param {string} text */
  send(text) {
    if (this.readyState === OPEN) this._write(TEXT, Buffer.from(text))
  }

  /** @param {number} [code] */
  close(code = 1000) {
    if (this.readyState === CONNECTING) this.terminate()
    if (this.readyState !== OPEN) return
    this.readyState = CLOSING
    this._writeClose(code)
  }

  /** End it at once. */
  terminate() {
    this._request.destroy()
    this._socket?.destroy()
    this._end({})
  }

  /** @param {import("node:http").IncomingMessage} response */
  _refused(response) {
    const wait = response.headers["retry-after"] ?? ""
    const seconds = /^\d{1,6}$/.test(wait) ? Math.min(Number(wait), 3600) : 0
    this._end({ httpStatus: response.statusCode, retryAfterMs: seconds * 1000 })
    response.destroy()
  }

  /**
   * @param {import("node:http").IncomingMessage} response
   * @param {import("node:net").Socket} socket
   * @param {Buffer} head
   * @param {string} key
   * @param {string} protocol
   */
  _upgraded(response, socket, head, key, protocol) {
    this._socket = socket
    socket.on("error", () => undefined)
    const accept = createHash("sha1")
      .update(key + GUID)
      .digest("base64")
    const { headers } = response
    const upgraded = (headers.upgrade ?? "").toLowerCase() === "websocket" && headers["sec-websocket-accept"] === accept
    // What was not asked for must not be given either.
    const agreed = headers["sec-websocket-protocol"] === protocol && !headers["sec-websocket-extensions"]
    if (this.readyState !== CONNECTING || !upgraded || !agreed) {
      socket.destroy()
      const problem = upgraded ? `what answered does not speak ${protocol}` : "what answered does not speak WebSocket"
      this._end({ problem })
      return
    }
    this.protocol = protocol
    socket.setTimeout(0)
    socket.setNoDelay(true)
    this.readyState = OPEN
    socket.on("data", (data) => this._data(data))
    socket.on("end", () => socket.end())
    socket.on("close", () => this._end({}))
    this.onopen?.({ type: "open" })
    if (head.length) this._data(head)
  }

  /** @param {Buffer} data */
  _data(data) {
    // What a peer says after the end is nobody's, and must not gather.
    if (this.readyState === CLOSED) return
    this._chunks.push(data)
    this._held += data.length
    if (this._held < this._wanted) return
    this._bytes = this._chunks.length === 1 ? data : Buffer.concat(this._chunks)
    this._wanted = 2
    try {
      while (this.readyState < CLOSED && this._frame());
    } catch (error) {
      this._fail(error instanceof Fault ? error.code : 1007)
    }
    this._chunks = this._bytes.length ? [this._bytes] : []
    this._held = this._bytes.length
  }

  /** Take one frame off what has come; whether there was a whole one. */
  _frame() {
    const bytes = this._bytes
    if (bytes.length < 2) return false
    const kind = bytes[0] & 15
    const last = bytes[0] >= 128
    const control = kind >= CLOSE
    let length = bytes[1] & 127
    let at = 2
    if ((bytes[0] & 0x70) !== 0 || bytes[1] >= 128 || (control && (!last || length > 125))) throw new Fault(1002)
    if (length === 126) {
      if (bytes.length < 4) return false
      length = bytes.readUInt16BE(2)
      at = 4
    } else if (length === 127) {
      if (bytes.length < 10) return false
      length = Number(bytes.readBigUInt64BE(2))
      at = 10
    }
    if (length > MOST) throw new Fault(1009)
    if (bytes.length < at + length) {
      this._wanted = at + length
      return false
    }
    const payload = bytes.subarray(at, at + length)
    this._bytes = bytes.subarray(at + length)
    if (control) this._control(kind, payload)
    else this._part(kind, last, payload)
    return true
  }

  /**
   * @param {number} kind
   * @param {boolean} last
   * @param {Buffer} payload
   */
  _part(kind, last, payload) {
    if (kind > BINARY || (kind === 0) !== this._kind > 0) throw new Fault(1002)
    this._kind ||= kind
    // A piece of a message is copied: it would hold the whole of what it came in, however little of that it is.
    this._parts.push(last && !this._parts.length ? payload : Buffer.from(payload))
    this._partsSize += payload.length
    if (this._partsSize > MOST || this._parts.length > MOST_PARTS) throw new Fault(1009)
    if (!last) return
    const whole = this._parts.length === 1 ? payload : Buffer.concat(this._parts)
    const data = this._kind === TEXT ? this._decoder.decode(whole) : new Uint8Array(whole)
    this._parts = []
    this._partsSize = 0
    this._kind = 0
    if (this.readyState === OPEN) this.onmessage?.({ data })
  }

  /**
   * @param {number} kind
   * @param {Buffer} payload
   */
  _control(kind, payload) {
    if (kind === PING) {
      const unsent = this._socket?.writableLength ?? 0
      if (this.readyState === OPEN && unsent < MOST_UNSENT) this._write(PONG, payload)
    } else if (kind === CLOSE) {
      if (payload.length === 1) throw new Fault(1002)
      const code = payload.length ? payload.readUInt16BE(0) : 1005
      if (payload.length && !maySend(code)) throw new Fault(1002)
      this._code = code
      this._reason = this._decoder.decode(payload.subarray(2))
      if (this.readyState === OPEN) this._writeClose(payload.length ? this._code : 1000)
      this.readyState = CLOSING
      this._leave()
      this._end({})
    } else if (kind !== PONG) {
      throw new Fault(1002)
    }
  }

  /** @param {number} code */
  _fail(code) {
    if (this.readyState === OPEN) this._writeClose(code)
    this._code = code
    this._leave()
    this._end({})
  }

  /** Say that nothing follows, and be gone soon, whether or not the peer hears it. */
  _leave() {
    const socket = this._socket
    socket?.end()
    if (socket !== undefined) setTimeout(() => socket.destroy(), LINGER_MS).unref()
  }

  /** @param {number} code */
  _writeClose(code) {
    const payload = Buffer.alloc(2)
    payload.writeUInt16BE(code)
    this._write(CLOSE, payload)
  }

  /**
   * @param {number} kind
   * @param {Buffer} payload
   */
  _write(kind, payload) {
    const size = payload.length
    const extra = size < 126 ? 0 : size < 65536 ? 2 : 8
    const frame = Buffer.alloc(6 + extra + size)
    frame[0] = 128 | kind
    frame[1] = 128 | (extra === 0 ? size : extra === 2 ? 126 : 127)
    if (extra === 2) frame.writeUInt16BE(size, 2)
    if (extra === 8) frame.writeBigUInt64BE(BigInt(size), 2)
    const mask = randomBytes(4)
    mask.copy(frame, 2 + extra)
    for (let at = 0; at < size; at += 1) frame[6 + extra + at] = payload[at] ^ mask[at & 3]
    this._socket?.write(frame)
  }

  /** @param {{httpStatus?: number, retryAfterMs?: number, problem?: string}} why */
  _end(why) {
    if (this.readyState === CLOSED) return
    this.readyState = CLOSED
    this._bytes = Buffer.alloc(0)
    this._chunks = []
    this._held = 0
    this._parts = []
    this.onclose?.({ code: this._code, reason: this._reason, ...why })
  }
}

/**
 * Whether a peer may send this close code (RFC 6455 §7.4).
 * @param {number} code
 */
function maySend(code) {
  return (code >= 1000 && code <= 1014 && !UNSENT_CODES.has(code)) || (code >= 3000 && code <= 4999)
}

/** Something is wrong on the wire. */
class Fault extends Error {
  /** @param {number} code The close code that says so. */
  constructor(code) {
    super(`close code ${code}`)
    this.code = code
  }
}
