/**
 * One WebSocket of whatever class is at hand, read message by message. Knows nothing of the protocol but its name.
 */

import { CarrelError, InvalidRequestError, LostError, PermissionDeniedError, UnauthenticatedError } from "./errors.js"
import { Latch } from "./waiting.js"

const SUBPROTOCOL = "carrel.v1"
const RETRY_HTTP = new Set([429, 500, 502, 503, 504])
const OPEN = 1
// What may wait to be read, in UTF-16 units: far beyond a window.
const MOST = 16 * 1024 * 1024
const OVERHEAD = 64
const CLOSE_MS = 500

/** @typedef {{data: unknown} | {code: number}} Message What came; or how it ended. */

/**
 * The class to connect with: the one given; in Node one of our own; else the platform's.
 * @param {typeof WebSocket | undefined} given
 * @returns {Promise<typeof WebSocket>}
 */
export async function webSocketClass(given) {
  if (given !== undefined) return given
  if (typeof globalThis.process?.versions?.node === "string") {
    // Node's own, where it has one, does not tell why a connection failed, nor all that came before it did.
    return /** @type {any} */ ((await import("./node_websocket.js")).NodeWebSocket)
  }
  if (typeof globalThis.WebSocket === "function") return globalThis.WebSocket
  throw new InvalidRequestError("there is no WebSocket here", {
    code: "NO_WEBSOCKET",
    advice: "pass `WebSocket`: a class with the interface that browsers have",
  })
}

export class Socket {
  /** @param {WebSocket} ws */
  constructor(ws) {
    this._ws = ws
    /** @type {Message[]} */
    this._messages = []
    this._size = 0
    this._here = new Latch()
    this._opened = new Latch()
    this._over = false
    /** @type {Error | undefined} */
    this._refusal = undefined
    /** When something came last, on the clock of `performance.now`. */
    this.lastHeardAt = performance.now()
    ws.onopen = () => this._opened.set()
    ws.onmessage = (event) => this._came(event.data)
    ws.onclose = (event) => this._ended(event)
    // Some tell of a connection that never was by an error alone, browsers by an error and then a close.
    ws.onerror = () => this._opened.isSet || setTimeout(() => this._ended({ code: 1006 }))
  }

  /**
   * Connect.
   * @param {typeof WebSocket} WebSocketClass
   * @param {string} url
   * @param {number} ms How long it may take.
   * @param {AbortSignal} signal
   * @returns {Promise<Socket>}
   * @throws {LostError} It cannot be reached, now.
   * @throws {CarrelError} It refuses.
   */
  static async open(WebSocketClass, url, ms, signal) {
    signal.throwIfAborted()
    let ws
    try {
      ws = new WebSocketClass(url, SUBPROTOCOL)
    } catch (error) {
      throw new InvalidRequestError(`${url} is no address`, {
        advice: "write https://host or http://host:port",
        cause: error,
      })
    }
    const socket = new Socket(ws)
    try {
      if (!(await socket._opened.wait({ ms, signal }))) throw new LostError(`it did not answer within ${ms} ms`)
      if (socket._refusal !== undefined) throw socket._refusal
      return socket
    } catch (error) {
      socket.drop()
      throw error
    }
  }

  get open() {
    return !this._over && this._ws.readyState === OPEN
  }

  /**
   * Send a text, if it is open; one that fails is about to be noticed by whoever reads.
   * @param {string} text
   */
  send(text) {
    if (this.open) this._ws.send(text)
  }

  /**
   * The next message; undefined when none comes in time.
   * @param {number} ms
   * @param {AbortSignal} signal
   * @returns {Promise<Message | undefined>}
   */
  async next(ms, signal) {
    if (!this._messages.length) {
      this._here.clear()
      if (!(await this._here.wait({ ms, signal }))) return undefined
    }
    const message = /** @type {Message} */ (this._messages.shift())
    if ("data" in message) this._size -= sizeOf(message.data)
    return message
  }

  /** Close it, and be rid of it when the peer does not answer soon. Nothing is read any more. */
  drop() {
    const ws = this._ws
    this._over = true
    this._messages = []
    ws.onopen = ws.onmessage = null
    if (ws.readyState > OPEN) return
    const cut = /** @type {any} */ (ws).terminate
    const timer = cut ? setTimeout(() => cut.call(ws), CLOSE_MS) : undefined
    ws.onclose = () => clearTimeout(timer)
    ws.close(1000)
  }

  /** @param {unknown} data */
  _came(data) {
    this.lastHeardAt = performance.now()
    const size = sizeOf(data)
    if (this._over) return
    this._size += size
    this._messages.push({ data })
    this._here.set()
    if (this._size > MOST) {
      // It comes faster than it can be read; what is left out here comes again after the position.
      this._over = true
      this._messages.push({ code: 1006 })
      this._ws.close(1000)
    }
  }

  /** @param {{code: number, httpStatus?: number, retryAfterMs?: number, problem?: string}} event */
  _ended(event) {
    if (this._over) return
    this._over = true
    if (!this._opened.isSet) this._refusal = refused(event)
    this._messages.push({ code: event.code })
    this._here.set()
    this._opened.set()
  }
}

/** @param {unknown} data */
function sizeOf(data) {
  // Messages without content take room, too.
  if (typeof data === "string") return data.length + OVERHEAD
  const { byteLength, size } = /** @type {{byteLength?: number, size?: number}} */ (data ?? {})
  return (byteLength ?? size ?? 0) + OVERHEAD
}

/** @param {{httpStatus?: number, retryAfterMs?: number, problem?: string}} event */
function refused({ httpStatus, retryAfterMs, problem }) {
  // Browsers do not tell pages why.
  if (httpStatus === undefined) return new LostError(problem || "no connection could be made")
  if (RETRY_HTTP.has(httpStatus)) return new LostError(`HTTP status ${httpStatus}`, { retryMs: retryAfterMs })
  const message = `the gateway refused the connection with HTTP status ${httpStatus}`
  if (httpStatus === 401) return new UnauthenticatedError(message, { code: "TOKEN" })
  const advice = "is the address that of a gateway, and the token that of its user?"
  return new (httpStatus === 403 ? PermissionDeniedError : CarrelError)(message, { advice })
}
