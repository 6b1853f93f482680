/**
 * Positions: places in a user's log to go on reading from. Plain objects `{epoch, offset, event_id}`, or as text
 * `epoch:offset:event_id`, which is what to save. The same on every transport.
 */

import { InvalidRequestError, isObject } from "./errors.js"

/** @typedef {{readonly epoch: string, readonly offset: number, readonly event_id: string}} Position */

/** @type {Position} */
export const OLDEST = Object.freeze({ epoch: "", offset: 0, event_id: "" })

/**
 * @param {string} epoch
 * @param {number} offset
 * @param {string} eventId
 * @returns {Position}
 */
export function position(epoch, offset, eventId) {
  return Object.freeze({ epoch, offset, event_id: eventId })
}

/**
 * Whether the log can compare it: past the beginning it needs the entry's event_id.
 * @param {Position} place
 */
export function usable(place) {
  return Boolean(place.epoch) && (place.offset === 0 || Boolean(place.event_id))
}

/**
 * The text to save.
 * @param {Position} place
 */
export function formatPosition(place) {
  return `${place.epoch}:${place.offset}:${place.event_id}`
}

/**
 * A position from what was saved: its text, the object, or `"oldest"` for everything that is kept.
 * @param {string | Position} saved
 * @returns {Position}
 * @throws {InvalidRequestError} It is none (code INVALID_POSITION).
 */
export function parsePosition(saved) {
  if (saved === "oldest") return OLDEST
  const place = typeof saved === "string" ? fromText(saved) : fromObject(saved)
  if (place === undefined) {
    throw wrong("no position", "save formatPosition(client.position), as it is: epoch:offset:event_id")
  }
  if (place.offset > 0 && !place.epoch) {
    throw wrong("a position without its epoch", "save whole positions: an offset alone cannot be compared with the log")
  }
  return place
}

/** @param {string} text */
function fromText(text) {
  const parts = /^([^:]*):(\d{1,16}):(.*)$/s.exec(text.trim())
  if (!parts || !Number.isSafeInteger(Number(parts[2]))) return undefined
  return position(parts[1], Number(parts[2]), parts[3])
}

/** @param {unknown} body */
function fromObject(body) {
  if (!isObject(body) || !Number.isSafeInteger(body.offset) || body.offset < 0) return undefined
  const { epoch = "", event_id: eventId = "" } = body
  if (typeof epoch !== "string" || typeof eventId !== "string") return undefined
  return position(epoch, body.offset, eventId)
}

/**
 * @param {string} what
 * @param {string} advice
 */
function wrong(what, advice) {
  return new InvalidRequestError(`\`resume\` is ${what}`, { code: "INVALID_POSITION", advice })
}
