/** A stream of items handed to callbacks, for who would rather be called than loop. */

import { Notice } from "./notices.js"

/**
 * @param {(signal: AbortSignal) => AsyncIterable<any>} itemsOf
 * @param {import("../index.d.ts").Handlers} handlers Each is awaited before the next item is taken. One that throws
 *   ends the loop, and `onEnd` gets what it threw.
 * @returns {() => void} Ends it.
 */
export function handOn(itemsOf, { onEvent, onNotice, onEnd }) {
  const controller = new AbortController()
  const loop = async () => {
    for await (const item of itemsOf(controller.signal)) {
      await (item instanceof Notice ? onNotice?.(item) : onEvent?.(item))
      // Whoever ended it while the last one was worked on wants no more.
      if (controller.signal.aborted) return
    }
  }
  loop().then(
    () => controller.signal.aborted || onEnd?.(),
    (error) => controller.signal.aborted || onEnd?.(error),
  )
  return () => controller.abort()
}
