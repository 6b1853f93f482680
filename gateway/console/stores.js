/**
 * Values that views look at. However often they change, those who look are told once for each frame that is drawn:
 * a thousand events that arrive together cost one drawing.
 */

import { useLayoutEffect, useState } from "./dom.js"

const HIDDEN_MS = 200
const dirty = new Set()
let scheduled = false

export class Store {
  constructor() {
    this.version = 0
    this._listeners = new Set()
  }

  /** Calls back after changes; returns what ends that. */
  subscribe(listener) {
    this._listeners.add(listener)
    return () => this._listeners.delete(listener)
  }

  /** Whether anything that is drawn depends on it. */
  get watched() {
    return this._listeners.size > 0
  }

  /** Says that something has changed. */
  changed() {
    this.version += 1
    dirty.add(this)
    if (scheduled) return
    scheduled = true
    // A hidden page draws no frames, and yet its title and its timers go on.
    if (document.hidden) setTimeout(flush, HIDDEN_MS)
    else requestAnimationFrame(flush)
  }
}

function flush() {
  scheduled = false
  const stores = [...dirty]
  dirty.clear()
  for (const store of stores) for (const listener of [...store._listeners]) listener()
}

/** The store; the component is drawn again whenever it changes. */
export function useStore(store) {
  const [, draw] = useState(0)
  const seen = store?.version
  useLayoutEffect(() => {
    if (!store) return undefined
    if (store.version !== seen) draw((count) => count + 1)
    return store.subscribe(() => draw((count) => count + 1))
  }, [store])
  return store
}

/** The time, anew every `ms` while `on`: for durations that grow. */
export function useNow(on, ms = 1000) {
  const [now, set] = useState(Date.now())
  useLayoutEffect(() => {
    if (!on) return undefined
    set(Date.now())
    const timer = setInterval(() => set(Date.now()), ms)
    return () => clearInterval(timer)
  }, [on, ms])
  return now
}
