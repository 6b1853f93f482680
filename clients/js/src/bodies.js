/** Bodies of answers, read up to a bound: whatever a server sends, no more of it than that is kept. */

import { ProtocolError } from "./errors.js"

/** The most that an answer in JSON may have: a page of the longest messages is less than half of it. */
export const MOST_JSON = 128 * 1024 * 1024
/** The same of an answer that tells an error. */
export const MOST_ERROR = 1024 * 1024

/**
 * @param {Response} response
 * @param {number} most Bytes.
 * @returns {Promise<Uint8Array<ArrayBuffer>>}
 * @throws {ProtocolError} There is more.
 */
export async function bytesOf(response, most) {
  const body = response.body?.getReader()
  if (body === undefined) return new Uint8Array()
  /** @type {Uint8Array[]} */
  const pieces = []
  let size = 0
  try {
    // What was said of the length may be wrong, and is of the packed form where a body is packed.
    for (let piece = await body.read(); !piece.done; piece = await body.read()) {
      size += piece.value.length
      if (size > most) throw new ProtocolError(`the gateway answered with more than ${most} bytes`)
      pieces.push(piece.value)
    }
  } catch (error) {
    body.cancel().catch(() => undefined)
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
 * @returns {Promise<string>}
 * @throws {ProtocolError} There is more.
 */
export async function textOf(response, most) {
  return new TextDecoder().decode(await bytesOf(response, most))
}
