/**
 * The rows of a run's timeline, as a tree: a row stands below who it belongs to, in the order of the log, also where several
 * sub-agents work at once. Rows are never taken out and never change their owner.
 */

export class Steps {
  constructor() {
    this._roots = []
    this._rows = null
    // What has begun and tells its own end, by a key; child operations and sub-agents by their requests.
    this._open = new Map()
    this._requests = new Map()
  }

  /** Every row as it is read from top to bottom. */
  get rows() {
    this._rows ??= flat(this._roots)
    return this._rows
  }

  /** A new row, after the last one of its owner. With `key` it is open until it is closed. */
  add({ key, event, done, at, ...rest }) {
    const step = {
      id: event.offset,
      status: done ? "ok" : "running",
      startedAt: at,
      endedAt: done ? at : NaN,
      duration: NaN,
      agent: event.agent_name,
      attempt: event.attempt,
      requestId: event.request_id,
      version: 0,
      owner: undefined,
      inner: null,
      ...rest,
    }
    const owner = (step.owner = step.depth > 0 ? this._ownerOf(step, event) : undefined)
    if (owner) (owner.inner ??= []).push(step)
    else this._roots.push(step)
    this._rows = null
    if (key && !done) this._open.set(key, step)
    return step
  }

  finish(step, changes) {
    Object.assign(step, changes)
    step.version += 1
    if (!Number.isFinite(step.duration) && Number.isFinite(step.endedAt)) step.duration = step.endedAt - step.startedAt
  }

  /** The open row of this key, which is open no longer. */
  taken(key) {
    const step = this._open.get(key)
    this._open.delete(key)
    return step
  }

  /** Everything that is open gets this status and stays open. */
  turn(status, { children = false } = {}) {
    for (const step of [...this._open.values(), ...(children ? this._running() : [])]) this.finish(step, { status })
  }

  /** The end of an agent, and of what it began: of a sub-agent by its request, of a stage by its name. */
  endOf(agent, event, at, changes) {
    const within = event.parent_request_id ? event.request_id : ""
    const step = within ? this.child(event, at, { name: agent }) : this.taken(`agent:${agent}`)
    if (!step) return undefined
    for (const child of this._running()) {
      if (child === step || (within && !this._below(child, within))) continue
      // A sub-agent tells its own end; one that told none was given up.
      this.finish(child, { status: child.agent === agent ? "ok" : "cancelled", endedAt: child.lastAt })
    }
    this.finish(step, { endedAt: at, ...changes })
    return step
  }

  /** Everything that is open ends; with `keepAgents` the stages go on. */
  close(status, at, keepAgents = false) {
    for (const [key, step] of [...this._open]) {
      if (keepAgents && step.kind === "agent") continue
      this.finish(step, { status, endedAt: at })
      this._open.delete(key)
    }
    for (const child of this._running())
      this.finish(child, { status: keepAgents ? "ok" : status, endedAt: child.lastAt })
  }

  /** How deep an event lies. */
  depth(event, at) {
    return event.parent_request_id ? this.child(event, at).depth : 0
  }

  /** A child operation, or a sub-agent: a row of its own, begun by the first event that names it. */
  child(event, at, about = {}) {
    const key = whose(event)
    let child = this._requests.get(key)
    if (!child) {
      const name = event.request_id.slice(event.parent_request_id.length + 1) || event.request_id
      const depth = 1 + (this._requests.get(`${event.parent_request_id}:${event.attempt}`)?.depth ?? 0)
      child = this.add({ kind: "child", name, depth, at, event, lastAt: at, parent: event.parent_request_id, ...about })
      this._requests.set(key, child)
    }
    child.lastAt = at
    return child
  }

  /** Child operations and sub-agents that have not ended. */
  _running() {
    return [...this._requests.values()].filter(({ status }) => status === "running" || status === "waiting")
  }

  /** Whether a child is below a request. Names do not tell: the second of one name is `…_2`. */
  _below(child, requestId) {
    for (let one = child; one; one = one.owner) if (one.parent === requestId) return true
    return false
  }

  /** Below whom a row stands: a child below its parent's row, all else below the child that it is of. A stage's has none. */
  _ownerOf(step, event) {
    return this._requests.get(step.parent ? `${step.parent}:${event.attempt}` : whose(event))
  }
}

/** Whose an event is, within its run: one request in one attempt. */
export function whose(event) {
  return `${event.request_id}:${event.attempt}`
}

/** The tree from top to bottom. Without recursion: how deep it is, is not ours to say. */
function flat(roots) {
  const rows = []
  const waiting = [[roots, 0]]
  while (waiting.length) {
    const place = waiting.at(-1)
    const step = place[0][place[1]]
    if (!step) {
      waiting.pop()
      continue
    }
    place[1] += 1
    rows.push(step)
    if (step.inner) waiting.push([step.inner, 0])
  }
  return rows
}
