/** Requests to a gateway's REST addresses: the login, one try more with a fresh token, errors of the tree, limits. */

import { MOST_ERROR, MOST_JSON, textOf } from "./bodies.js"
import {
  CarrelError,
  DeadlineError,
  errorFrom,
  InvalidRequestError,
  isObject,
  ProtocolError,
  UnavailableError,
} from "./errors.js"
import { anyOf } from "./waiting.js"

/** @typedef {Record<string, any>} Json */

const TIMEOUT_MS = 30_000
const AWAY = new Set([502, 503, 504])

/**
 * A gateway's address without its last slash: as given, or the page's own origin.
 * @param {string | URL | undefined} url
 * @returns {string}
 */
export function addressOf(url) {
  const given = String(url ?? "") || globalThis.location?.origin || ""
  const address = given.replace(/^ws(s?):/i, "http$1:").replace(/\/+$/, "")
  if (!/^https?:\/\/[^/]/i.test(address) || !URL.canParse(address)) {
    throw new InvalidRequestError(`${given || "an empty text"} is no address of a gateway`, {
      code: "URL",
      advice: "pass `url`: https://host or http://host:port",
    })
  }
  return address
}

export class Http {
  /**
   * @param {string | URL | undefined} url
   * @param {import("./login.js").Login} login
   * @param {typeof fetch} [given] Used in place of the platform's.
   * @param {number} [timeoutMs]
   */
  constructor(url, login, given, timeoutMs = TIMEOUT_MS) {
    this.url = addressOf(url)
    this.timeoutMs = timeoutMs
    this._login = login
    // Called without an owner: browsers' own takes no other than the window.
    this._fetch = given ?? ((/** @type {any} */ path, /** @type {any} */ options) => globalThis.fetch(path, options))
  }

  /**
   * @param {string} method
   * @param {string} path
   * @param {{body?: Json, headers?: Record<string, string>, signal?: AbortSignal, timeoutMs?: number}} request
   * @returns {Promise<Json>}
   */
  async json(method, path, request) {
    const text = await this.ask(method, path, request, (response) => textOf(response, MOST_JSON))
    let answer
    try {
      answer = JSON.parse(text)
    } catch {
      throw new ProtocolError(`${this.url} answered something that is not JSON`)
    }
    if (!isObject(answer)) throw new ProtocolError(`${this.url} answered JSON of another kind`)
    return answer
  }

  /**
   * Ask, once more with a fresh token where the present one has ended.
   * @template T
   * @param {string} method
   * @param {string} path
   * @param {{body?: Json, headers?: Record<string, string>, signal?: AbortSignal, timeoutMs?: number}} request
   * @param {(response: Response) => Promise<T>} read
   * @returns {Promise<T>}
   */
  async ask(method, path, request, read) {
    const { signal, timeoutMs = this.timeoutMs } = request
    const limit = anyOf(
      [signal],
      timeoutMs,
      () => new DeadlineError(`no answer to ${method} ${path} in ${timeoutMs} ms`),
    )
    try {
      return await read(await this.respond(method, path, request, limit.signal))
    } catch (error) {
      if (limit.signal.aborted) throw limit.signal.reason
      throw error instanceof CarrelError ? error : this.away(error)
    } finally {
      limit.done()
    }
  }

  /**
   * @param {string} method
   * @param {string} path
   * @param {{body?: Json, headers?: Record<string, string>}} request
   * @param {AbortSignal} signal
   * @returns {Promise<Response>}
   */
  async respond(method, path, { body, headers = {} }, signal) {
    const once = async (/** @type {string} */ token) => {
      /** @type {Record<string, string>} */
      const content = body === undefined ? {} : { "Content-Type": "application/json" }
      const response = await this._fetch(this.url + path, {
        method,
        headers: { Authorization: `Bearer ${token}`, ...content, ...headers },
        body: body === undefined ? undefined : JSON.stringify(body),
        signal,
        cache: "no-store",
        credentials: "omit",
      })
      if (!response.ok) throw await errorOf(response)
      return response
    }
    const token = await this._login.present(signal)
    try {
      return await once(token)
    } catch (error) {
      if (!(error instanceof CarrelError) || error.code !== "TOKEN_EXPIRED" || !this._login.renewable) throw error
      const fresh = await this._login.token(signal)
      if (fresh === token) throw error
      return once(fresh)
    }
  }

  /** @param {unknown} error */
  away(error) {
    const said = error instanceof Error ? error.message : String(error)
    return new UnavailableError(`the gateway at ${this.url} cannot be reached: ${said}`, {
      advice: "is it running, is the address right, and is this page's origin one that it allows?",
      cause: error,
    })
  }
}

/** @param {Response} response */
async function errorOf(response) {
  try {
    const { error } = JSON.parse(await textOf(response, MOST_ERROR))
    if (isObject(error)) return errorFrom(error)
  } catch {
    // A proxy before the gateway says something else, while there is none.
  }
  const Kind = AWAY.has(response.status) ? UnavailableError : CarrelError
  return new Kind(`HTTP status ${response.status}`, { advice: "is this the address of a gateway?" })
}
