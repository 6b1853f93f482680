/** One message and what came of it: who works on it, what they do, what they ask, the answer, the report, what went wrong. */

import { html, useEffect, useRef, useState } from "../dom.js"
import { count, duration, moment, words } from "../format.js"
import { Icon, Spinner } from "../icons.js"
import { Markdown } from "../markdown.js"
import { announcer } from "../page.js"
import { HISTORY_MOST } from "../session.js"
import { runState } from "../states.js"
import { useNow, useStore } from "../stores.js"
import { Problem } from "./problem.js"
import { Question } from "./question.js"
import { Report } from "./report.js"
import { summaryOf, Timeline } from "./timeline.js"

export function State({ status }) {
  const { word, look } = runState(status)
  return html`<span class=${`state ${look}`} data-state=${status}><span class="dot" aria-hidden="true"></span>${word}</span>`
}

/**
 * @param {{session: any, run: any, again?: (run: any) => void, stoppable?: boolean}} props `stoppable`: whether it has
 *   a button of its own that ends it.
 */
export function RunCard({ session, run, again, stoppable = true }) {
  useStore(run)
  useSpoken(run)
  const live = useRef(!run.ended)
  const [open, setOpen] = useState(live.current)
  const texts = run.texts
  const failed = run.error && run.ended && run.status !== "CANCELLED"
  return html`<article class="exchange" data-run=${run.runId} aria-label=${run.message || "Run"}>
    ${run.message ? html`<div class="said" data-role="user"><p class="said-text">${run.message}</p></div>` : null}
    <div class="work">
      <${Head} session=${session} run=${run} open=${open} turn=${() => setOpen(!open)} stoppable=${stoppable} />
      ${open ? html`<${Steps} session=${session} run=${run} />` : null}
      ${run.question && !run.ended ? html`<${Question} key=${run.question.input_id} session=${session} run=${run} question=${run.question} />` : null}
      <div class="answer" data-anchor=${run.ended || undefined} aria-live="polite" aria-busy=${!run.ended} data-role="answer">
        ${texts.map((message) => html`<${Markdown} key=${message.id} text=${message.text} />`)}
      </div>
      ${run.ended && !texts.length && run.result && Object.keys(run.result).length ? html`<${Result} run=${run} />` : null}
      ${run.artifact ? html`<p class="quiet">The whole result is the file ${String(run.artifact.name ?? "")}.</p>` : null}
      ${failed ? html`<${Problem} error=${run.error} actions=${again && run.message ? [{ label: "Send it again", act: () => again(run) }] : []} />` : null}
      ${run.ended ? html`<${Report} key=${run.status} session=${session} run=${run} />` : null}
      ${run.status === "CANCELLED" ? html`<p class="quiet">Stopped${texts.length ? "; what had been written stays." : " before there was an answer."}</p>` : null}
    </div>
  </article>`
}

function Head({ session, run, open, turn, stoppable }) {
  const now = useNow(!run.ended)
  const [error, setError] = useState(null)
  const stop = () => session.cancel(run).then(() => setError(null), setError)
  const agents = [...new Set(run.steps.filter((step) => step.kind === "agent").map((step) => step.name))]
  const status = run.ending && !run.ended ? "FINISHING" : run.status
  return html`<header class="work-head">
    <${State} status=${status} />
    <span class="who">${(agents.length ? agents : [run.agent]).filter(Boolean).map(words).join(" → ")}</span>
    <button type="button" class="fold" aria-expanded=${open} onClick=${turn} data-fold>
      <span class="turn"><${Icon} name="chevron" /></span><span>${summaryOf(run, now) || "Steps"}</span>
    </button>
    ${run.ended || !stoppable ? null : html`<button type="button" class="button small" onClick=${stop} disabled=${run.ending} data-stop><${Icon} name="stop" /> Stop</button>`}
  </header>
  ${!run.ended && !open && run.thought ? html`<p class="thought-line">${run.thought}</p>` : null}
  ${error && !run.ended ? html`<${Problem} title="It could not be stopped." error=${error} />` : null}`
}

function Steps({ session, run }) {
  const [error, setError] = useState(null)
  const load = () => {
    setError(null)
    session.history(run).catch(setError)
  }
  useEffect(() => {
    if (!run.whole) load()
  }, [])
  if (error)
    return html`<${Problem} title="Its steps cannot be read." error=${error} actions=${[{ label: "Try again", act: load }]} />`
  if (run.loading && !run.steps.length) return html`<p class="quiet"><${Spinner} /> Reading its steps</p>`
  if (run.steps.length) {
    return html`${run.partial ? html`<p class="quiet">It has more events than this page reads back: of what was before this page looked, only the first ${count(HISTORY_MOST)} are shown.</p>` : null}
      <${Timeline} run=${run} />`
  }
  // Before it waits it has always begun.
  if (run.ended || run.status === "WAITING") return html`<${Kept} run=${run} />`
  return html`<p class="quiet"><${Spinner} /> ${run.status === "QUEUED" ? "It begins as soon as there is room." : "It is about to begin."}</p>`
}

/** Of a run whose events are not kept any more: its stages, as execution remembers them. */
function Kept({ run }) {
  const stages = run.told?.stages ?? []
  return html`<p class="quiet">Its steps are not kept any more: events last a day.</p>
    ${stages.length ? html`<ol class="kept">${stages.map((stage) => html`<li>${words(stage.agent_name)}: ${String(stage.status).toLowerCase()}, ${duration(moment(stage.ended_at) - moment(stage.started_at)) || "not begun"}</li>`)}</ol>` : null}`
}

function Result({ run }) {
  return html`<div class="table result" tabindex="0" role="region" aria-label="Result"><table><tbody>
    ${Object.entries(run.result)
      .slice(0, 60)
      .map(([name, value]) => html`<tr><th scope="row">${words(name)}</th><td>${plain(value)}</td></tr>`)}
  </tbody></table></div>`
}

function plain(value) {
  const text = typeof value === "string" ? value : JSON.stringify(value)
  return text.length > 2000 ? `${text.slice(0, 2000)}…` : text
}

/** Says to screen readers how a run goes on, once for each turn of it. */
function useSpoken(run) {
  const before = useRef(run.status)
  useEffect(() => {
    if (before.current === run.status) return
    before.current = run.status
    const question = run.question
    if (run.status === "WAITING")
      announcer.say(
        question?.tool_name
          ? `The run asks to approve ${words(question.tool_name)}.`
          : `The run asks: ${question?.prompt ?? "a question"}`,
      )
    else if (run.status === "RUNNING") announcer.say("The run works.")
    else if (run.ended) announcer.say(`${runState(run.status).word} after ${duration(run.elapsed())}.`)
  })
}

/** A message that has not become a run. */
export function DraftCard({ session, draft, forget, edit }) {
  const thread = draft.threadId ? session.threads.thread(draft.threadId) : null
  useStore(draft)
  useStore(thread)
  const { error, request } = draft
  const again = (changes) => session.again(draft, changes)
  const busy = error?.code === "THREAD_BUSY"
  // The other may have ended since.
  const free = busy && !thread?.runs.some((run) => !run.ended)
  const actions = !error
    ? []
    : free
      ? [
          { label: "Send it now", main: true, act: () => again({}) },
          { label: "Discard", act: () => forget(draft) },
        ]
      : busy
        ? [
            { label: "Send it afterwards", main: true, act: () => again({ strategy: "enqueue" }) },
            { label: "Stop the other, run this", act: () => again({ strategy: "interrupt" }) },
            { label: "Discard", act: () => forget(draft) },
          ]
        : [
            { label: "Send again", main: true, act: () => again({}) },
            { label: "Change it", act: () => edit(draft) },
          ]
  return html`<article class="exchange" aria-label=${request.message}>
    <div class="said" data-role="user"><p class="said-text">${request.message}</p></div>
    <div class="work">${
      error
        ? html`<${Problem} error=${busy ? { code: error.code, message: "It has not been sent yet. What shall become of it?", details: error.details } : error}
          title=${free ? "The conversation was busy with a run that has ended." : busy ? "This conversation is busy with another run." : undefined} actions=${actions} />`
        : html`<p class="quiet"><${Spinner} /> Sending${session.connection.phase === "connected" ? "" : ", as soon as the gateway is reached"}</p>`
    }</div>
  </article>`
}
