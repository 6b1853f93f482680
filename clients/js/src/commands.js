/**
 * Frames that wait for their answers: sent again on every connection until they are answered, told apart by client_ref.
 * Every command of the protocol is idempotent by its client_ref, so sending it twice does it once.
 */

import { CarrelError, DeadlineError, errorFrom, InvalidRequestError, LimitExceededError } from "./errors.js"
import { anyOf, sleep } from "./waiting.js"

/** @typedef {Record<string, any>} Frame */

const MOST = 1000
const MAX_FRAME_BYTES = 64 * 1024
const encoder = new TextEncoder()

/**
 * A new name for a request or the like.
 * @param {string} prefix
 */
export function newId(prefix) {
  const bytes = crypto.getRandomValues(new Uint8Array(12))
  return `${prefix}-${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")}`
}

/**
 * A frame's text.
 * @param {Frame} frame
 * @throws {InvalidRequestError} It is too large: the gateway would end the connection for good.
 */
export function frameText(frame) {
  const text = JSON.stringify(frame)
  const size = encoder.encode(text).length
  if (size > MAX_FRAME_BYTES) {
    throw new InvalidRequestError(`the frame ${frame.type} has ${size} bytes, and ${MAX_FRAME_BYTES} are the most`, {
      code: "TOO_LARGE",
      advice: "send it over REST: client.rest.execute, client.rest.provideInput",
    })
  }
  return text
}

export class Commands {
  /**
   * @param {(text: string) => void} send Sends a text on the present connection, if there is one; what it cannot send
   *   is sent on the next.
   * @param {import("./backoff.js").Backoff} backoff How often and how fast to ask again what a neighbour of the
   *   gateway's kept it from.
   * @param {() => string} whyWaiting What keeps answers from coming, as far as the client knows.
   */
  constructor(send, backoff, whyWaiting) {
    this._send = send
    this._backoff = backoff
    this._whyWaiting = whyWaiting
    /** @type {Map<string, {text: string, resolve: (frame: Frame) => void, reject: (error: Error) => void}>} */
    this._waiting = new Map()
    /** @type {Error | undefined} */
    this._failure = undefined
  }

  /** The frames without an answer, for a new connection. */
  get texts() {
    return Array.from(this._waiting.values(), ({ text }) => text)
  }

  /**
   * Whether the frame answers a command.
   * @param {Frame} frame
   */
  answer(frame) {
    const command = frame.event_type === undefined ? this._waiting.get(frame.client_ref) : undefined
    if (command === undefined) return false
    if (frame.type === "error") command.reject(errorFrom(frame))
    else command.resolve(frame)
    return true
  }

  /**
   * No answer comes any more.
   * @param {Error} error
   */
  fail(error) {
    this._failure = error
    for (const command of this._waiting.values()) command.reject(error)
  }

  /**
   * The answer to a frame.
   * @param {string} ref
   * @param {Frame} frame
   * @param {{timeoutMs: number, signal?: AbortSignal}} options
   * @returns {Promise<Frame>}
   * @throws {CarrelError} It was refused, or not answered in time.
   */
  async ask(ref, frame, { timeoutMs, signal }) {
    const text = frameText({ ...frame, client_ref: ref })
    const late = Symbol("late")
    const limit = anyOf([signal], timeoutMs, () => late)
    /** @type {CarrelError | undefined} */
    let last
    try {
      for (let failures = 1; ; failures += 1) {
        try {
          return await this._once(ref, text, limit.signal)
        } catch (error) {
          // The gateway's own neighbours may be away for a moment; the same ref makes asking again safe.
          if (!(error instanceof CarrelError) || error.status !== "UNAVAILABLE" || this._failure) throw error
          last = error
          const delay = this._backoff.delayMs(failures, error.retryAfterMs)
          if (delay === undefined) throw error
          await sleep(delay, limit.signal)
        }
      }
    } catch (error) {
      if (error !== late) throw error
      // If it was answered, that says more than how long was waited.
      throw last ?? this._unanswered(frame.type, timeoutMs)
    } finally {
      limit.done()
    }
  }

  /**
   * @param {string} kind
   * @param {number} timeoutMs
   */
  _unanswered(kind, timeoutMs) {
    const why = this._whyWaiting()
    return new DeadlineError(`no answer to ${kind} came within ${timeoutMs} ms${why ? `: ${why}` : ""}`)
  }

  /**
   * @param {string} ref
   * @param {string} text
   * @param {AbortSignal} signal
   * @returns {Promise<Frame>}
   */
  async _once(ref, text, signal) {
    if (this._failure) throw this._failure
    signal.throwIfAborted()
    if (this._waiting.has(ref)) {
      throw new InvalidRequestError(`the request ${ref} waits for its answer already`, {
        advice: "give each request a client_ref of its own",
      })
    }
    if (this._waiting.size >= MOST) {
      throw new LimitExceededError(`${MOST} requests wait for their answers already`, {
        advice: "await some of them before sending more",
      })
    }
    let aborted = () => {}
    try {
      return await new Promise((resolve, reject) => {
        aborted = () => reject(signal.reason)
        signal.addEventListener("abort", aborted)
        this._waiting.set(ref, { text, resolve, reject })
        this._send(text)
      })
    } finally {
      signal.removeEventListener("abort", aborted)
      this._waiting.delete(ref)
    }
  }
}
