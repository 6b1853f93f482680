/** Times, durations, numbers and JSON as people read them. */

const DAY_MS = 86_400_000
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" })
const seconds = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" })
const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" })
const whole = new Intl.NumberFormat(undefined, { maximumFractionDigits: 0 })

/** "38 ms", "1.9 s", "2 min 5 s", "3 h 12 min". */
export function duration(ms) {
  if (!Number.isFinite(ms)) return ""
  if (ms <= 0) return "0 ms"
  if (ms < 1) return "< 1 ms"
  if (ms < 995) return `${Math.round(ms)} ms`
  if (ms < 59_950) return `${(ms / 1000).toFixed(1)} s`
  const total = Math.round(ms / 1000)
  if (total < 3600) return `${Math.floor(total / 60)} min ${total % 60} s`
  return `${Math.floor(total / 3600)} h ${Math.floor((total % 3600) / 60)} min`
}

/** Milliseconds since 1970 of a time as the API writes it; NaN when there is none. */
export function moment(text) {
  return text ? Date.parse(text) : NaN
}

/** "14:05" today, else "3 Mar". */
export function when(time, now = Date.now()) {
  if (!Number.isFinite(time)) return ""
  const today = new Date(now).toDateString() === new Date(time).toDateString()
  return today ? clock.format(time) : day.format(time)
}

/** "3 Mar, 14:05:09". */
export function exact(time) {
  return Number.isFinite(time) ? `${day.format(time)}, ${seconds.format(time)}` : ""
}

/** "now", "5 min ago", "2 h ago", then the day. */
export function ago(time, now = Date.now()) {
  if (!Number.isFinite(time)) return ""
  const ms = now - time
  if (ms < 60_000) return "now"
  if (ms < 3_600_000) return `${Math.floor(ms / 60_000)} min ago`
  if (ms < DAY_MS) return `${Math.floor(ms / 3_600_000)} h ago`
  return day.format(time)
}

/** 12345 as "12,345". */
export function count(value) {
  return Number.isFinite(value) ? whole.format(value) : "–"
}

/** 51306 as "50 KiB". */
export function bytes(value) {
  if (!Number.isFinite(value)) return "–"
  if (value < 1024) return `${value} B`
  if (value < 1024 * 1024) return `${Math.round(value / 1024)} KiB`
  return `${(value / 1024 / 1024).toFixed(1)} MiB`
}

/** "1 tool", "3 tools". */
export function plural(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`
}

// Signs that are not seen, or that turn the order of others: with them a text can look like another one.
const UNSEEN = /[\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g

/**
 * A value as JSON on many lines, what is not seen in it by its number; at most `most` characters, saying so when there
 * were more.
 */
export function pretty(value, most = 20_000) {
  let text
  try {
    text = JSON.stringify(value, null, 2) ?? ""
  } catch {
    return "(cannot be shown)"
  }
  text = text.replace(UNSEEN, (sign) => `\\u${sign.charCodeAt(0).toString(16).padStart(4, "0")}`)
  return text.length <= most ? text : `${text.slice(0, most)}\n… ${count(text.length - most)} more characters`
}

/** A name for people: "load_trace" as "load trace". */
export function words(name) {
  return String(name ?? "").replaceAll("_", " ")
}

/** What the question about a call says beyond the call's name, which stands before it already: "Allow mail: Sends it." is "Sends it." */
export function aboutCall({ prompt, tool_name: name }) {
  const text = String(prompt ?? "").trim()
  const known = `Allow ${name}`
  if (text === known) return ""
  return text.startsWith(`${known}:`) ? text.slice(known.length + 1).trim() : text
}

/** A description as its author wrote it, without the marks of code. */
export function unmarked(text) {
  return String(text ?? "").replaceAll("`", "")
}

/** Text that fits: cut at a word, with an ellipsis. */
export function shorten(text, most) {
  const line = String(text ?? "")
    .replace(/\s+/g, " ")
    .trim()
  if (line.length <= most) return line
  const cut = line.slice(0, most)
  return `${cut.slice(0, Math.max(cut.lastIndexOf(" "), most - 12))}…`
}
