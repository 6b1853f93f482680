/**
 * A run as its events tell it: state, steps, text, questions, errors. Each event is taken once, in the log's order, in
 * constant time; events from before that come late are put in their places. No network here, and no drawing.
 */

import { moment } from "./format.js"
import { Steps, whose } from "./steps.js"
import { Store } from "./stores.js"

const ENDED = new Set(["SUCCEEDED", "FAILED", "CANCELLED", "TIMED_OUT"])
// Events that say something here. Others, of later releases, are kept and pass by.
const KINDS = new Set([
  "run_accepted",
  "agent_started",
  "agent_thinking",
  "tool_executing",
  "tool_completed",
  "agent_message",
  "agent_completed",
  "agent_error",
  "run_attempt",
  "input_required",
  "event_rejected",
  "log_gap",
  "run_completed",
])
// Of the results that agents give, the field that is meant to be read.
const TEXTS = ["answer", "message", "summary", "text"]
// A thought that comes in pieces is one row; beyond this many characters it goes on in another.
const THOUGHT = 2000
const THOUGHT_LINE = 160

export function hasEnded(status) {
  return ENDED.has(status)
}

export class Run extends Store {
  constructor(runId, threadId) {
    super()
    this.runId = runId
    this.threadId = threadId
    /** What was asked; known where it was asked from here, or from the thread's messages. */
    this.message = ""
    this.clientRef = ""
    /** All of what was asked, where it was asked from here. */
    this.request = null
    /** What REST said of it, if it was asked. */
    this.told = null
    /** Its files, where they are known. */
    this.artifacts = null
    /** What the agents said, as the thread keeps it: for a run whose events are not here. */
    this.said = []
    /** Whether its end has been asked for; whether its events are being read. */
    this.ending = false
    this.loading = false
    /** Whether its events before the first that came live are here, too. */
    this.whole = false
    /** Whether some of those were too many to be read. */
    this.partial = false
    /** Where what came live begins: from there on nothing is missing. */
    this.liveFrom = Infinity
    // The last that came live, and which it was when REST told how the run stands.
    this._live = this._toldAt = 0
    this._events = []
    this._clear()
  }

  _clear() {
    this.status = "QUEUED"
    this.agent = ""
    this.stages = []
    this.messages = []
    this.question = null
    this.answered = null
    this.error = null
    this.result = null
    this.artifact = null
    this.attempts = 1
    this.startedAt = NaN
    this.endedAt = NaN
    this.lastAt = NaN
    this.thought = ""
    this.tools = 0
    this._steps = new Steps()
    this._texts = new Map()
    // Thoughts that come in pieces and may go on, by who thinks.
    this._thoughts = new Map()
    this._last = 0
  }

  get ended() {
    return ENDED.has(this.status)
  }

  /** The rows of its timeline, each below who it belongs to. */
  get steps() {
    return this._steps.rows
  }

  get count() {
    return this._events.length
  }

  /** Milliseconds from the first event to the last, or to now. */
  elapsed(now = Date.now()) {
    const began = Number.isFinite(this.startedAt) ? this.startedAt : moment(this.told?.created_at)
    if (this.ended) return (Number.isFinite(this.endedAt) ? this.endedAt : moment(this.told?.ended_at)) - began
    return now - began
  }

  /** What the agents wrote for the user; the result's own text where they wrote none. */
  get texts() {
    const said = this.messages.filter((message) => message.text.trim())
    const own = resultText(this.result ?? this.told?.result)
    if (!said.length && this.said.length) return this.said
    if (own && !said.some((message) => message.text.trim() === own.trim()))
      return [...said, { id: "result", text: own }]
    return said
  }

  /** The next event of the log, or one from before. */
  take(event) {
    const news = event.offset > this._live
    this.liveFrom = Math.min(this.liveFrom, event.offset)
    this._live = Math.max(this._live, event.offset)
    if (event.offset <= this._last) {
      this.merge([event], news)
      return
    }
    this._events.push(event)
    this._apply(event)
    this.changed()
  }

  /** Events from before, in any order; those that are here already are passed over. */
  merge(events, anew = false) {
    const byOffset = new Map(this._events.map((event) => [event.offset, event]))
    for (const event of events) if (!byOffset.has(event.offset)) byOffset.set(event.offset, event)
    if (byOffset.size === this._events.length && !anew) return
    this._events = [...byOffset.values()].sort((one, other) => one.offset - other.offset)
    this._again()
  }

  /** The log lost its end: what came after this offset has not happened. */
  dropAfter(offset) {
    this._events = this._events.filter((event) => event.offset <= offset)
    if (this.liveFrom > offset) this.liveFrom = Infinity
    this._live = Math.min(this._live, offset)
    this._again()
  }

  /** Holds its events no longer: they can be read again. How it ended stays. */
  forget() {
    this.said = this.texts
    const { status, agent, error, result, endedAt, startedAt } = this
    this._events = []
    this.liveFrom = Infinity
    this.whole = this.partial = false
    this._clear()
    Object.assign(this, { status, agent, error, result, endedAt, startedAt })
  }

  _again() {
    this._clear()
    for (const event of this._events) this._apply(event)
    // What has come live since is newer.
    if (this.told && (hasEnded(this.told.status) || this._live <= this._toldAt)) this._stand(this.told)
    this.changed()
  }

  /** How it stands, as REST or the gateway tells it: for runs whose events are not all here. */
  tell(told) {
    this.told = { ...this.told, ...told }
    this._toldAt = this._live
    // Before its end more may come; and lists leave them out.
    if (hasEnded(told.status) && told.artifacts?.length) this.artifacts = told.artifacts
    this._stand(told)
    this.changed()
  }

  _stand(told) {
    this.agent ||= told.agent_name ?? ""
    if (this.ended && !hasEnded(told.status)) return
    if (told.status && told.status !== "FINISHING") this.status = told.status
    if (told.status === "WAITING" && told.waiting_for) this.question = told.waiting_for
    if (told.status !== "WAITING") this.question = null
    if (told.error) this.error = told.error
    if (hasEnded(told.status)) {
      this._steps.close("cancelled", this.lastAt)
      if (!Number.isFinite(this.endedAt)) this.endedAt = moment(told.ended_at)
    }
  }

  _apply(event) {
    const at = moment(event.timestamp)
    this._last = event.offset
    this.lastAt = at
    if (!Number.isFinite(this.startedAt)) this.startedAt = at
    if (event.event_type !== "agent_thinking") this._thoughts.delete(whose(event))
    if (KINDS.has(event.event_type)) this[`_${event.event_type}`](event.data ?? {}, event, at)
  }

  _run_accepted(data) {
    this.status = data.status ?? "QUEUED"
    this.agent = data.agent_name ?? this.agent
    this.clientRef = data.client_ref ?? this.clientRef
    this.stages = Array.isArray(data.stages) ? data.stages : []
  }

  _agent_started(data, event, at) {
    this.status = "RUNNING"
    if (event.parent_request_id) {
      this._steps.child(event, at, { name: data.agent_name, note: data.description, replayed: data.replayed })
      return
    }
    this._steps.add({
      kind: "agent",
      name: data.agent_name,
      note: data.description,
      depth: 0,
      at,
      event,
      key: `agent:${data.agent_name}`,
    })
  }

  _agent_thinking(data, event, at) {
    this.status = this.status === "QUEUED" ? "RUNNING" : this.status
    if (data.heartbeat) return
    const text = String(data.text ?? "")
    const left = data.shed ? `${data.shed} lines were left out` : ""
    const open = this._thoughts.get(whose(event))
    if (
      open &&
      data.delta &&
      !left &&
      open.messageId === data.message_id &&
      open.step.name.length + text.length <= THOUGHT
    ) {
      this._steps.finish(open.step, { name: open.step.name + text, endedAt: at })
      this.thought = open.step.name.slice(-THOUGHT_LINE)
      return
    }
    if (text) this.thought = text
    const step = this._steps.add({
      kind: "thought",
      name: text || left,
      note: text && left,
      depth: this._steps.depth(event, at) + 1,
      at,
      event,
      done: true,
    })
    if (data.delta) this._thoughts.set(whose(event), { step, messageId: data.message_id })
    else this._thoughts.delete(whose(event))
  }

  _tool_executing(data, event, at) {
    this.status = "RUNNING"
    this.tools += 1
    this._steps.add({
      kind: "tool",
      name: data.tool_name,
      depth: this._steps.depth(event, at) + 1,
      at,
      event,
      key: `tool:${data.tool_call_id}`,
      arguments: data.arguments,
      replayed: data.replayed,
    })
  }

  _tool_completed(data, event, at) {
    const key = `tool:${data.tool_call_id}`
    const depth = this._steps.depth(event, at) + 1
    let step = this._steps.taken(key)
    if (!step) {
      // Refused: it was never begun.
      this.tools += 1
      step = this._steps.add({
        kind: "tool",
        name: data.tool_name,
        depth,
        at,
        event,
        arguments: data.arguments,
      })
    }
    this._steps.finish(step, {
      status: data.denied ? "denied" : data.status,
      endedAt: at,
      duration: data.duration_ms,
      result: data.result,
      error: data.error,
      replayed: step.replayed || data.replayed,
    })
  }

  _agent_message(data) {
    const id = data.message_id
    let message = this._texts.get(id)
    if (!message) {
      message = { id, text: "" }
      this._texts.set(id, message)
      this.messages.push(message)
    }
    message.text = typeof data.text === "string" ? data.text : message.text + (data.delta ?? "")
  }

  _agent_completed(data, event, at) {
    this._steps.endOf(data.agent_name, event, at, {
      status: "ok",
      result: data.result,
      artifact: data.artifact,
      duration: data.duration_ms,
    })
  }

  _agent_error(data, event, at) {
    const recovered = data.recovered || data.fallback
    const step = this._steps.endOf(data.agent_name ?? event.agent_name, event, at, {
      status: recovered ? "warned" : "error",
      error: data,
    })
    // A sub-agent's is its caller's to deal with.
    if (event.parent_request_id) return
    if (!step)
      this._steps.add({
        kind: "note",
        name: data.message,
        error: data,
        depth: 0,
        at,
        event,
        done: true,
        status: "error",
      })
    if (!recovered) this.error = data
  }

  _run_attempt(data, event, at) {
    const answered = data.reason === "input_provided"
    // To go on after an answer is no new try.
    if (!answered) this.attempts += 1
    if (answered) {
      this.question = null
      this.status = "RUNNING"
    }
    // What the attempt before left open was cut off; where it waited, its agents go on.
    this._steps.close("cancelled", at, answered)
    this._steps.turn("running")
    const reason = String(data.reason || "once more").replaceAll("_", " ")
    const name = answered ? "Answer received, going on" : `Attempt ${data.attempt}: ${reason}`
    this._steps.add({ kind: "note", name, depth: 0, at, event, done: true, status: answered ? "ok" : "warned" })
  }

  _input_required(data, event, at) {
    this.question = data
    this.status = "WAITING"
    this._steps.turn("waiting", { children: true })
    const name = data.tool_name ? `Asks to approve ${data.tool_name}` : `Asks: ${data.prompt ?? "a question"}`
    this._steps.add({ kind: "question", name, depth: 0, at, event, done: true, arguments: data.arguments })
  }

  _event_rejected(data, event, at) {
    const name = `An event (${data.event_type}) was refused: ${data.reason}`
    this._steps.add({ kind: "note", name, depth: 0, at, event, done: true, status: "warned" })
  }

  _log_gap(data, event, at) {
    this._steps.add({
      kind: "note",
      name: "Events were lost here",
      note: data.reason,
      depth: 0,
      at,
      event,
      done: true,
      status: "warned",
    })
  }

  _run_completed(data, event, at) {
    this.status = data.status
    this.question = null
    this.result = data.result ?? null
    this.artifact = data.artifact ?? null
    if (data.status === "SUCCEEDED") this.error = null
    else this.error = data.error ?? this.error
    this.endedAt = at
    this._steps.close(data.status === "SUCCEEDED" ? "ok" : "cancelled", at)
  }
}

/** A result's text for people; empty when it has none. */
export function resultText(result) {
  if (!result || typeof result !== "object") return ""
  for (const name of TEXTS) if (typeof result[name] === "string" && result[name].trim()) return result[name].trim()
  return ""
}
