/**
 * The gateway's REST addresses: JSON in, JSON out, errors of the tree, artifacts, and runs' events as they happen.
 * Methods for what applications do; `get` and `post` for all else that docs/protocol.md lists. Bodies keep its names.
 */

import { Backoff } from "./backoff.js"
import { bytesOf, MOST_JSON, textOf } from "./bodies.js"
import { CarrelError, DamagedError, InvalidRequestError, LostError, ProtocolError } from "./errors.js"
import { Http } from "./http.js"
import { Login } from "./login.js"
import { hasEnded } from "./notices.js"
import { parsePosition } from "./positions.js"
import { Reader } from "./reading.js"
import { executeFields } from "./requests.js"
import { lastEventId, readStream } from "./sse.js"

/** @typedef {Record<string, any>} Json */
/** @typedef {{signal?: AbortSignal}} Options */

// The longest that a gateway of any settings should let a request wait for its run.
const WAIT_MS = 3_600_000
// Gateways keep 8 MiB, unless they are set otherwise.
const MOST_ARTIFACT = 64 * 1024 * 1024

export class Rest {
  /** @param {import("../index.d.ts").RestOptions & {login?: Login}} options */
  constructor({ url, token, login, fetch, timeoutMs }) {
    this._http = new Http(url, login ?? new Login(token), fetch, timeoutMs)
  }

  /**
   * @param {string} path With its query.
   * @param {Options} [options]
   * @returns {Promise<Json>}
   * @throws {CarrelError} What the gateway answered, or that it cannot be reached.
   */
  get(path, { signal } = {}) {
    return this._http.json("GET", path, { signal })
  }

  /**
   * @param {string} path
   * @param {Json} [body]
   * @param {Options} [options]
   * @returns {Promise<Json>}
   * @throws {CarrelError} What the gateway answered, or that it cannot be reached.
   */
  post(path, body, { signal } = {}) {
    return this._http.json("POST", path, { body, signal })
  }

  // Runs.

  /**
   * Ask for a run, and wait for its end; the run as REST shows it then, when it waits for a person, or when the time is
   * up.
   * @param {string} message
   * @param {import("../index.d.ts").RestExecuteOptions} [options] `waitMs`: 0 for not waiting at all; undefined for as
   *   long as the gateway lets a request wait.
   * @returns {Promise<Json>}
   */
  execute(message, { waitMs, clientRef, signal, ...options } = {}) {
    /** @type {Json} */
    const body = executeFields(message, options)
    if (clientRef) body.client_ref = clientRef
    /** @type {Record<string, string>} */
    const headers = {}
    if (waitMs !== undefined) headers.Prefer = waitMs > 0 ? `wait=${Math.ceil(waitMs / 1000)}` : "respond-async"
    return this._http.json("POST", "/api/agents/execute", {
      body,
      headers,
      signal,
      timeoutMs: this._http.timeoutMs + (waitMs ?? WAIT_MS),
    })
  }

  /**
   * A run as REST shows it.
   * @param {string} runId
   * @param {Options} [options]
   */
  run(runId, options) {
    return this.get(runPath(runId), options)
  }

  /**
   * A page of the user's runs, newest first: `{runs, next_page_token}`.
   * @param {{threadId?: string, status?: string[], pageSize?: number, pageToken?: string} & Options} [options]
   */
  runs({ threadId, status, pageSize, pageToken, signal } = {}) {
    const query = { thread_id: threadId, status: status?.join(","), page_size: pageSize, page_token: pageToken }
    return this.get(`/api/runs${queryOf(query)}`, { signal })
  }

  /**
   * Ask for a run's end; the run then.
   * @param {string} runId
   * @param {{reason?: string} & Options} [options]
   */
  cancel(runId, { reason, signal } = {}) {
    return this.post(`${runPath(runId)}/cancel`, reason ? { reason } : {}, { signal })
  }

  /**
   * Answer a run's question; the run then. The same answer may be given twice.
   * @param {string} runId
   * @param {string} inputId
   * @param {unknown} value
   * @param {Options} [options]
   */
  provideInput(runId, inputId, value, options) {
    return this.post(`${runPath(runId)}/input`, { input_id: inputId, value: value ?? null }, options)
  }

  /**
   * References to a run's artifacts.
   * @param {string} runId
   * @param {Options} [options]
   * @returns {Promise<Json[]>}
   */
  async artifacts(runId, options) {
    const { artifacts } = await this.get(`${runPath(runId)}/artifacts`, options)
    if (!Array.isArray(artifacts)) throw new ProtocolError("the gateway answered no list of artifacts")
    return artifacts
  }

  /**
   * An artifact's bytes, compared with what its reference says (the hash where the page is served securely).
   * @param {string} runId
   * @param {Json} artifact One of `artifacts`.
   * @param {{mostBytes?: number} & Options} [options] `mostBytes`: the largest that is fetched, 64 MiB.
   * @returns {Promise<Blob>} With the artifact's media type.
   * @throws {InvalidRequestError} It is larger.
   * @throws {DamagedError} What arrived is not what the reference says.
   */
  async artifact(runId, artifact, { mostBytes = MOST_ARTIFACT, signal } = {}) {
    if (!(artifact.size <= mostBytes)) {
      throw new InvalidRequestError(`the artifact ${artifact.name} has ${artifact.size} bytes, more than ${mostBytes}`, {
        advice: "pass `mostBytes` if there is room for it",
      })
    }
    const path = `${runPath(runId)}/artifacts/${encodeURIComponent(artifact.name)}`
    const damaged = new DamagedError(`the artifact ${artifact.name} arrived damaged`)
    const data = await this._http.ask("GET", path, { signal }, async (response) => {
      try {
        return await bytesOf(response, artifact.size)
      } catch (error) {
        throw error instanceof ProtocolError ? damaged : error
      }
    })
    if (data.length !== artifact.size || !(await hasHash(data, artifact.sha256))) throw damaged
    return new Blob([data], { type: artifact.media_type })
  }

  /**
   * One run's events as they happen, from its first, or after `resume`, to its last; notices about them in between.
   * Lost connections are made again, and nothing is given twice. The caller's pace is the stream's.
   * Ends without `run_completed` only when the log has lost it: `run` then says how the run ended.
   * @param {string} runId
   * @param {import("../index.d.ts").StreamOptions} [options]
   * @returns {AsyncGenerator<any>}
   */
  runEvents(runId, { resume, backoff, signal } = {}) {
    const over = async () => hasEnded(String((await this.run(runId, { signal })).status))
    const reader = new Reader(resume === undefined ? undefined : parsePosition(resume), {
      filtered: true,
      explained: false,
    })
    return this._stream(`${runPath(runId)}/events`, reader, over, true, backoff, signal)
  }

  /**
   * All of the user's events, or a thread's, from now on or after `resume`, without end.
   * @param {import("../index.d.ts").StreamOptions & {threadId?: string}} [options]
   * @returns {AsyncGenerator<any>}
   */
  events({ threadId, resume, backoff, signal } = {}) {
    const reader = new Reader(resume === undefined ? undefined : parsePosition(resume), { filtered: Boolean(threadId) })
    return this._stream(
      `/api/events${queryOf({ thread_id: threadId })}`,
      reader,
      async () => false,
      false,
      backoff,
      signal,
    )
  }

  // Threads, agents, logins.

  /**
   * A page of the user's threads, latest activity first: `{threads, next_page_token}`.
   * @param {{pageSize?: number, pageToken?: string} & Options} [options]
   */
  threads({ pageSize, pageToken, signal } = {}) {
    return this.get(`/api/threads${queryOf({ page_size: pageSize, page_token: pageToken })}`, { signal })
  }

  /**
   * A page of a thread's messages, oldest first: `{thread, messages, next_page_token}`.
   * @param {string} threadId
   * @param {{pageSize?: number, pageToken?: string} & Options} [options]
   */
  messages(threadId, { pageSize, pageToken, signal } = {}) {
    const query = queryOf({ page_size: pageSize, page_token: pageToken })
    return this.get(`/api/threads/${encodeURIComponent(threadId)}/messages${query}`, { signal })
  }

  /**
   * Delete a thread's messages, runs and artifacts.
   * @param {string} threadId
   * @param {Options} [options]
   */
  async deleteThread(threadId, { signal } = {}) {
    await this._http.ask("DELETE", `/api/threads/${encodeURIComponent(threadId)}`, { signal }, (response) =>
      textOf(response, MOST_JSON),
    )
  }

  /**
   * The agents: `{agents, digest}`.
   * @param {Options} [options]
   */
  agents(options) {
    return this.get("/api/agents", options)
  }

  /**
   * A single-use login of one connection: `{socket_token, expires_in, user_id}`.
   * @param {Options} [options]
   */
  socketToken(options) {
    return this.post("/api/socket-tokens", undefined, options)
  }

  /**
   * End the token's login: it is worth nothing from here on. Runs go on, unless `everywhere`: all of the user's logins.
   * @param {{everywhere?: boolean} & Options} [options]
   */
  logout({ everywhere = false, signal } = {}) {
    return this.post("/api/logout", everywhere ? { everywhere } : {}, { signal })
  }

  /**
   * What this gateway has open; needs the permission operator:read.
   * @param {Options} [options]
   */
  gateway(options) {
    return this.get("/api/operator/gateway", options)
  }

  /**
   * @param {string} path
   * @param {Reader} reader
   * @param {() => Promise<boolean>} over
   * @param {boolean} ends
   * @param {import("../index.d.ts").StreamOptions["backoff"]} backoff
   * @param {AbortSignal | undefined} signal
   */
  _stream(path, reader, over, ends, backoff, signal) {
    const first = "resume" in reader.resume() ? lastEventId(reader.position) : ""
    const open = async (/** @type {string} */ asked, /** @type {AbortSignal} */ stop) => {
      const place = asked || first
      const headers = { Accept: "text/event-stream", ...(place ? { "Last-Event-ID": place } : {}) }
      try {
        const response = await this._http.respond("GET", path, { headers }, stop)
        const kind = response.headers.get("Content-Type") ?? ""
        if (response.status !== 204 && !kind.startsWith("text/event-stream")) {
          throw new ProtocolError(`${this._http.url} answered no stream of events`)
        }
        return response
      } catch (error) {
        if (stop.aborted || error instanceof CarrelError || error instanceof LostError) throw error
        throw this._http.away(error)
      }
    }
    return readStream(open, reader, Backoff.of(/** @type {any} */ (backoff)), over, ends, signal)
  }
}

/** @param {string} runId */
function runPath(runId) {
  return `/api/runs/${encodeURIComponent(runId)}`
}

/** @param {Record<string, string | number | undefined>} fields Those that say nothing are left out. */
function queryOf(fields) {
  const query = new URLSearchParams()
  for (const [name, value] of Object.entries(fields))
    if (value !== undefined && value !== "") query.set(name, String(value))
  return query.size ? `?${query}` : ""
}

/**
 * @param {Uint8Array<ArrayBuffer>} data
 * @param {unknown} sha256 In hex; nothing to compare with is right.
 */
async function hasHash(data, sha256) {
  if (typeof sha256 !== "string" || !sha256 || !globalThis.crypto?.subtle) return true
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", data))
  return Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("") === sha256
}
