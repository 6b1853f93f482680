/**
 * Waiting that a signal can end: for a time, for a latch, for a promise. Every wait removes what it has registered.
 */

// What a timer takes: a longer wait would end at once.
const LONGEST_MS = 2 ** 30

/**
 * Something that is so or not, and can be waited for. Several may wait; each is told.
 */
export class Latch {
  constructor() {
    this.isSet = false
    /** @type {Set<() => void>} */
    this._waiting = new Set()
  }

  set() {
    this.isSet = true
    for (const tell of [...this._waiting]) tell()
  }

  clear() {
    this.isSet = false
  }

  /**
   * @param {{ms?: number, signal?: AbortSignal}} [options] How long at most; what ends it.
   * @returns {Promise<boolean>} Whether it is set; false when the time is up.
   */
  wait({ ms, signal } = {}) {
    if (signal?.aborted) return Promise.reject(signal.reason)
    if (this.isSet) return Promise.resolve(true)
    return new Promise((resolve, reject) => {
      const end = (/** @type {() => void} */ how) => {
        clearTimeout(timer)
        this._waiting.delete(told)
        signal?.removeEventListener("abort", aborted)
        how()
      }
      const told = () => end(() => resolve(true))
      const aborted = () => end(() => reject(signal?.reason))
      const timer = ms === undefined || ms > LONGEST_MS ? undefined : setTimeout(() => end(() => resolve(false)), ms)
      this._waiting.add(told)
      signal?.addEventListener("abort", aborted)
    })
  }
}

/**
 * @param {number} ms How long; one longer than a timer takes is cut to that, about twelve days.
 * @param {AbortSignal} [signal]
 * @returns {Promise<void>}
 */
export async function sleep(ms, signal) {
  await new Latch().wait({ ms: Math.min(ms, LONGEST_MS), signal })
}

/**
 * What a promise brings, unless the signal comes before it. The promise itself goes on.
 * @template T
 * @param {Promise<T>} promise
 * @param {AbortSignal} [signal]
 * @returns {Promise<T>}
 */
export function unlessAborted(promise, signal) {
  if (!signal) return promise
  return new Promise((resolve, reject) => {
    const aborted = () => reject(signal.reason)
    if (signal.aborted) aborted()
    else signal.addEventListener("abort", aborted, { once: true })
    promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", aborted))
  })
}

/**
 * A signal that is aborted with any of these, or when the time is up; call `done` when it is not needed any more.
 * @param {(AbortSignal | undefined)[]} signals
 * @param {number} [ms]
 * @param {() => unknown} [late] Makes the reason for the time being up.
 * @returns {{signal: AbortSignal, done: () => void}}
 */
export function anyOf(signals, ms, late = () => new DOMException("the time is up", "TimeoutError")) {
  const controller = new AbortController()
  const given = signals.filter((signal) => signal !== undefined)
  const abort = (/** @type {Event} */ event) => controller.abort(/** @type {AbortSignal} */ (event.target).reason)
  const timer = ms === undefined ? undefined : setTimeout(() => controller.abort(late()), Math.min(ms, LONGEST_MS))
  for (const signal of given) {
    if (signal.aborted) controller.abort(signal.reason)
    else signal.addEventListener("abort", abort)
  }
  const done = () => {
    clearTimeout(timer)
    for (const signal of given) signal.removeEventListener("abort", abort)
  }
  return { signal: controller.signal, done }
}
