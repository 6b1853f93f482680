/** What the states of runs and steps are called, and how they look. What is not known is told by its own name, neutrally. */

import { words } from "./format.js"

const RUNS = new Map([
  ["QUEUED", { word: "Waiting its turn", look: "busy" }],
  ["RUNNING", { word: "Working", look: "busy" }],
  ["WAITING", { word: "Needs you", look: "asks" }],
  ["FINISHING", { word: "Finishing", look: "busy" }],
  ["SUCCEEDED", { word: "Done", look: "ok" }],
  ["FAILED", { word: "Failed", look: "bad" }],
  ["CANCELLED", { word: "Stopped", look: "idle" }],
  ["TIMED_OUT", { word: "Out of time", look: "bad" }],
])
const STEPS = new Map([
  ["running", { word: "running", look: "running", sign: "" }],
  ["ok", { word: "done", look: "ok", sign: "check" }],
  ["error", { word: "failed", look: "error", sign: "cross" }],
  ["timeout", { word: "took too long", look: "timeout", sign: "cross" }],
  ["cancelled", { word: "cut off", look: "cancelled", sign: "cross" }],
  ["denied", { word: "refused", look: "denied", sign: "cross" }],
  ["warned", { word: "warning", look: "warned", sign: "warn" }],
  ["waiting", { word: "waits for an answer", look: "waiting", sign: "question" }],
])
const NAME_MOST = 40

/** Of a run: its word, and the class of its look. */
export function runState(status) {
  return RUNS.get(status) ?? { word: named(status), look: "idle" }
}

/** Of a step: its word, the class of its look, and the name of its sign. The class is never a text of an event's. */
export function stepState(status) {
  return STEPS.get(status) ?? { word: named(status), look: "other", sign: "note" }
}

function named(status) {
  return words(String(status ?? "").slice(0, NAME_MOST)) || "unknown"
}
