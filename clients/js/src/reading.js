/**
 * What a reader of a stream keeps in mind: its position, what it has given already, what the gateway last said.
 *
 * Pure bookkeeping, without a connection. The rules: every offset is explained, by an event, `through`, `gap` or
 * `reset`. Offsets that jump unexplained are asked for once more, by coming back with the position (`AstrayError`);
 * when they are still not there, the application is told by a `Gap`.
 */

import { AstrayError, closedError, errorFrom, isObject, ProtocolError } from "./errors.js"
import { Bye, Gap, noticeOf, Reset } from "./notices.js"
import { OLDEST, position, usable } from "./positions.js"

/** @typedef {import("./positions.js").Position} Position */
/** @typedef {import("./notices.js").Notice} Notice */
/** @typedef {Record<string, any>} Frame */

// As many as a log keeps: after a reset, everything that is kept may come again.
const REMEMBERED = 10_000
const SILENT = new Set(["pong", "refreshed"])
const TEXTS = ["event_id", "event_type", "user_id", "thread_id", "run_id", "request_id"]

export class Reader {
  /**
   * @param {Position | undefined} resume Where the first connection is to begin; undefined for the top of the log.
   * @param {{filtered?: boolean, explained?: boolean, repeat?: boolean}} [options] Whether only a part of the log is
   *   read, so that the stream's end may lie below the log's; whether what is left out is told (`through`), so that a
   *   jump of offsets is a loss; whether what was given before a reset is given again after it.
   */
  constructor(resume, { filtered = false, explained = true, repeat = false } = {}) {
    this.position = resume ?? OLDEST
    this.duplicates = 0
    this.resets = 0
    /** Jumps of offsets that nothing explained, mended ones included. */
    this.holes = 0
    /** @type {Bye | undefined} */
    this.bye = undefined
    /** The highest offset that the present stream has told, repeated ones included: as far as may be acknowledged. */
    this.heard = 0
    /** The end of the log, as far as the gateway said. */
    this.top = 0
    this._covered = 0
    this._resumes = resume !== undefined
    this._filtered = filtered
    this._explained = explained
    this._repeat = repeat
    /** @type {Set<string>} */
    this._seen = new Set()
    /** @type {import("./errors.js").CarrelError | undefined} */
    this._error = undefined
    /** @type {number | undefined} */
    this._due = undefined
    this._askedFor = 0
    this._resetDue = false
    this._userId = ""
  }

  /** The part of a `connect` frame that says where to go on. */
  resume() {
    const here = this.position
    if (!this._resumes) return {}
    // An offset that was only told has no event_id to compare: everything is read again, and what lies before it is
    // dropped here.
    if (!usable(here)) return { resume: { offset: 0 } }
    if (here.offset === 0) return { resume: { epoch: here.epoch, offset: 0 } }
    return { resume: { epoch: here.epoch, offset: here.offset, event_id: here.event_id } }
  }

  /** A new connection begins: what the one before said about its end is past. */
  begin() {
    this._error = undefined
    this.bye = undefined
    this._due = undefined
    this._resetDue = false
  }

  /** How long the gateway asked to wait before coming back. */
  get retryMs() {
    return this.bye?.retryMs ?? 0
  }

  /**
   * The gateway said `connected`; notices of what that means for the reader's position.
   * @param {Frame} frame
   * @returns {Notice[]}
   */
  connected(frame) {
    const told = placeOf(frame, "connected")
    const before = this.position
    const comparable = usable(before)
    this.heard = told.offset
    this._rise(told.offset)
    this._due = told.offset + 1
    if (!this._resumes) {
      this.position = told
      this._resumes = true
    } else if (frame.recovered === false && comparable) {
      // The position stays until the reset that follows is here: a connection lost in between loses nothing.
      this._resetDue = true
    } else if (before.epoch && before.epoch !== told.epoch) {
      // Everything was asked for, since there was nothing to compare, and it is another log's.
      return [this._reset({ type: "reset", reason: "epoch_changed", ...told })]
    } else if (told.offset > before.offset) {
      this.position = told
      if (before.epoch) return [gap(before.offset + 1, told.offset)]
    } else if (!before.epoch) {
      this.position = told
    }
    return []
  }

  /**
   * What a control frame brings; a `position` alone where that is nothing but progress.
   * @param {Frame} frame
   * @returns {Generator<{item?: Frame | Notice, position: Position}>}
   * @throws {ProtocolError} Something is malformed, or breaks the protocol's promises.
   * @throws {AstrayError} The position must be compared with the log again.
   */
  *control(frame) {
    const kind = String(frame.type)
    if (SILENT.has(kind)) return
    if (kind === "ping") {
      this._compare(frame)
    } else if (kind === "through") {
      this._through(placeOf(frame, kind))
      yield { position: this.position }
    } else if (kind === "reset") {
      const item = this._reset(frame)
      yield { item, position: this.position }
    } else {
      const notice = noticeOf(frame)
      if (notice instanceof Gap) yield* this._pass(notice)
      else if (kind === "error") this._error = errorFrom(frame)
      else if (notice instanceof Bye) this.bye = notice
      yield { item: notice, position: this.position }
    }
  }

  /**
   * What events bring that has not been given yet; a `position` alone for one that was.
   * @param {Iterable<Frame>} bodies
   * @returns {Generator<{item?: Frame | Notice, position: Position}>}
   */
  *events(bodies) {
    for (const body of bodies) yield* this._event(body)
  }

  /**
   * Why the gateway closed for good.
   * @param {number} closeCode
   */
  refusal(closeCode) {
    const error = this._error ?? closedError(closeCode, this.bye?.reason)
    error.closeCode = closeCode
    return error
  }

  /** @param {Frame} body */
  *_event(body) {
    checkEvent(body)
    if (this._userId && this._userId !== body.user_id) {
      throw new ProtocolError("the gateway sent an event of another user; nothing of it was kept")
    }
    this._userId = body.user_id
    if (this._resetDue) {
      throw new ProtocolError("the gateway did not say from where on the log goes on before it sent an event")
    }
    const here = this.position
    const offset = body.offset
    if (offset === here.offset && here.event_id && here.event_id !== body.event_id) {
      throw new ProtocolError(`the gateway sent another event for the offset ${offset}`)
    }
    if (this._due !== undefined && offset > this._due && this._explained) {
      yield { item: this._hole(this._due, offset - 1), position: here }
    }
    this._due = Math.max(offset + 1, this._due ?? 0)
    this.heard = Math.max(this.heard, offset)
    this._rise(offset)
    if (offset <= here.offset) {
      this.duplicates += 1
      yield { position: here }
      return
    }
    this.position = position(here.epoch, offset, body.event_id)
    if (this._seen.has(body.event_id)) {
      this.duplicates += 1
      yield { position: this.position }
      return
    }
    this._remember(body.event_id)
    Object.defineProperty(body, "position", { value: this.position })
    yield { item: body, position: this.position }
  }

  /** @param {string} eventId */
  _remember(eventId) {
    this._seen.add(eventId)
    if (this._seen.size > REMEMBERED) {
      for (const oldest of this._seen) {
        this._seen.delete(oldest)
        break
      }
    }
  }

  /**
   * @param {number} first
   * @param {number} last
   */
  _hole(first, last) {
    this.holes += 1
    if (this._askedFor !== first) {
      this._askedFor = first
      throw new AstrayError(`the events ${first} to ${last} did not come`)
    }
    return gap(first, last)
  }

  /** @param {Frame} frame */
  _reset(frame) {
    let told = placeOf(frame, "reset")
    this.resets += 1
    if (told.offset === this.position.offset && !told.event_id) {
      // The entries stay, under another epoch: the last one is still the last one, which resuming compares.
      told = position(told.epoch, told.offset, this.position.event_id)
    }
    this.position = told
    this._due = told.offset + 1
    this.heard = told.offset
    this.top = told.offset
    this._covered = told.offset
    this._resetDue = false
    if (this._repeat) this._seen.clear()
    return new Reset("reset", frame)
  }

  /** @param {Position} place */
  _through(place) {
    if (place.epoch !== this.position.epoch) throw new AstrayError("the log goes on under another epoch")
    this._due = Math.max(place.offset + 1, this._due ?? 0)
    this.heard = Math.max(this.heard, place.offset)
    this._rise(place.offset)
    if (place.offset > this.position.offset) this.position = place
  }

  /** @param {Gap} told Offsets that the log does not have: those after them are due. */
  *_pass(told) {
    if (this._due === undefined || told.last < this._due) return
    if (told.first > this._due && this._explained) {
      yield { item: this._hole(this._due, told.first - 1), position: this.position }
    }
    this._due = told.last + 1
    this.heard = Math.max(this.heard, told.last)
    this._rise(told.last)
  }

  /** @param {Frame} ping Tells how far the stream has come; whoever is not there has lost its end, or the log has. */
  _compare(ping) {
    const { epoch, offset, top } = ping
    if (!epoch || !Number.isSafeInteger(offset) || this._resetDue) return
    if (epoch !== this.position.epoch) throw new AstrayError("the log goes on under another epoch")
    if (offset < this.heard) throw new AstrayError(`the log ends at ${offset}, and ${this.heard} was read`)
    if (offset > this.heard && !this._filtered) {
      throw new AstrayError(`the events ${this.heard + 1} to ${offset} did not come`)
    }
    this._rise(Number.isSafeInteger(top) ? top : offset)
    // With a filter the rest up to here is others', and told later.
    this._covered = offset
  }

  /** How many events of the log the gateway is known to hold back still, or to have on the way. */
  get behind() {
    return Math.max(0, this.top - Math.max(this._covered, this.heard))
  }

  /** @param {number} offset */
  _rise(offset) {
    this.top = Math.max(this.top, offset)
  }
}

/**
 * @param {number} first
 * @param {number} last
 */
function gap(first, last) {
  return new Gap("gap", { type: "gap", from: first, to: last, announced: false })
}

/** @param {Frame} body */
function checkEvent(body) {
  for (const name of TEXTS) {
    if (typeof body[name] !== "string") throw new ProtocolError(`the gateway sent an event without its ${name}`)
  }
  // Beyond 2^53 JSON numbers are not exact here; no log comes near it.
  if (!Number.isSafeInteger(body.offset) || body.offset < 1) {
    throw new ProtocolError("the gateway sent an event whose offset is no whole number from 1")
  }
  if (body.data !== undefined && !isObject(body.data)) {
    throw new ProtocolError("the gateway sent an event whose data is no object")
  }
  body.data ??= {}
}

/**
 * @param {Frame} frame
 * @param {string} kind
 * @returns {Position}
 */
function placeOf(frame, kind) {
  const { epoch, offset, event_id: eventId } = frame
  if (typeof epoch !== "string" || !Number.isSafeInteger(offset) || offset < 0) {
    throw new ProtocolError(`the gateway sent ${kind} without a position`)
  }
  return position(epoch, offset, typeof eventId === "string" ? eventId : "")
}
