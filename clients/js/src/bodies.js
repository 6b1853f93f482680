/** Bodies of answers, read up to a bound: whatever a server sends, no more of it than that is kept. */

import { ProtocolError } from "./errors.js"

/** The most that an answer in JSON may have: a page of the longest messages is less than half of it. */
export const MOST_JSON = 128 * 1024 * 1024
/** The same of an answer that tells an error. */
export const MOST_ERROR = 1024 * 1024

/**
 * All that a stream has.
 * @param {ReadableStream<Uint8Array>} stream
 * @param {number} most Bytes.
 * @param {() => Error} beyond Makes what is thrown when there is more. It is not read on then.
 * @returns {Promise<Uint8Array<ArrayBuffer>>}
 */
export async function gather(stream, most, beyond) {
  const reader = stream.getReader()
  /** @type {Uint8Array[]} */
  const pieces = []
  let size = 0
  try {
    for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
      size += piece.value.length
      if (size > most) throw beyond()
      pieces.push(piece.value)
    }
  } catch (error) {
    reader.cancel().catch(() => undefined)
    throw error
  }
  const whole = new Uint8Array(size)
  let at = 0
  for (const piece of pieces) {
    whole.set(piece, at)
    at += piece.length
  }
  return whole
}

/**
 * @param {Response} response
 * @param {number} most Bytes.
 * @returns {Promise<Uint8Array<ArrayBuffer>>}
 * @throws {ProtocolError} There is more.
 */
export async function bytesOf(response, most) {
  if (!response.body) return new Uint8Array()
  // What was said of the length may be wrong, and is of the packed form where a body is packed.
  return gather(response.body, most, () => new ProtocolError(`the gateway answered with more than ${most} bytes`))
}

/**
 * @param {Response} response
 * @param {number} most Bytes.
 * @returns {Promise<string>}
 * @throws {ProtocolError} There is more.
 */
export async function textOf(response, most) {
  return new TextDecoder().decode(await bytesOf(response, most))
}
