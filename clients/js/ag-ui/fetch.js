/**
 * A `fetch` whose streams of server-sent events do not end before the run does: when a connection is cut, the same
 * request is sent again with `Last-Event-ID`, and what comes then is given on as if nothing had been.
 *
 * Only whole records are given on, so what was cut in half comes again, and once. Without a dependency.
 */

import { textOf } from "./requests.js"

const TERMINAL = new Set(["RUN_FINISHED", "RUN_ERROR"])
const MAX_RECORD = 8 * 1024 * 1024
// Whoever asks to wait for longer is wrong or hostile, and timers take no more than 2^31.
const LONGEST_WAIT_MS = 3_600_000
const DEFAULTS = { attempts: 30, firstMs: 250, longestMs: 10_000, silenceMs: 75_000 }

/**
 * @typedef {(url: string, init: RequestInit) => Promise<Response>} Fetch
 * @typedef {import("./index.js").ResumeOptions & {onRun?: (runId: string) => void}} Options
 */

/**
 * @param {Fetch} base What sends requests.
 * @param {Options} [options]
 * @returns {Fetch}
 */
export function resumingFetch(base, options = {}) {
  return async (url, init) => {
    const reading = new Reading(base, url, init, { ...DEFAULTS, ...options })
    const response = await reading.begin()
    if (!response.ok || !isStream(response)) return response
    const body = new ReadableStream(
      {
        pull: (controller) => reading.pull(controller),
        cancel: () => reading.close(),
      },
      // Nothing is read ahead of what is asked for.
      { highWaterMark: 0 },
    )
    return new Response(body, { status: response.status, headers: response.headers })
  }
}

/** @param {Response} response */
function isStream(response) {
  return response.headers.get("content-type")?.startsWith("text/event-stream") ?? false
}

/** What one request reads, over all its connections. */
class Reading {
  /**
   * @param {Fetch} base
   * @param {string} url
   * @param {RequestInit} init
   * @param {Options & typeof DEFAULTS} options
   */
  constructor(base, url, init, options) {
    this._base = base
    this._url = url
    this._init = init
    this._options = options
    this._lastId = ""
    this._failures = 0
    this._waitMs = 0
    this._ended = false
    /** @type {Records | undefined} */
    this._records = undefined
  }

  /** The first answer. A gateway that is not reached is asked again: the request names its run, which begins once. */
  async begin() {
    for (;;) {
      try {
        return this._take(await this._send())
      } catch (error) {
        this._stopped()
        await this._pause(error)
      }
    }
  }

  /** @param {ReadableStreamDefaultController<Uint8Array>} controller */
  async pull(controller) {
    while (!this._ended) {
      const record = await this._next()
      if (record === undefined) continue
      controller.enqueue(new TextEncoder().encode(record))
      if (this._ended) break
      return
    }
    await this.close()
    controller.close()
  }

  async close() {
    this._ended = true
    await this._records?.close()
  }

  /** The next record that is to be given on; undefined when the connection was cut, and is another now. */
  async _next() {
    let lost
    try {
      const record = await this._records?.next(this._options.silenceMs)
      if (record !== undefined) return this._seen(record)
      lost = new Error("the stream ended before the run")
    } catch (error) {
      lost = error
    }
    this._stopped()
    await this._records?.close()
    await this._pause(lost)
    try {
      const response = this._take(await this._send())
      if (response.ok && isStream(response)) return undefined
      await this._refused(response)
    } catch (error) {
      if (error instanceof RefusedError) throw error
      this._stopped()
      this._records = undefined
    }
    return undefined
  }

  /** @param {Response} response */
  async _refused(response) {
    this._records = undefined
    const text = await textOf(response)
    if (response.status !== 429 && response.status < 500) throw new RefusedError(response.status, text)
    this._waitMs = bounded(1000 * Number(response.headers.get("retry-after")))
  }

  /**
   * Note what a record tells of where the stream is; undefined for one that only says that the connection ends.
   * @param {string} record
   */
  _seen(record) {
    let id = "", data = ""
    for (const line of record.split("\n")) {
      if (line.startsWith("id:")) id = line.slice(3).trim()
      else if (line.startsWith("data:")) data += line.slice(5)
    }
    if (data) {
      const event = JSON.parse(data)
      const own = event.metadata?.carrel
      if (event.type === "RUN_ERROR" && own?.reconnect) {
        this._waitMs = bounded(own.retry_ms)
        return undefined
      }
      if (event.type === "RUN_STARTED" && own?.run_id) this._options.onRun?.(own.run_id)
      this._ended = TERMINAL.has(event.type)
      this._failures = 0
    }
    if (id) this._lastId = id
    return record
  }

  async _send() {
    const headers = new Headers(this._init.headers)
    const token = await this._options.token?.()
    if (token) headers.set("Authorization", `Bearer ${token}`)
    if (this._lastId) headers.set("Last-Event-ID", this._lastId)
    return this._base(this._url, { ...this._init, headers })
  }

  /** @param {Response} response */
  _take(response) {
    const stream = response.ok && isStream(response) && response.body
    this._records = stream ? new Records(stream) : undefined
    return response
  }

  /** What the application ended stays ended. */
  _stopped() {
    this._init.signal?.throwIfAborted()
  }

  /** @param {unknown} lost */
  async _pause(lost) {
    this._failures += 1
    const { attempts, firstMs, longestMs } = this._options
    if (this._failures > attempts) throw lost
    const most = Math.min(longestMs, firstMs * 2 ** (this._failures - 1))
    const waitMs = this._waitMs + most * (0.5 + Math.random() / 2)
    this._waitMs = 0
    await sleep(waitMs, this._init.signal ?? undefined)
  }
}

/** The gateway does not let the reader go on. */
class RefusedError extends Error {
  /**
   * @param {number} status
   * @param {string} text
   */
  constructor(status, text) {
    super(`HTTP ${status}: ${text}`)
    this.name = "RefusedError"
    this.status = status
    this.payload = text
  }
}

/** Whole records of one connection, each with the empty line that ends it. */
class Records {
  /** @param {ReadableStream<Uint8Array>} stream */
  constructor(stream) {
    this._reader = stream.getReader()
    this._decoder = new TextDecoder("utf-8")
    this._rest = ""
    // What has come since: put together only when that can make a record whole.
    /** @type {string[]} */
    this._pieces = []
    this._size = 0
    this._last = ""
  }

  /**
   * The next one; undefined at the end of the connection. What follows the last empty line is half a record: left out.
   * @param {number} silenceMs
   * @returns {Promise<string | undefined>}
   */
  async next(silenceMs) {
    for (;;) {
      const end = this._pieces.length ? -1 : this._rest.indexOf("\n\n")
      if (end >= 0) {
        const record = this._rest.slice(0, end + 2)
        this._rest = this._rest.slice(end + 2)
        this._size = this._rest.length
        return record
      }
      if (this._size > MAX_RECORD) throw new Error("the gateway sent a record that does not end")
      const { done, value } = await within(this._reader.read(), silenceMs)
      if (done) return undefined
      this._add(this._decoder.decode(value, { stream: true }))
    }
  }

  /** @param {string} text */
  _add(text) {
    if (!text) return
    this._pieces.push(text)
    this._size += text.length
    if (text.includes("\n\n") || (this._last === "\n" && text[0] === "\n")) {
      this._rest += this._pieces.join("")
      this._pieces = []
    }
    this._last = text[text.length - 1]
  }

  async close() {
    await this._reader.cancel().catch(() => undefined)
  }
}

/**
 * A time to wait, as it was told.
 * @param {unknown} ms
 */
function bounded(ms) {
  return typeof ms === "number" && ms > 0 ? Math.min(ms, LONGEST_WAIT_MS) : 0
}

/**
 * @template T
 * @param {Promise<T>} promise
 * @param {number} ms
 * @returns {Promise<T>}
 */
async function within(promise, ms) {
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer
  const limit = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error("nothing came for longer than the gateway's heartbeat")), ms)
  })
  try {
    return await Promise.race([promise, /** @type {Promise<never>} */ (limit)])
  } finally {
    clearTimeout(timer)
  }
}

/**
 * @param {number} ms
 * @param {AbortSignal} [signal]
 */
function sleep(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(done, ms)
    const stop = () => {
      clearTimeout(timer)
      reject(signal?.reason)
    }
    function done() {
      signal?.removeEventListener("abort", stop)
      resolve(undefined)
    }
    signal?.addEventListener("abort", stop, { once: true })
  })
}
