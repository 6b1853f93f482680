/**
 * What has come and the application has not taken yet: bounded, in order, with the position that each item brings.
 *
 * `taken` is where the application is; `done` is where it was when it asked for more, so everything up to there has
 * been worked on. No connection here: `link.js` fills it, reads `done` and tells the gateway.
 */

import { Latch } from "./waiting.js"

/** @typedef {import("./positions.js").Position} Position */
/** @typedef {{item: any, position: Position, size: number}} Entry */

/** What `take` gives when the time is up. */
export const LATE = Symbol("late")

export class Inbox {
  /**
   * @param {number} window How many items it should hold at most.
   * @param {number} maxSize How much of messages, in UTF-16 units.
   * @param {Position} position Where the application is at the beginning.
   */
  constructor(window, maxSize, position) {
    this._window = window
    this._maxSize = maxSize
    /** @type {Entry[]} */
    this._entries = []
    this._head = 0
    this._size = 0
    this._filled = new Latch()
    this._emptied = new Latch()
    this._waiting = false
    this._ended = false
    /** @type {Error | undefined} */
    this._failure = undefined
    this.taken = position
    this.done = position
    /** The most that it ever held. */
    this.most = 0
    /** Called when the application has worked on something. */
    this.onDone = () => {}
  }

  get length() {
    return this._entries.length - this._head
  }

  /** How many more items it should get. */
  get room() {
    return Math.max(0, this._window - this.length)
  }

  /**
   * Whether it holds all that it should, or `times` as many.
   * @param {number} [times]
   */
  full(times = 1) {
    return this.length >= this._window * times || this._size >= this._maxSize * times
  }

  /**
   * Until at least half of its room is free; or any of it, when it is urgent.
   * @param {() => boolean} urgent
   * @param {AbortSignal} signal
   */
  async halfEmpty(urgent, signal) {
    while (this.length * 2 > this._window || this._size * 2 > this._maxSize) {
      if (urgent() && !this.full()) return
      this._emptied.clear()
      await this._emptied.wait({ signal })
    }
  }

  /** Something may have become urgent. */
  nudge() {
    this._emptied.set()
  }

  /**
   * The application begins at a place that it was told, before anything has come.
   * @param {Position} position
   */
  begin(position) {
    this.taken = position
    this.done = position
  }

  /**
   * @param {any} item What the application is to get; undefined for progress alone.
   * @param {Position} position Where it is once it has taken the item.
   * @param {number} [size] What the item keeps busy.
   */
  put(item, position, size = 0) {
    const last = this._entries[this._entries.length - 1]
    this._size += size
    if (item === undefined && this.length && last.item === undefined) {
      last.position = position
      last.size += size
    } else {
      this._entries.push({ item, position, size })
    }
    this.most = Math.max(this.most, this.length)
    this._filled.set()
  }

  /**
   * Nothing follows what is here.
   * @param {Error | undefined} failure Why; undefined when it was wished.
   */
  end(failure) {
    if (this._ended) return
    this._ended = true
    this._failure = failure
    this._filled.set()
  }

  /** What was taken has been worked on: the application asks for more. */
  settle() {
    if (this.done === this.taken) return
    this.done = this.taken
    this.onDone()
  }

  /**
   * The next item; undefined at the wished end, LATE when the time is up.
   * @param {{ms?: number, signal?: AbortSignal}} [options]
   */
  async take({ ms, signal } = {}) {
    if (this._waiting) {
      throw new TypeError(
        "two loops read one client's events at once: read in one and hand them on from there, or " +
          "follow single runs with client.rest.runEvents",
      )
    }
    signal?.throwIfAborted()
    this.settle()
    const until = ms === undefined ? undefined : performance.now() + ms
    this._waiting = true
    try {
      for (;;) {
        while (this.length) {
          const entry = this._shift()
          this.taken = entry.position
          this._emptied.set()
          if (entry.item !== undefined) return entry.item
          this.settle()
        }
        if (this._ended) break
        this._filled.clear()
        const left = until === undefined ? undefined : Math.max(0, until - performance.now())
        if (!(await this._filled.wait({ ms: left, signal }))) return LATE
      }
    } finally {
      this._waiting = false
    }
    if (this._failure !== undefined) throw this._failure
    return undefined
  }

  _shift() {
    const entry = this._entries[this._head]
    // @ts-expect-error: taken ones are not kept alive until the array is made anew
    this._entries[this._head] = undefined
    this._head += 1
    this._size -= entry.size
    if (this._head === this._entries.length || this._head >= 1024) {
      this._entries = this._entries.slice(this._head)
      this._head = 0
    }
    return entry
  }
}
