/** How long to wait before trying again: jitter under a bound that grows, for a bounded number of times. */

export class Backoff {
  /**
   * @param {{attempts?: number, firstMs?: number, longestMs?: number, factor?: number, steady?: number,
   *   random?: () => number}} [options] How many tries in a row may fail, the first one included (Infinity: never give
   *   up); bound of the first wait and of every wait; how much longer each bound is than the one before; the part of a
   *   bound that is always waited, 0 to 1, the rest is jitter.
   */
  constructor({ attempts = 12, firstMs = 100, longestMs = 5000, factor = 2, steady = 0, random = Math.random } = {}) {
    this.attempts = attempts
    this.firstMs = firstMs
    this.longestMs = longestMs
    this.factor = factor
    this.steady = steady
    this._random = random
  }

  /**
   * @param {Backoff | import("../index.d.ts").BackoffOptions | undefined} given
   * @returns {Backoff}
   */
  static of(given) {
    return given instanceof Backoff ? given : new Backoff(/** @type {import("../index.d.ts").BackoffOptions} */ (given))
  }

  /**
   * @param {number} failures In a row: 1 after the first.
   * @param {number} [atLeastMs] What the peer asked for; the jitter comes on top of it.
   * @returns {number | undefined} Milliseconds to wait; undefined when it is time to give up.
   */
  delayMs(failures, atLeastMs = 0) {
    if (failures >= this.attempts) return undefined
    const bound = Math.min(this.longestMs, this.firstMs * this.factor ** Math.min(failures - 1, 30))
    return atLeastMs + bound * (this.steady + (1 - this.steady) * this._random())
  }
}
