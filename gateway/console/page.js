/** What belongs to the page and to no user: where it is, its theme, what screen readers are told, its shortcuts. */

import { Store } from "./stores.js"

/** The address after `#`, as parts: `#/t/thread-1` is `["t", "thread-1"]`. */
class Place extends Store {
  constructor() {
    super()
    this._read()
    addEventListener("hashchange", () => {
      this._read()
      this.changed()
    })
  }

  _read() {
    this.parts = location.hash.replace(/^#\/?/, "").split("/").filter(Boolean).map(decode)
  }

  /** Goes there; with `replace` the present place is not in the browser's history. */
  go(path, { replace = false } = {}) {
    const hash = `#/${path}`
    if (location.hash === hash) return
    if (replace) {
      history.replaceState(null, "", hash)
      this._read()
      this.changed()
    } else {
      location.hash = hash
    }
  }
}

function decode(part) {
  try {
    return decodeURIComponent(part)
  } catch {
    return part
  }
}

export const place = new Place()

/** The address of a thread's page. */
export function threadPath(threadId) {
  return `t/${encodeURIComponent(threadId)}`
}

class Theme extends Store {
  /** "light", "dark", or "system" for what the system prefers. */
  get value() {
    return document.documentElement.dataset.theme ?? "system"
  }

  set(value) {
    const root = document.documentElement
    if (value === "system") delete root.dataset.theme
    else root.dataset.theme = value
    try {
      if (value === "system") localStorage.removeItem("carrel.theme")
      else localStorage.setItem("carrel.theme", value)
    } catch {
      // It holds for this page then.
    }
    this.changed()
  }
}

export const theme = new Theme()

/** What is said to screen readers: one thing after the other, none of them lost because two came at once. */
class Announcer extends Store {
  constructor() {
    super()
    this.text = ""
    this._waiting = []
    this._timer = undefined
  }

  say(text) {
    // Only the newest matter when more comes than can be read.
    this._waiting = [...this._waiting.slice(-2), text]
    if (this._timer === undefined) this._next()
  }

  _next() {
    const text = this._waiting.shift()
    this._timer = text === undefined ? undefined : setTimeout(() => this._next(), 1200)
    if (text !== undefined) {
      this.text = text
      this.changed()
    }
  }
}

export const announcer = new Announcer()

/** Every shortcut there is; the dialog lists them. With modifiers all of them, so that none is in the way of typing. */
export const SHORTCUTS = [
  { id: "send", keys: ["Enter"], does: "Send the message" },
  { id: "line", keys: ["Shift", "Enter"], does: "Begin a new line" },
  { id: "stop", keys: ["Ctrl", "."], does: "Stop the run that is under way" },
  { id: "new", keys: ["Alt", "Shift", "N"], does: "Begin a new conversation" },
  { id: "write", keys: ["Alt", "Shift", "M"], does: "Go to the message field" },
  { id: "list", keys: ["Alt", "Shift", "L"], does: "Go to the list of conversations" },
  { id: "help", keys: ["Ctrl", "/"], does: "Show this list" },
  { id: "close", keys: ["Esc"], does: "Close a dialog or the menu" },
]

/** The id of the shortcut that a key event is, if it is one that holds everywhere. */
export function shortcutOf(event) {
  const control = event.ctrlKey || event.metaKey
  if (control && !event.altKey && event.key === ".") return "stop"
  if (control && !event.altKey && event.key === "/") return "help"
  if (event.altKey && event.shiftKey && !control) return { KeyN: "new", KeyM: "write", KeyL: "list" }[event.code]
  return undefined
}
