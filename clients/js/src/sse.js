/**
 * Server-Sent Events over fetch: bytes to blocks, as the HTML standard has them; a stream that comes back by itself.
 * What is given, and once, are `reading.js`'s rules, as on the socket. Nothing is read ahead of what is asked for.
 */

import { parseObject } from "./decoding.js"
import { AstrayError, CarrelError, LostError, ProtocolError, UnavailableError } from "./errors.js"
import { Notice } from "./notices.js"
import { formatPosition, parsePosition, usable } from "./positions.js"
import { anyOf, sleep } from "./waiting.js"

/** @typedef {Record<string, any>} Frame */
/** @typedef {{event: string, data: string | undefined, id: string | undefined}} Block */
/** @typedef {import("./reading.js").Reader} Reader */

const MAX_BLOCK = 8 * 1024 * 1024
const BROKEN_IN_A_ROW = 3
const FIRST_WORD_MS = 30_000
const SILENCES = 2.5

/** Takes text as it comes, split anywhere, and gives whole blocks. */
export class SseParser {
  constructor() {
    // A line's beginning, in the pieces that it came in: put together once, when its end is here.
    /** @type {string[]} */
    this._pieces = []
    this._half = 0
    this._return = false
    /** @type {string[]} */
    this._lines = []
    this._size = 0
  }

  /**
   * The blocks that this completes.
   * @param {string} text
   * @returns {Generator<Block>}
   */
  *feed(text) {
    if (!text) return
    this._pieces.push(text)
    this._half += text.length
    if (this._return || /[\r\n]/.test(text)) yield* this._cut(this._pieces.join(""))
    if (this._size + this._half > MAX_BLOCK) {
      throw new ProtocolError("the gateway sent a block of events that does not end")
    }
  }

  /**
   * @param {string} whole
   * @returns {Generator<Block>}
   */
  *_cut(whole) {
    let at = 0
    const lines = /\r\n|\n|\r(?!$)/g
    for (let end = lines.exec(whole); end !== null; end = lines.exec(whole)) {
      const line = whole.slice(at, end.index)
      at = lines.lastIndex
      if (line) {
        this._lines.push(line)
        this._size += line.length
      } else if (this._lines.length) {
        const block = blockOf(this._lines)
        this._lines = []
        this._size = 0
        yield block
      }
    }
    this._pieces = [whole.slice(at)]
    this._half = whole.length - at
    // A last \r may be half of an end.
    this._return = whole.endsWith("\r") && at < whole.length
  }
}

/** @param {string[]} lines */
function blockOf(lines) {
  /** @type {Block} */
  const block = { event: "message", data: undefined, id: undefined }
  for (const line of lines) {
    const colon = line.indexOf(":")
    const name = colon < 0 ? line : line.slice(0, colon)
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "")
    if (name === "event") block.event = value || "message"
    else if (name === "data") block.data = block.data === undefined ? value : `${block.data}\n${value}`
    else if (name === "id" && !value.includes("\0")) block.id = value
  }
  return block
}

/**
 * The position as `Last-Event-ID` takes it: one that nothing can be compared with asks for all that is kept.
 * @param {import("./positions.js").Position} place
 */
export function lastEventId(place) {
  return usable(place) ? formatPosition(place) : ":0:"
}

/**
 * A stream's events and notices, over as many connections as it takes.
 * @param {(asked: string, stop: AbortSignal) => Promise<Response>} open Opens it after a `Last-Event-ID`, empty for the
 *   beginning; throws what the gateway refuses.
 * @param {Reader} reader
 * @param {import("./backoff.js").Backoff} backoff
 * @param {() => Promise<boolean>} over Whether nothing more can come, asked when a stream ended without saying why.
 * @param {boolean} ends Whether the stream is one run's, which ends with its terminal event.
 * @param {AbortSignal} [signal]
 */
export async function* readStream(open, reader, backoff, over, ends, signal) {
  const tries = new Tries(backoff)
  let asked = ""
  for (;;) {
    const seen = formatPosition(reader.position)
    const stop = new AbortController()
    const both = anyOf([signal, stop.signal])
    let lost
    try {
      const response = await open(asked, both.signal)
      if (response.status === 204) return
      for await (const item of connection(response, reader, both.signal)) {
        yield item
        if (ends && !(item instanceof Notice) && item.event_type === "run_completed") return
      }
      if (reader.bye && !reader.bye.reconnect) throw reader.refusal(reader.bye.code)
      if (!reader.bye && (await over())) return
      lost = new LostError("the gateway ended the stream")
    } catch (error) {
      signal?.throwIfAborted()
      lost = passing(error)
    } finally {
      both.done()
      stop.abort()
    }
    await sleep(tries.delayMs(lost, formatPosition(reader.position) !== seen, reader.retryMs), signal)
    asked = "resume" in reader.resume() ? lastEventId(reader.position) : ""
  }
}

/**
 * @param {unknown} error
 * @returns {LostError} When coming back can help; otherwise it is thrown.
 */
function passing(error) {
  if (error instanceof LostError) return error
  if (error instanceof AstrayError || error instanceof ProtocolError)
    return new LostError(error.message, { broken: true })
  if (error instanceof CarrelError && !error.retryable) throw error
  if (error instanceof RangeError || error instanceof ReferenceError) throw error
  return new LostError(error instanceof Error ? error.message : String(error))
}

/** Counts what came to nothing, and says how long to wait. */
class Tries {
  /** @param {import("./backoff.js").Backoff} backoff */
  constructor(backoff) {
    this._backoff = backoff
    this._failures = 0
    this._broken = 0
  }

  /**
   * @param {LostError} lost
   * @param {boolean} moved Whether the connection brought something.
   * @param {number} retryMs
   */
  delayMs(lost, moved, retryMs) {
    this._broken = lost.broken ? (moved ? 1 : this._broken + 1) : 0
    if (this._broken >= BROKEN_IN_A_ROW) {
      throw new ProtocolError(lost.problem, { advice: "coming back changes nothing; tell the gateway's operator" })
    }
    this._failures = moved ? 1 : this._failures + 1
    const delay = this._backoff.delayMs(this._failures, retryMs)
    if (delay === undefined) {
      throw new UnavailableError(`the stream cannot be read: ${lost.problem} (tried ${this._failures} times)`)
    }
    return delay
  }
}

/**
 * What one connection brings.
 * @param {Response} response
 * @param {Reader} reader
 * @param {AbortSignal} signal
 */
async function* connection(response, reader, signal) {
  reader.begin()
  const parser = new SseParser()
  const body = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader()
  const decoder = new TextDecoder("utf-8", { fatal: true })
  let silence = FIRST_WORD_MS
  try {
    for (;;) {
      const step = await within(body.read(), silence, signal)
      if (step.done) return
      for (const block of parser.feed(decoded(decoder, step.value))) {
        const frame = frameOf(block)
        if (frame === undefined) continue
        if (frame.type === "connected") {
          silence = silenceOf(frame)
          yield* reader.connected(frame)
          continue
        }
        const steps = frame.event_type === undefined ? reader.control(frame) : reader.events([frame])
        for (const { item } of steps) if (item !== undefined) yield item
      }
    }
  } finally {
    await body.cancel().catch(() => undefined)
  }
}

/**
 * @template T
 * @param {Promise<T>} promise
 * @param {number} ms
 * @param {AbortSignal} signal
 * @returns {Promise<T>}
 */
async function within(promise, ms, signal) {
  const limit = anyOf([signal], ms, () => new LostError("nothing came for longer than its heartbeat"))
  try {
    return await Promise.race([
      promise,
      /** @type {Promise<never>} */ (
        new Promise((_, reject) => {
          if (limit.signal.aborted) reject(limit.signal.reason)
          limit.signal.addEventListener("abort", () => reject(limit.signal.reason))
        })
      ),
    ])
  } finally {
    limit.done()
  }
}

/**
 * @param {TextDecoder} decoder
 * @param {Uint8Array} bytes
 */
function decoded(decoder, bytes) {
  try {
    return decoder.decode(bytes, { stream: true })
  } catch {
    throw new ProtocolError("the gateway sent events that are not UTF-8")
  }
}

/**
 * The block as the frame that a socket would send; undefined when it says nothing.
 * @param {Block} block
 * @returns {Frame | undefined}
 */
function frameOf({ event, data, id }) {
  if (data !== undefined) {
    const body = parseObject(data)
    if (event === "bye" && body.error?.message) body.reason = body.error.message
    return body.event_type === undefined ? { ...body, type: event } : body
  }
  if (id === undefined) return undefined
  let place
  try {
    place = parsePosition(id)
  } catch {
    throw new ProtocolError("the gateway sent an id that is no position")
  }
  // A sign of life whose id is further than the last event: what lies between is others'.
  return usable(place) ? { type: "through", ...place } : undefined
}

/** @param {Frame} frame */
function silenceOf({ heartbeat }) {
  return Math.max(SILENCES * (Number.isFinite(heartbeat) && heartbeat > 0 ? heartbeat * 1000 : 30_000), 1000)
}
