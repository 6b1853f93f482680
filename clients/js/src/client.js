/**
 * A user's connection to a gateway: runs, and events that survive a lost connection, each once and in order.
 *
 * It reconnects by itself with its position (full jitter, a bounded number of times in a row), drops what it has given
 * already, and repeats unanswered commands, which are idempotent by their client_ref. It holds at most a window of
 * events that the application has not taken: it acknowledges what was worked on (taken, and the next asked for), and a
 * gateway that counts sends no more meanwhile; with one that does not, the connection is given up when the window is
 * full, and made again from the position. Nothing is ever dropped.
 *
 * What is wrong on the wire is never passed over: it ends the connection, and the log decides when the client comes
 * back: what is missing comes, or a `Reset` or `Gap` says that it does not. Three times in a row is a `ProtocolError`.
 */

import { Backoff } from "./backoff.js"
import { Commands, newId } from "./commands.js"
import { CarrelError, passLost, ProtocolError, unreachableError, UnavailableError } from "./errors.js"
import { follow } from "./following.js"
import { addressOf } from "./http.js"
import { Inbox } from "./inbox.js"
import { handOn } from "./listening.js"
import { Link } from "./link.js"
import { Login } from "./login.js"
import { Notice, Reset, RunStatus } from "./notices.js"
import { formatPosition, parsePosition } from "./positions.js"
import { Reader } from "./reading.js"
import { Rest } from "./rest.js"
import { acceptedFrom, executeFields } from "./requests.js"
import { webSocketClass } from "./socket.js"
import { Latch, unlessAborted } from "./waiting.js"

/** @typedef {import("../index.d.ts").ConnectionState} ConnectionState */

const STEADY_AFTER_MS = 5000
const BROKEN_IN_A_ROW = 3
const MOST_SIZE = 16 * 1024 * 1024

export class CarrelClient {
  /** @param {import("../index.d.ts").ClientOptions} options */
  constructor(options) {
    const {
      token,
      socketToken,
      userId = "",
      threadId = "",
      resume,
      batch = true,
      compress = true,
      window = 1000,
    } = options
    this._url = addressOf(options.url)
    this._login = new Login(token, socketToken)
    this._backoff = Backoff.of(/** @type {any} */ (options.backoff))
    this._patient = options.patient ?? false
    this._onReset = options.onReset
    this._onState = options.onState
    this._given = options.WebSocket
    /** What goes over REST, with the same login. */
    this.rest = new Rest({ url: this._url, login: this._login, fetch: options.fetch, timeoutMs: options.timeoutMs })
    this._reader = new Reader(resume === undefined ? undefined : parsePosition(resume), {
      filtered: Boolean(threadId),
      repeat: options.repeat,
    })
    this._inbox = new Inbox(window || 1000, MOST_SIZE, this._reader.position)
    this._commands = new Commands(
      (text) => this._send(text),
      this._backoff,
      () => this._whyWaiting(),
    )
    this._options = {
      url: `${this._url.replace(/^http/, "ws")}/ws${userId ? `/${encodeURIComponent(userId)}` : ""}`,
      WebSocket: /** @type {any} */ (undefined),
      threadId,
      batch,
      compress,
      acknowledge: window > 0,
      plain: false,
    }
    /** @type {ConnectionState} */
    this.state = { phase: "connecting", reason: "", retryMs: 0, failures: 0 }
    this.reconnects = 0
    /** @type {Link | undefined} */
    this._link = undefined
    this._life = new AbortController()
    this._wake = new Latch()
    /** @type {Promise<void> | undefined} */
    this._ready = undefined
    this._connectedOnce = false
    /** @type {Error | undefined} */
    this._failure = undefined
    /** @type {Map<string, RunStatus>} */
    this._statuses = new Map()
  }

  /** The place after what the application has taken last; give it as `resume` to go on from there. */
  get position() {
    return this._inbox.taken
  }

  /** The gateway's name for the present connection; empty when there is none. */
  get connectionId() {
    return this._link?.open ? this._link.connectionId : ""
  }

  /** How the connection does, for whoever shows it. */
  get health() {
    const link = this._link?.open ? this._link : undefined
    return {
      ...this.state,
      lastHeardMs: link?.lastHeardAt === undefined ? undefined : Math.max(0, performance.now() - link.lastHeardAt),
      heartbeatMs: link?.heartbeatMs || undefined,
      behind: this._reader.behind,
      held: this._inbox.length,
      reconnects: this.reconnects,
    }
  }

  /**
   * Connect; returns once the gateway has said where the stream begins. Asked again it is the same connection.
   * @param {{signal?: AbortSignal}} [options] The signal ends the client, not the waiting alone.
   * @returns {Promise<this>}
   * @throws {CarrelError} It was refused, or cannot be reached; later losses are mended, and told by the iterators.
   */
  async connect({ signal } = {}) {
    signal?.throwIfAborted()
    if (this._failure) throw this._failure
    signal?.addEventListener("abort", () => this.close(), { once: true, signal: this._life.signal })
    this._ready ??= new Promise((resolve, reject) => {
      this._told = { resolve, reject }
      void this._live()
    })
    await unlessAborted(this._ready, signal)
    return this
  }

  /** End the connection. What has come may still be taken; then iterators end. May be called at any time and again. */
  close() {
    this._end(new UnavailableError("the client was closed"), true)
    this._life.abort(new DOMException("the client was closed", "AbortError"))
  }

  // What a user asks for.

  /**
   * Ask for a run; returns once it is admitted. A lost connection meanwhile neither loses nor doubles it.
   * @param {string} message
   * @param {import("../index.d.ts").ExecuteOptions} [options]
   * @returns {Promise<import("../index.d.ts").Accepted>}
   * @throws {CarrelError} It was refused, or not answered in time.
   */
  async execute(message, options = {}) {
    const ref = options.clientRef || newId("ref")
    const frame = { type: "agent_execute", ...executeFields(message, options) }
    const answer = await this._commands.ask(ref, frame, {
      timeoutMs: options.timeoutMs ?? 30_000,
      signal: options.signal,
    })
    return acceptedFrom(answer, ref)
  }

  /**
   * Ask for a run's end; the run's status then.
   * @param {string} runId
   * @param {{reason?: string, timeoutMs?: number, signal?: AbortSignal}} [options]
   * @returns {Promise<string>}
   */
  async cancel(runId, { reason, timeoutMs = 10_000, signal } = {}) {
    const frame = { type: "agent_cancel", run_id: runId, ...(reason ? { reason } : {}) }
    return String((await this._commands.ask(newId("ref"), frame, { timeoutMs, signal })).status ?? "")
  }

  /**
   * Answer a run's question; the run's status then. The same answer may be given twice.
   * @param {string} runId
   * @param {string} inputId
   * @param {unknown} value Any JSON, null too.
   * @param {{timeoutMs?: number, signal?: AbortSignal}} [options]
   * @returns {Promise<string>}
   * @throws {CarrelError} NOT_WAITING: it does not wait for this; INVALID_INPUT: it does not fit the question's schema.
   */
  async provideInput(runId, inputId, value, { timeoutMs = 10_000, signal } = {}) {
    const frame = { type: "input_provide", run_id: runId, input_id: inputId, value: value ?? null }
    return String((await this._commands.ask(newId("ref"), frame, { timeoutMs, signal })).status ?? "")
  }

  /**
   * Approve a tool's call, or refuse it: the answer to a question that has `tool_name`.
   * @param {string} runId
   * @param {string} inputId
   * @param {boolean} approved
   * @param {{reason?: string, timeoutMs?: number, signal?: AbortSignal}} [options]
   */
  approve(runId, inputId, approved, { reason, ...options } = {}) {
    return this.provideInput(runId, inputId, reason ? { approved, reason } : approved, options)
  }

  /**
   * Milliseconds until the gateway has answered.
   * @param {{timeoutMs?: number, signal?: AbortSignal}} [options]
   */
  async ping({ timeoutMs = 10_000, signal } = {}) {
    const began = performance.now()
    await this._commands.ask(newId("ref"), { type: "ping" }, { timeoutMs, signal })
    return performance.now() - began
  }

  // What a user reads: in one loop at a time.

  /**
   * Events as they come, until the client is closed.
   * @param {{signal?: AbortSignal}} [options]
   * @returns {AsyncGenerator<any>}
   */
  async *events(options) {
    for await (const item of this.items(options)) if (!(item instanceof Notice)) yield item
  }

  /**
   * Events, and notices about them: `Reset`, `Gap`, `RunStatus`, `Bye`, and what else answers no command.
   * @param {{signal?: AbortSignal}} [options]
   * @returns {AsyncGenerator<any>}
   */
  async *items({ signal } = {}) {
    for (let item = await this._next({ signal }); item !== undefined; item = await this._next({ signal })) yield item
  }

  /**
   * The events of one run, or of several, until each has ended; those of other runs pass by.
   * A reset may have taken a run's last event with it: then `runStatus` knows how it ended.
   * @param {string | string[]} runIds
   * @param {{signal?: AbortSignal, knownEnded?: string[]}} [options]
   * @returns {AsyncGenerator<any>}
   */
  async *runEvents(runIds, options) {
    for await (const item of this.runItems(runIds, options)) if (!(item instanceof Notice)) yield item
  }

  /**
   * As `runEvents`, with what the stream says about itself.
   * @param {string | string[]} runIds
   * @param {{signal?: AbortSignal, knownEnded?: string[]}} [options]
   * @returns {AsyncGenerator<any>}
   */
  runItems(runIds, { signal, knownEnded } = {}) {
    const steady = () => this.state.phase === "connected" || this.state.phase === "closed"
    const look = (/** @type {string} */ runId) => this._look(runId, signal)
    const take = (/** @type {number | undefined} */ ms) => this._next({ ms, signal })
    return follow(typeof runIds === "string" ? [runIds] : runIds, take, look, { knownEnded, steady })
  }

  /**
   * Have everything handed to callbacks, one after the other, each awaited before the next: that is the back-pressure.
   * @param {import("../index.d.ts").Handlers} handlers
   * @returns {() => void} Ends it; what has come and was not handed on is kept for the next reader.
   */
  listen(handlers) {
    return handOn((signal) => this.items({ signal }), handlers)
  }

  /**
   * How a run stood after the last reset, if there was one and the gateway said so.
   * @param {string} runId
   */
  runStatus(runId) {
    return this._statuses.get(runId)
  }

  /** Try now, if the client waits for its next attempt; else see whether the line holds: for a page that is looked at again. */
  wake() {
    this._wake.set()
    this._link?.probe()
  }

  /** @param {{ms?: number, signal?: AbortSignal}} options */
  async _next(options) {
    const item = await this._inbox.take(options)
    if (item instanceof Reset) {
      this._statuses.clear()
      await this._onReset?.(item)
    } else if (item instanceof RunStatus) {
      this._statuses.set(item.runId, item)
    }
    return item
  }

  /**
   * @param {string} runId
   * @param {AbortSignal} [signal]
   */
  async _look(runId, signal) {
    const status = new RunStatus("run_state", { type: "run_state", ...(await this.rest.run(runId, { signal })) })
    this._statuses.set(runId, status)
    return status
  }

  // The connections' life.

  /** @param {string} frame */
  _send(frame) {
    if (this._link?.open) this._link.send(frame)
    else this._inbox.nudge()
  }

  _whyWaiting() {
    if (this._inbox.full()) return `${this._inbox.length} events have come that the application does not take`
    if (this._ready === undefined) return "connect() was not called"
    return this.state.phase === "connected" ? "" : this.state.reason
  }

  /**
   * @param {ConnectionState["phase"]} phase
   * @param {string} [reason]
   * @param {number} [retryMs]
   * @param {number} [failures]
   */
  _turn(phase, reason = "", retryMs = 0, failures = 0) {
    this.state = { phase, reason, retryMs, failures }
    try {
      this._onState?.(this.state)
    } catch (error) {
      // A fault of the application's, which it is to see; the connection goes on.
      queueMicrotask(() => {
        throw error
      })
    }
  }

  async _live() {
    const wake = () => this.wake()
    for (const change of ["online", "offline"]) globalThis.addEventListener?.(change, wake)
    try {
      this._options.WebSocket = await webSocketClass(/** @type {any} */ (this._given))
      await this._connections(this._life.signal)
    } catch (error) {
      this._end(error instanceof Error ? error : new CarrelError(String(error)))
    } finally {
      for (const change of ["online", "offline"]) globalThis.removeEventListener?.(change, wake)
    }
  }

  /** @param {AbortSignal} signal */
  async _connections(signal) {
    let [failures, broken, problem] = [0, 0, ""]
    for (;;) {
      await this._inbox.halfEmpty(() => this._commands.texts.length > 0, signal)
      this._turn("connecting", problem, 0, failures)
      const began = performance.now()
      const seen = this._reader.position
      this._link = new Link(this._options, this._login, this._reader, this._inbox, this._commands, () =>
        this._onConnected(),
      )
      const lost = await this._link.run(signal).catch(passLost)
      problem = lost.problem
      const moved = formatPosition(this._reader.position) !== formatPosition(seen)
      const steady = moved || performance.now() - began >= STEADY_AFTER_MS
      failures = steady && this._connectedOnce ? 1 : failures + 1
      broken = lost.broken ? (moved ? 1 : broken + 1) : 0
      if (broken >= BROKEN_IN_A_ROW) {
        throw new ProtocolError(lost.problem, { advice: "coming back changes nothing; tell the gateway's operator" })
      }
      await this._pause(lost, failures, signal)
    }
  }

  /**
   * @param {import("./errors.js").LostError} lost
   * @param {number} failures
   * @param {AbortSignal} signal
   */
  async _pause(lost, failures, signal) {
    if (lost.atOnce) return
    const delay = this._backoff.delayMs(failures, lost.retryMs)
    if (delay === undefined || !(this._connectedOnce || this._patient)) {
      throw unreachableError(this._url, lost.problem, failures)
    }
    const full = this._inbox.full() ? `${this._inbox.length} events wait for the application; ` : ""
    this._wake.clear()
    this._turn("waiting", full + lost.problem, delay, failures)
    await this._wake.wait({ ms: delay, signal })
  }

  _onConnected() {
    if (this._connectedOnce) this.reconnects += 1
    this._connectedOnce = true
    this._turn("connected")
    this._told?.resolve(undefined)
  }

  /**
   * @param {Error} error
   * @param {boolean} [wished]
   */
  _end(error, wished = false) {
    if (this._failure) return
    this._failure = error
    this._commands.fail(error)
    this._inbox.end(wished ? undefined : error)
    this._told?.reject(error)
    this._turn("closed", wished ? "" : error.message)
  }
}
