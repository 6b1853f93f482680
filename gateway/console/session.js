/**
 * One signed-in user: the connection, the runs and threads that are known, what the user asks for. Two of them in one page
 * share nothing. What is drawn of it is the views' matter; how the connection lives is the client library's.
 */

import { CarrelClient, Reset, RunStatus } from "./client/index.js"
import { readPast } from "./past.js"
import { Run } from "./runs.js"
import { Store } from "./stores.js"
import { Threads } from "./threads.js"

/** As many events of a run as are read back from the log. */
export const HISTORY_MOST = 20_000
const RUNS_WHOLE = 200
// As often as it takes: it is a person who gives up, by closing the page.
const BACKOFF = { attempts: Infinity, firstMs: 300, longestMs: 8_000 }

export class Session extends Store {
  /**
   * @param {string} token The user's login.
   * @param {string} base The gateway's address.
   */
  constructor(token, base) {
    super()
    this.token = token
    const claims = claimsOf(token)
    this.user = String(claims.sub ?? "")
    this.permissions = permissionsOf(claims)
    this.expiresAt = Number.isFinite(claims.exp) ? claims.exp * 1000 : NaN
    /** Why the session is over; null while it is not. */
    this.over = null
    this.agents = []
    this.runs = new Map()
    this.drafts = new Map()
    /** What was begun in the field for the next message and not sent, by conversation; "" is a new one. */
    this.begun = new Map()
    /** The agent that was asked last. */
    this.asked = ""
    this.connection = { phase: "connecting", reason: "", until: 0, failures: 0 }
    this.figures = new Figures()
    this.client = new CarrelClient({
      url: base,
      token,
      patient: true,
      repeat: true,
      backoff: BACKOFF,
      onState: (state) => this._turned(state),
    })
    this.rest = this.client.rest
    this.threads = new Threads(this)
    this._loading = new Map()
  }

  get operator() {
    return this.permissions.has("operator:read")
  }

  /** Connects, and loads what every view wants. Failures show in `connection` and `over`. */
  start() {
    this._end = this.client.listen({
      onEvent: (event) => this._take(event),
      onNotice: (notice) => this._note(notice),
      onEnd: (error) => this._ended(error),
    })
    this._awake = () => document.hidden || this.client.wake()
    document.addEventListener("visibilitychange", this._awake)
    // Whoever comes back from an editor may have written an agent there.
    this._back = () => this._readAgents()
    addEventListener("focus", this._back)
    // Why it failed is told at the end of `listen`, too.
    this.client.connect().catch(() => {})
    this.threads.load()
    this._readAgents()
    return this
  }

  /** Which agents there are. Those that are known stay while nobody says. */
  _readAgents() {
    this._agentsDue = true
    this.rest.agents().then(
      ({ agents }) => {
        this._agentsDue = false
        this.agents = agents
        this.changed()
      },
      () => {},
    )
  }

  close() {
    document.removeEventListener("visibilitychange", this._awake)
    removeEventListener("focus", this._back)
    this._end?.()
    this.client.close()
  }

  /** How the connection does at this moment. */
  get health() {
    return this.client.health
  }

  // What the user asks for.

  /**
   * Asks for a run. The draft shows it until the gateway has accepted it, and keeps why it did not.
   * @param {{message: string, agent?: string, params?: object, threadId?: string, strategy?: string}} request
   */
  send(request) {
    const draft = new Draft(request)
    this.asked = request.agent ?? ""
    this.drafts.set(draft.ref, draft)
    this.threads.begin(draft)
    this._ask(draft)
    this.changed()
    return draft
  }

  /** Once more what was refused, perhaps with another strategy; under the same name, so that it never runs twice. */
  again(draft, changes = {}) {
    draft.request = { ...draft.request, ...changes }
    // What was refused has not been done: a changed request needs a name of its own.
    this.drafts.delete(draft.ref)
    draft.ref = newRef()
    this.drafts.set(draft.ref, draft)
    draft.error = null
    draft.changed()
    this._ask(draft)
  }

  async _ask(draft) {
    const { message, agent, params, threadId, strategy } = draft.request
    const options = {
      agentName: agent || undefined,
      params,
      threadId: threadId || undefined,
      strategy,
      clientRef: draft.ref,
    }
    try {
      const { runId, threadId: place, status, agentName } = await this._execute(message, options)
      this._accepted(draft, runId, place)
      this.run(runId, place).tell({ status, agent_name: agentName })
    } catch (error) {
      draft.error = error
      draft.changed()
    }
  }

  async _execute(message, options) {
    try {
      return await this.client.execute(message, options)
    } catch (error) {
      if (error.code !== "TOO_LARGE") throw error
      // A frame holds less than a request does.
      const run = await this.rest.execute(message, { ...options, waitMs: 0 })
      return { runId: run.run_id, threadId: run.thread_id, status: run.status, agentName: run.agent_name }
    }
  }

  _accepted(draft, runId, threadId) {
    if (draft.runId) return
    draft.runId = runId
    draft.threadId = threadId
    this.drafts.delete(draft.ref)
    const run = this.run(runId, threadId)
    run.message = draft.request.message
    run.request = draft.request
    run.whole = true
    this.threads.accepted(draft, run)
    draft.changed()
  }

  cancel(run) {
    run.ending = true
    run.changed()
    return this.client.cancel(run.runId).catch((error) => {
      run.ending = false
      run.changed()
      throw error
    })
  }

  answer(run, inputId, value) {
    return this.client.provideInput(run.runId, inputId, value)
  }

  /** The run of this id. */
  run(runId, threadId) {
    let run = this.runs.get(runId)
    if (!run) {
      run = new Run(runId, threadId)
      this.runs.set(runId, run)
    }
    return run
  }

  /**
   * Reads a run's events from its first one, as far as the log has them. Several calls are one.
   * @returns {Promise<void>}
   */
  history(run) {
    if (run.whole) return Promise.resolve()
    let loading = this._loading.get(run.runId)
    if (!loading) {
      loading = this._history(run).finally(() => this._loading.delete(run.runId))
      this._loading.set(run.runId, loading)
    }
    return loading
  }

  async _history(run) {
    const open = (signal) => this.rest.runEvents(run.runId, { signal })
    await readPast(run, open, { most: HISTORY_MOST })
    // One came live while it ended.
    if (!run.whole && run.liveFrom < Infinity) await readPast(run, open, { most: HISTORY_MOST })
  }

  // What comes.

  _take(event) {
    this.figures.events += 1
    this.figures.offset = event.offset
    this.figures.lastAt = Date.now()
    if (event.user_id !== this.user) this.figures.strangers += 1
    this.figures.changed()
    if (!event.run_id) return
    const fresh = !this.runs.has(event.run_id)
    const run = this.run(event.run_id, event.thread_id)
    if (event.event_type === "run_accepted") {
      run.whole = true
      const draft = this.drafts.get(event.data?.client_ref)
      if (draft) this._accepted(draft, event.run_id, event.thread_id)
    }
    run.take(event)
    if (fresh || event.event_type === "run_accepted" || event.event_type === "run_completed") {
      this.threads.moved(run, event)
      this.changed()
    }
    if (!run.whole && (fresh || run.watched)) this.history(run).catch(() => {})
    if (fresh) this._forget()
  }

  /** A tab may be open for weeks: of old runs that nobody looks at the events are left to the log. */
  _forget() {
    let most = this.runs.size - RUNS_WHOLE
    for (const run of this.runs.values()) {
      if (most <= 0) return
      most -= 1
      if (run.count && run.ended && !run.watched) run.forget()
    }
  }

  _note(notice) {
    if (notice instanceof RunStatus) {
      this.run(notice.runId, notice.body.thread_id).tell(notice.body)
    } else if (notice instanceof Reset) {
      this.figures.resets += 1
      for (const run of this.runs.values()) run.dropAfter(notice.position.offset)
      this.threads.load()
      this.changed()
    }
  }

  _turned(state) {
    this.connection = { ...state, until: Date.now() + (state.retryMs || 0) }
    if (state.phase === "connected") this._again()
    this.changed()
  }

  /** What could not be read while the gateway was away, and what another release may have changed. */
  _again() {
    if (this._agentsDue || this._seen) this._readAgents()
    if (this.threads.error) this.threads.load()
    this._seen = true
    for (const run of this.runs.values()) if (!run.whole && !run.ended && run.watched) this.history(run).catch(() => {})
  }

  _ended(error) {
    if (error) {
      this.over = error
      this.changed()
    }
  }
}

/** A message that has been sent and not accepted yet. */
export class Draft extends Store {
  constructor(request) {
    super()
    this.request = request
    this.ref = newRef()
    this.runId = ""
    this.threadId = request.threadId ?? ""
    this.error = null
    this.at = Date.now()
  }
}

/** What has come so far. Apart from the session, since it changes with every event. */
class Figures extends Store {
  constructor() {
    super()
    this.events = 0
    /** Events of another user. There are none, and this page says so. */
    this.strangers = 0
    this.offset = 0
    this.lastAt = NaN
    this.resets = 0
  }
}

function newRef() {
  // Not randomUUID: over plain HTTP to another machine browsers have none.
  const bytes = crypto.getRandomValues(new Uint8Array(12))
  return `console-${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")}`
}

/** What a token says, unverified: for the page's own words only. The gateway decides what it is worth. */
export function claimsOf(token) {
  try {
    const bytes = Uint8Array.from(atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/")), (c) =>
      c.charCodeAt(0),
    )
    const claims = JSON.parse(new TextDecoder().decode(bytes))
    return claims && typeof claims === "object" ? claims : {}
  } catch {
    return {}
  }
}

function permissionsOf({ scope, permissions }) {
  const found = [scope, permissions].flatMap((value) =>
    typeof value === "string" ? value.split(/\s+/) : Array.isArray(value) ? value : [],
  )
  return new Set(found.map(String).filter(Boolean))
}
