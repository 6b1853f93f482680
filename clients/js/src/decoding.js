/**
 * From a text message of the gateway to frames: JSON objects, batches undone, compressed ones too.
 * What they mean to a reader is `reading.js`'s. Whatever is malformed is a `ProtocolError` that says what.
 */

import { gather } from "./bodies.js"
import { isObject, ProtocolError } from "./errors.js"

/** What a message may have at most, in UTF-16 units, and a compressed batch grow to, in bytes. */
export const MAX_MESSAGE = 8 * 1024 * 1024
export const MAX_BATCH_BYTES = 16 * 1024 * 1024

/** Whether compressed batches can be read here. */
export const CAN_INFLATE = typeof DecompressionStream === "function"

/**
 * One JSON object.
 * @param {unknown} message
 * @returns {Record<string, any>}
 * @throws {ProtocolError}
 */
export function parseObject(message) {
  if (typeof message !== "string") throw new ProtocolError("the gateway sent a binary message")
  if (message.length > MAX_MESSAGE)
    throw new ProtocolError("the gateway sent a message larger than any of the protocol")
  let body
  try {
    body = JSON.parse(message)
  } catch {
    throw new ProtocolError("the gateway sent a message that is not JSON")
  }
  if (!isObject(body)) throw new ProtocolError("the gateway sent JSON that is not an object")
  return body
}

/**
 * The events of an `event_batch`, or the one event that the frame is.
 * @param {Record<string, any>} frame
 * @returns {Promise<Record<string, any>[]>}
 * @throws {ProtocolError} A batch is malformed, or does not hold what it says.
 */
export async function bodiesOf(frame) {
  if (frame.event_type !== "event_batch") return [frame]
  const events = frame.compressed === true ? await inflated(frame) : frame.events
  if (!Array.isArray(events) || !events.every(isObject)) {
    throw new ProtocolError("the gateway sent an event_batch without its events")
  }
  const size = frame.batch_size
  if (size !== undefined && size !== events.length) {
    throw new ProtocolError(`the gateway sent an event_batch of ${events.length} events that says ${size}`)
  }
  return events
}

/** @param {Record<string, any>} frame */
async function inflated(frame) {
  const data = await unpacked(fromHex(frame.events_compressed))
  const said = frame.original_size
  if (said !== undefined && said !== data.length) {
    throw new ProtocolError(`the gateway sent a compressed event_batch of ${data.length} bytes that says ${said}`)
  }
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(data))
  } catch {
    throw new ProtocolError("the gateway sent a compressed event_batch that holds no JSON")
  }
}

/** @param {unknown} text */
function fromHex(text) {
  if (typeof text !== "string" || text.length % 2 || !/^[0-9a-fA-F]*$/.test(text)) {
    throw new ProtocolError("the gateway sent a compressed event_batch that cannot be unpacked")
  }
  const bytes = new Uint8Array(text.length / 2)
  for (let at = 0; at < bytes.length; at += 1) bytes[at] = parseInt(text.slice(2 * at, 2 * at + 2), 16)
  return bytes
}

/**
 * What a gzip holds; no more of it than the bound is ever in memory.
 * @param {Uint8Array<ArrayBuffer>} bytes
 */
async function unpacked(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))
  const tooLarge = () => new ProtocolError("the gateway sent a compressed event_batch that is far too large")
  try {
    return await gather(stream, MAX_BATCH_BYTES, tooLarge)
  } catch (error) {
    if (error instanceof ProtocolError) throw error
    throw new ProtocolError("the gateway sent a compressed event_batch that cannot be unpacked")
  }
}
