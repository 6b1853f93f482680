/** A run's steps: agents, their tools and child operations, what they said meanwhile; how long each took, and when. */

import { classes, html, memo, useState } from "../dom.js"
import { duration, exact, plural, pretty, unmarked, words } from "../format.js"
import { Icon, Spinner } from "../icons.js"
import { stepState } from "../states.js"

// As many rows as are drawn at first, and for each wish for more. A run has no bound, a page has.
const FIRST = 80
const MORE = 400
const SIGNS = { agent: "agent", tool: "tool", child: "child", thought: "thought", question: "question", note: "note" }

/** @param {{run: import("../runs.js").Run}} props */
export function Timeline({ run }) {
  const [shown, setShown] = useState(FIRST)
  const steps = run.steps.length > shown ? run.steps.slice(-shown) : run.steps
  const hidden = run.steps.length - steps.length
  const scale = run.ended ? Math.max(1, run.elapsed()) : nice(run.lastAt - run.startedAt)
  return html`<div class="timeline">
    ${hidden ? html`<button type="button" class="link earlier" onClick=${() => setShown(shown + MORE)}>Show ${plural(Math.min(hidden, MORE), "earlier step")} of ${hidden}</button>` : null}
    <ol class="steps" aria-label="Steps">
      ${steps.map((step) => html`<${Step} key=${step.id} step=${step} version=${step.version} from=${run.startedAt} scale=${scale} />`)}
    </ol>
  </div>`
}

const Step = memo(({ step, from, scale }) => {
  const [open, setOpen] = useState(false)
  const facts = step.arguments !== undefined || step.result !== undefined || step.error
  const state = stepState(step.status)
  const name = step.kind === "thought" ? step.name : words(step.name)
  const line = html`
    <span class="step-sign"><${Icon} name=${SIGNS[step.kind]} /></span>
    <span class="step-name">${name}${step.note && step.kind !== "thought" ? html` <span class="step-note">${unmarked(step.note)}</span>` : null}</span>
    ${step.replayed ? html`<span class="tag" title="Taken from the journal of the attempt before; nothing was done again">from journal</span>` : null}
    ${
      step.kind === "thought" || step.kind === "note" || step.kind === "question"
        ? null
        : html`
      <span class="step-time">${duration(step.duration)}</span>
      <${Bar} step=${step} from=${from} scale=${scale} />
      <span class="step-state" title=${state.word}>${state.sign ? html`<${Icon} name=${state.sign} />` : html`<${Spinner} />`}
        <span class="heard">${state.word}</span></span>`
    }`
  return html`<li class=${classes("step", `is-${step.kind}`, `st-${state.look}`, `depth-${Math.min(step.depth, 4)}`)}>
    ${
      facts
        ? html`<button type="button" class="step-line" aria-expanded=${open} onClick=${() => setOpen(!open)}>${line}<span class="turn"><${Icon} name="chevron" /></span></button>`
        : html`<div class="step-line">${line}</div>`
    }
    ${open ? html`<${Facts} step=${step} />` : null}
  </li>`
})

function Facts({ step }) {
  return html`<div class="step-facts">
    ${step.arguments === undefined ? null : html`<h4>Input</h4><pre tabindex="0">${pretty(step.arguments)}</pre>`}
    ${step.result === undefined || step.result === null ? null : html`<h4>Output</h4><pre tabindex="0">${pretty(step.result)}</pre>`}
    ${step.error ? html`<h4>Error</h4><p class="step-error">${step.error.message ?? ""}</p>${step.error.advice ? html`<p class="advice">${step.error.advice}</p>` : null}` : null}
    <p class="quiet">Began ${exact(step.startedAt)}${step.attempt > 1 ? `, attempt ${step.attempt}` : ""}. Secrets are taken out before anything is shown.</p>
  </div>`
}

/** Where in the run's time a step lies. */
function Bar({ step, from, scale }) {
  const left = Math.min(99, Math.max(0, ((step.startedAt - from) / scale) * 100))
  const length = Number.isFinite(step.endedAt) ? ((step.endedAt - step.startedAt) / scale) * 100 : 100 - left
  return html`<svg class="bar" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">
    <rect class="bar-back" x="0" y="2.5" width="100" height="1" /><rect class="bar-fill" x=${left} y="0" width=${Math.max(1, Math.min(length, 100 - left))} height="6" />
  </svg>`
}

/** The next round number above: so that bars move rarely while a run goes on. */
function nice(ms) {
  let scale = 1000
  for (const step of [2, 2.5, 2, 2, 2.5, 2, 2, 2.5, 2, 2, 2.5, 2]) {
    if (scale > ms) return scale
    scale *= step
  }
  return Math.max(scale, ms)
}

/** A run's steps in one line: "4 agents · 4 tools · 2.1 s". */
export function summaryOf(run, now) {
  const agents = run.steps.filter((step) => step.kind === "agent").length
  const parts = []
  if (agents > 1) parts.push(plural(agents, "stage"))
  if (run.tools) parts.push(plural(run.tools, "tool call"))
  if (run.attempts > 1) parts.push(plural(run.attempts, "attempt"))
  parts.push(duration(run.elapsed(now)))
  return parts.filter(Boolean).join(" · ")
}
