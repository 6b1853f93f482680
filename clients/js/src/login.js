/**
 * A user's tokens: a fixed one, or a source that is asked before each connection and before the present one ends; or
 * single-use socket tokens. Tokens are only looked into for their end; the gateway's word on it counts for more.
 */

import { CarrelError, InvalidRequestError, LostError } from "./errors.js"
import { anyOf, unlessAborted } from "./waiting.js"

/** @typedef {string | ((options: {signal: AbortSignal}) => string | Promise<string>)} TokenSource */

// A fresh token is asked for when a tenth of its life is left, but between these before its end.
const LEAST_MS = 5000
const MOST_MS = 60_000
const PART = 0.1
const SOURCE_MS = 30_000

/**
 * A JWT's `exp` in milliseconds since 1970, unverified; undefined when the token is none or says none.
 * @param {string} token
 */
export function expiryOf(token) {
  const parts = token.split(".")
  if (parts.length !== 3) return undefined
  try {
    const claims = JSON.parse(atob(parts[1].replaceAll("-", "+").replaceAll("_", "/")))
    return Number.isFinite(claims?.exp) ? claims.exp * 1000 : undefined
  } catch {
    return undefined
  }
}

export class Login {
  /**
   * @param {TokenSource | undefined} source The token, or what gives one.
   * @param {TokenSource} [socketTokens] What gives a single-use socket token for each connection; then the socket needs
   *   no `source`.
   */
  constructor(source, socketTokens) {
    if (!source && !socketTokens) {
      throw new InvalidRequestError("no login was given", {
        code: "TOKEN",
        advice: "pass `token`: the user's token, or a function that fetches one",
      })
    }
    this._source = source
    this._socketTokens = socketTokens
    this.current = ""
    /** @type {number | undefined} */
    this.expiresAt = undefined
    this.now = Date.now
  }

  /** Whether there may be another login than the present one. */
  get renewable() {
    return typeof this._source === "function" || this._socketTokens !== undefined
  }

  /**
   * The part of a `connect` frame that logs in.
   * @param {AbortSignal} signal
   * @returns {Promise<{token: string} | {socket_token: string}>}
   */
  async credentials(signal) {
    if (this._socketTokens === undefined) return { token: await this.token(signal) }
    return { socket_token: await asked(this._socketTokens, signal) }
  }

  /**
   * A token for now.
   * @param {AbortSignal} [signal]
   */
  async token(signal) {
    if (this._source === undefined) {
      throw new InvalidRequestError("this client has socket tokens only", {
        code: "TOKEN",
        advice: "pass `token`, too, for what goes over REST",
      })
    }
    const token = await asked(this._source, signal)
    if (token !== this.current) {
      this.current = token
      this.expiresAt = expiryOf(token)
    }
    return token
  }

  /**
   * A token that was had before, unless it is about to end.
   * @param {AbortSignal} [signal]
   */
  async present(signal) {
    const fresh = this.current && (this.expiresAt === undefined || this.expiresAt - this.now() > LEAST_MS)
    return fresh ? this.current : this.token(signal)
  }

  /** Milliseconds until a fresh token is to be asked for; undefined when there is none to have, or no end is known. */
  get refreshInMs() {
    if (typeof this._source !== "function" || this._socketTokens || this.expiresAt === undefined) return undefined
    const left = this.expiresAt - this.now()
    const before = Math.min(MOST_MS, Math.max(LEAST_MS, left * PART))
    return Math.max(left - before, left / 2, 0)
  }
}

/**
 * @param {TokenSource} source
 * @param {AbortSignal} [signal]
 */
async function asked(source, signal) {
  if (typeof source === "string") return source
  const limit = anyOf([signal], SOURCE_MS)
  try {
    const token = await unlessAborted(Promise.resolve(source({ signal: limit.signal })), limit.signal)
    if (typeof token !== "string" || !token) {
      throw new InvalidRequestError(`the token's source gave ${token === "" ? "an empty text" : typeof token}`, {
        code: "TOKEN",
        advice: "it is to return the token as a string, or a promise of it",
      })
    }
    return token
  } catch (error) {
    if (signal?.aborted || error instanceof CarrelError) throw error
    throw new LostError(`no token could be had: ${error instanceof Error ? error.message : error}`)
  } finally {
    limit.done()
  }
}
