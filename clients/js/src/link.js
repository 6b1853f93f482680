/**
 * One connection of a client: its login, what it reads, what it acknowledges, its fresh tokens, its end.
 * Connecting again is `client.js`'s. `run` always ends by throwing: `LostError` when coming back can help.
 */

import { bodiesOf, CAN_INFLATE, parseObject } from "./decoding.js"
import { AstrayError, LostError, ProtocolError } from "./errors.js"
import { Reset } from "./notices.js"
import { Socket } from "./socket.js"
import { Latch, sleep } from "./waiting.js"

/** @typedef {Record<string, any>} Frame */

const NEVER_RECONNECT = 4500
const TOO_BIG = 1009
const CONNECT_MS = 15_000
const SILENCES = 2.5
// How long an acknowledgement may wait for more to go with it.
const ACK_MS = 50
const AGAIN_MS = 1000
// What the answer to a question may take before the line counts as dead.
const PROBE_MS = 5000
const FRAME_CODES = new Set(["FRAME", "UNKNOWN_FRAME"])

/**
 * @typedef {object} LinkOptions
 * @property {string} url Of the socket.
 * @property {typeof WebSocket} WebSocket
 * @property {string} threadId The one thread that is wanted, or empty.
 * @property {boolean} batch
 * @property {boolean} compress
 * @property {boolean} acknowledge
 * @property {boolean} plain Set when the gateway knows neither windows nor compression.
 */

export class Link {
  /**
   * @param {LinkOptions} options What to ask for; `plain` is set here.
   * @param {import("./login.js").Login} login
   * @param {import("./reading.js").Reader} reader
   * @param {import("./inbox.js").Inbox} inbox
   * @param {import("./commands.js").Commands} commands
   * @param {() => void} onConnected Called once the gateway has said where the stream begins.
   */
  constructor(options, login, reader, inbox, commands, onConnected) {
    this._options = options
    this._login = login
    this._reader = reader
    this._inbox = inbox
    this._commands = commands
    this._onConnected = onConnected
    /** @type {Socket | undefined} */
    this._socket = undefined
    this._acked = 0
    this._due = new Latch()
    this._enough = new Latch()
    this._beside = new AbortController()
    /** @type {(error: unknown) => void} */
    this._fail = () => {}
    this._probing = false
    this.connectionId = ""
    /** Events that the gateway sends at most without an acknowledgement; 0 when it does not count. */
    this.window = 0
    /** Milliseconds between heartbeats; 0 before `connected`. */
    this.heartbeatMs = 0
  }

  /** Whether the gateway has said `connected`, and the connection has not ended since. */
  get open() {
    return Boolean(this.connectionId && this._socket?.open)
  }

  /** When something came last, on the clock of `performance.now`. */
  get lastHeardAt() {
    return this._socket?.lastHeardAt
  }

  /**
   * Send a frame's text, if there is a connection.
   * @param {string} text
   */
  send(text) {
    this._socket?.send(text)
  }

  /**
   * Find out whether the gateway is still there, sooner than by its silence: after a sleep, or another network. Nothing
   * is taken for an answer but what comes.
   */
  probe() {
    if (!this.open || this._probing) return
    this._probing = true
    this._start(this._probe(this._beside.signal).finally(() => (this._probing = false)))
  }

  /** @param {AbortSignal} signal */
  async _probe(signal) {
    const before = this.lastHeardAt
    this.send(JSON.stringify({ type: "ping" }))
    await sleep(PROBE_MS, signal)
    if (this.lastHeardAt === before) throw new LostError("the gateway did not answer when it was asked")
  }

  /**
   * One connection from its beginning to its end.
   * @param {AbortSignal} signal
   * @returns {Promise<never>}
   * @throws {LostError} It ended; coming back can help.
   * @throws {import("./errors.js").CarrelError} It ended, and coming back would end the same way.
   */
  async run(signal) {
    const login = await this._login.credentials(signal)
    this._socket = await Socket.open(this._options.WebSocket, this._options.url, CONNECT_MS, signal)
    /** @type {number} */
    let code
    try {
      this._reader.begin()
      this._socket.send(JSON.stringify(this._connectFrame(login)))
      const failed = /** @type {Promise<never>} */ (new Promise((_, reject) => (this._fail = reject)))
      code = await Promise.race([this._read(this._socket, signal), failed])
    } catch (error) {
      if (error instanceof AstrayError || error instanceof ProtocolError) {
        throw new LostError(error.message, { broken: true })
      }
      throw error
    } finally {
      this._inbox.onDone = () => {}
      this._beside.abort()
      this._socket.drop()
    }
    throw this._ending(code)
  }

  /** @param {Frame} login */
  _connectFrame(login) {
    const { threadId, batch, compress, acknowledge, plain } = this._options
    /** @type {Frame} */
    const frame = { type: "connect", ...login }
    if (threadId) frame.thread_id = threadId
    if (batch) frame.batch = true
    if (!plain && batch && compress && CAN_INFLATE) frame.compress = true
    // What is here already is in nobody's window but the application's.
    if (!plain && acknowledge) frame.ack = { window: Math.max(1, this._inbox.room) }
    return { ...frame, ...this._reader.resume() }
  }

  // Reading.

  /**
   * @param {Socket} socket
   * @param {AbortSignal} signal
   * @returns {Promise<number>} The close code.
   */
  async _read(socket, signal) {
    let silence = CONNECT_MS
    for (;;) {
      const message = await socket.next(silence, signal)
      if (message === undefined) throw new LostError("nothing came from the gateway for longer than its heartbeat")
      if ("code" in message) return message.code
      const frame = parseObject(message.data)
      if (frame.type === "connected") {
        silence = this._connected(frame)
      } else if (!this.connectionId && frame.type !== "error" && frame.type !== "bye") {
        throw new ProtocolError("the gateway did not begin with `connected`")
      } else if (frame.type === "refreshed") {
        this._refreshed(frame)
      } else if (!this._commands.answer(frame)) {
        await this._take(frame, /** @type {string} */ (message.data).length)
      }
    }
  }

  /** @param {Frame} frame */
  _connected(frame) {
    const first = !("resume" in this._reader.resume())
    const notices = this._reader.connected(frame)
    if (first) this._inbox.begin(this._reader.position)
    for (const notice of notices) this._inbox.put(notice, this._reader.position)
    this._acked = this._reader.heard
    const again = Boolean(this.connectionId)
    this.connectionId = String(frame.connection_id || "?")
    const window = frame.ack_window
    this.window = Number.isSafeInteger(window) && window > 0 ? window : 0
    if (this.window) this._inbox.onDone = () => this._note()
    this.heartbeatMs = Number.isFinite(frame.heartbeat) && frame.heartbeat > 0 ? frame.heartbeat * 1000 : 30_000
    if (!again) {
      this._start(this._acknowledge(this._beside.signal))
      this._start(this._refresh(this._beside.signal))
      for (const text of this._commands.texts) this.send(text)
      this._onConnected()
    }
    return Math.max(SILENCES * this.heartbeatMs, 1000)
  }

  /**
   * @param {Frame} frame
   * @param {number} size The whole message's goes to the first of its events: what is counted is what arrived.
   */
  async _take(frame, size) {
    const reader = this._reader
    const steps = frame.event_type === undefined ? reader.control(frame) : reader.events(await bodiesOf(frame))
    let left = size
    for (const { item, position } of steps) {
      if (item instanceof Reset) this._acked = reader.heard
      this._inbox.put(item, position, left)
      left = 0
    }
    if (this.window) this._note()
    if (this._inbox.full(this.window ? 2 : 1)) {
      // Reading cannot be paused here; what is left comes after the position, once there is room.
      throw new LostError("the application takes events more slowly than they come", { atOnce: true })
    }
  }

  // Acknowledging what the application has worked on.

  /** How many offsets can be acknowledged beyond those that have been. */
  _ackable() {
    const done = this._inbox.done
    if (done.epoch !== this._reader.position.epoch) return 0
    return Math.min(done.offset, this._reader.heard) - this._acked
  }

  _note() {
    const due = this._ackable()
    if (due <= 0) return
    this._due.set()
    if (due * 4 >= this.window) this._enough.set()
  }

  /** @param {AbortSignal} signal */
  async _acknowledge(signal) {
    for (;;) {
      await this._due.wait({ signal })
      await this._enough.wait({ ms: ACK_MS, signal })
      this._due.clear()
      this._enough.clear()
      const due = this._ackable()
      if (due > 0) {
        this._acked += due
        this.send(JSON.stringify({ type: "ack", offset: this._acked }))
      }
    }
  }

  // Tokens.

  /** @param {AbortSignal} signal */
  async _refresh(signal) {
    for (let wait = this._login.refreshInMs; wait !== undefined; wait = this._login.refreshInMs) {
      await sleep(Math.max(wait, AGAIN_MS), signal)
      const before = this._login.current
      let token
      try {
        token = await this._login.token(signal)
      } catch {
        // There is time to try again; when there is none left the gateway says so, and the next connection asks.
        signal.throwIfAborted()
        continue
      }
      if (token !== before) this.send(JSON.stringify({ type: "refresh", token }))
    }
  }

  /** @param {Frame} frame */
  _refreshed(frame) {
    if (Number.isFinite(frame.expires_at)) this._login.expiresAt = frame.expires_at * 1000
  }

  // The end.

  /** @param {Promise<unknown>} work Ends with the signal of what runs beside the reading. */
  _start(work) {
    work.catch((error) => {
      if (!this._beside.signal.aborted) this._fail(error)
    })
  }

  /** @param {number} code */
  _ending(code) {
    const { bye, retryMs } = this._reader
    const forGood = code >= NEVER_RECONNECT || code === TOO_BIG
    if (!forGood && (bye === undefined || bye.reconnect)) {
      return new LostError(`the gateway closed the connection (${bye?.reason || `code ${code}`})`, { retryMs })
    }
    const error = this._reader.refusal(code)
    if (!this.connectionId && !this._options.plain && FRAME_CODES.has(error.code)) {
      // A gateway of an earlier release: it knows neither windows nor compression, and says so like this.
      this._options.plain = true
      return new LostError("the gateway does not know this `connect`", { atOnce: true })
    }
    if (error.code === "TOKEN_EXPIRED" && this._login.renewable) {
      return new LostError("the token ended before it arrived")
    }
    return error
  }
}
