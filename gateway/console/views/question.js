/** A question of a run, or a call to approve: asked where the run is, answered there. */

import { html, useId, useState } from "../dom.js"
import { aboutCall, exact, moment, pretty, words } from "../format.js"
import { Icon, Spinner } from "../icons.js"
import { Problem } from "./problem.js"

// Whoever allows a call has all of it before him: no event is larger.
const ARGUMENTS_MOST = 4_000_000

/**
 * @param {{session: any, run: any, question: any}} props The question by itself: the run may have gone on already, and have
 *   none, when this is drawn for the last time.
 */
export function Question({ session, run, question }) {
  const [busy, setBusy] = useState(false)
  const [error, setError] = useState(null)
  const title = useId()
  const give = async (value) => {
    setBusy(true)
    setError(null)
    try {
      await session.answer(run, question.input_id, value)
    } catch (problem) {
      // The run may not have turned to waiting yet: it is asking already, and takes the answer a moment later.
      if (problem.code === "NOT_WAITING" && run.question === question) {
        setTimeout(() => run.question === question && give(value), 300)
        return
      }
      setError(problem)
    }
    setBusy(false)
  }
  const approval = Boolean(question.tool_name)
  const about = approval ? aboutCall(question) : ""
  const expires = moment(question.expires_at)
  return html`<section class="question" aria-labelledby=${title}>
    <p class="question-title" id=${title}><${Icon} name="question" /> <span>${approval ? html`May the agent use <strong>${words(question.tool_name)}</strong>?` : question.prompt || "The run needs an answer."}</span></p>
    ${about ? html`<p class="quiet">${about}</p>` : null}
    ${approval && question.arguments ? html`<pre tabindex="0" aria-label="With these arguments">${pretty(question.arguments, ARGUMENTS_MOST)}</pre>` : null}
    ${approval ? html`<${Approval} give=${give} busy=${busy} />` : html`<${Answer} schema=${question.schema ?? {}} give=${give} busy=${busy} label=${title} />`}
    ${error ? html`<${Problem} error=${error} />` : null}
    <p class="hint">The run waits and holds nothing meanwhile${Number.isFinite(expires) ? `, until ${exact(expires)}` : ""}. You may come back later, or answer from another device.</p>
  </section>`
}

function Approval({ give, busy }) {
  const [reason, setReason] = useState("")
  return html`<label class="field"><span>Reason, if you refuse (optional)</span>
      <input value=${reason} maxlength="2048" onInput=${(event) => setReason(event.target.value)} /></label>
    <div class="row">
      <button type="button" class="button main" disabled=${busy} onClick=${() => give(true)}>${busy ? html`<${Spinner} />` : null} Allow once</button>
      <button type="button" class="button" disabled=${busy} onClick=${() => give(reason.trim() ? { approved: false, reason: reason.trim() } : false)}>Refuse</button>
    </div>`
}

function Answer({ schema, give, busy, label }) {
  const [text, setText] = useState(typeof schema.default === "string" ? schema.default : "")
  const [wrong, setWrong] = useState("")
  const choices = Array.isArray(schema.enum) ? schema.enum : schema.type === "boolean" ? [true, false] : undefined
  if (choices && choices.length <= 12) {
    return html`<div class="row" role="group" aria-labelledby=${label}>
      ${choices.map((choice) => html`<button type="button" class="button" disabled=${busy} onClick=${() => give(choice)}>${nameOf(choice)}</button>`)}
    </div>`
  }
  const kind = kindOf(schema)
  const submit = (event) => {
    event.preventDefault()
    const read = READ[kind](text)
    setWrong(read.wrong ?? "")
    if (!read.wrong) give(read.value)
  }
  const common = {
    value: text,
    required: true,
    "aria-labelledby": label,
    onInput: (event) => setText(event.target.value),
  }
  return html`<form onSubmit=${submit}>
    ${
      kind === "number"
        ? html`<input class="input" type="number" step=${schema.type === "integer" ? 1 : "any"} min=${schema.minimum} max=${schema.maximum} ...${common} />`
        : html`<textarea class="input" rows=${kind === "json" ? 5 : 2} spellcheck=${kind !== "json"} maxlength=${schema.maxLength} ...${common}></textarea>`
    }
    ${kind === "json" ? html`<details class="more"><summary>As JSON that fits this schema</summary><pre tabindex="0">${pretty(schema, 4000)}</pre></details>` : null}
    ${wrong ? html`<p class="wrong" role="alert">${wrong}</p>` : null}
    <div class="row"><button class="button main" disabled=${busy}>${busy ? html`<${Spinner} />` : null} Answer</button></div>
  </form>`
}

const READ = {
  text: (text) => ({ value: text }),
  number: (text) =>
    text.trim() && Number.isFinite(Number(text)) ? { value: Number(text) } : { wrong: "Write a number." },
  json: (text) => {
    try {
      return { value: JSON.parse(text) }
    } catch (error) {
      return { wrong: `This is not JSON: ${error.message}` }
    }
  },
}

function kindOf({ type }) {
  if (type === "number" || type === "integer") return "number"
  return type === undefined || type === "string" ? "text" : "json"
}

function nameOf(choice) {
  if (choice === true) return "Yes"
  if (choice === false) return "No"
  return typeof choice === "string" ? choice : JSON.stringify(choice)
}
