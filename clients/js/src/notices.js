/**
 * What a stream of events says about itself, as values: resets, gaps, how runs stand, the end of a connection.
 * Not events: those are the log's. `kind` tells them apart from events, which have `event_type`.
 */

import { position } from "./positions.js"

const LONGEST_RETRY_MS = 3_600_000
const ENDED = new Set(["SUCCEEDED", "FAILED", "CANCELLED", "TIMED_OUT"])

/**
 * Whether a run with this status has ended.
 * @param {string} status
 */
export function hasEnded(status) {
  return ENDED.has(status)
}

/** A control frame that answers no command. */
export class Notice {
  /**
   * @param {string} kind Its `type`.
   * @param {Record<string, any>} body All of it.
   */
  constructor(kind, body) {
    this.kind = kind
    this.body = body
  }
}

/**
 * The position is not one of the log any more: what follows begins after `position`, and may leave events out.
 * Whatever was read beyond it under another epoch may not be in the log. Entries given before are not given again,
 * unless the client was made with `repeat`.
 */
export class Reset extends Notice {
  /** `epoch_changed`, `trimmed`, `beyond_top` or `event_mismatch`. */
  get reason() {
    return text(this.body.reason)
  }

  /** Where the stream goes on; its `event_id` is empty where the gateway does not say it. */
  get position() {
    return position(text(this.body.epoch), count(this.body.offset), text(this.body.event_id))
  }
}

/** The entries `first` to `last` do not come. */
export class Gap extends Notice {
  get first() {
    return count(this.body.from)
  }

  get last() {
    return count(this.body.to)
  }

  /** False: the gateway did not say so; offsets jumped, and did so again after the client had asked once more. */
  get announced() {
    return this.body.announced !== false
  }
}

/** How a run stands; comes after a reset for each run that is unended, or ended within a day. */
export class RunStatus extends Notice {
  get runId() {
    return text(this.body.run_id)
  }

  get status() {
    return text(this.body.status)
  }

  /** Whether it has ended; its last event may still be on its way. */
  get ended() {
    return hasEnded(this.status)
  }
}

/** The gateway ends the connection. */
export class Bye extends Notice {
  /** The close code that follows. */
  get code() {
    return count(this.body.code)
  }

  get reason() {
    return text(this.body.reason)
  }

  /** Whether coming back can help. */
  get reconnect() {
    return this.body.reconnect !== false
  }

  /** Milliseconds to wait before coming back. */
  get retryMs() {
    const wanted = this.body.retry_ms
    // A number that is no promise of the protocol: whoever asks for more is wrong or hostile.
    return Number.isFinite(wanted) ? Math.min(Math.max(wanted, 0), LONGEST_RETRY_MS) : 0
  }
}

/** @type {Map<string, typeof Notice>} */
const KINDS = new Map(
  /** @type {[string, typeof Notice][]} */ ([
    ["reset", Reset],
    ["gap", Gap],
    ["run_state", RunStatus],
    ["bye", Bye],
  ]),
)

/**
 * The control frame as a value of its kind.
 * @param {Record<string, any>} frame
 * @returns {Notice}
 */
export function noticeOf(frame) {
  const kind = String(frame.type)
  return new (KINDS.get(kind) ?? Notice)(kind, frame)
}

/** @param {unknown} value */
function text(value) {
  return typeof value === "string" ? value : ""
}

/** @param {any} value */
function count(value) {
  return Number.isSafeInteger(value) ? value : 0
}
