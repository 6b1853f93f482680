/** Where a message is written: the text, the agent that is to have it, parameters for those who want them. */

import { html, useEffect, useId, useLayoutEffect, useRef, useState } from "../dom.js"
import { unmarked, words } from "../format.js"
import { Icon } from "../icons.js"

const EMPTY = { message: "", agent: null, params: "", more: false }

/**
 * @param {{agents: any[], send: (request: {message: string, agent: string, params?: object}) => void, stop?: () => void,
 *   given?: {message: string, agent?: string, params?: object | null, at: number}, focus?: boolean, small?: boolean,
 *   begun?: Map<string, any>, place?: string, usual?: string, waits?: boolean}} props
 *   `stop` ends the run that is under way; `given` is put into the fields, null for no parameters; `begun` keeps what was
 *   begun in each place and not sent; `usual` is the agent of whoever has chosen none; `waits` keeps what is written
 *   until the message before it has begun its conversation.
 */
export function Composer({
  agents,
  send,
  stop,
  given,
  focus = false,
  small = false,
  begun,
  place = "",
  usual = "",
  waits = false,
}) {
  const kept = begun?.get(place)
  const [message, setMessage] = useState(kept?.message ?? "")
  const [chosen, setAgent] = useState(kept?.agent ?? null)
  const [params, setParams] = useState(kept?.params ?? "")
  const [more, setMore] = useState(kept?.more ?? false)
  const agent = chosen ?? (agents.some((known) => known.name === usual && known.available !== false) ? usual : "")
  const [wrong, setWrong] = useState("")
  const field = useRef(null)
  const id = useId()
  useEffect(() => {
    if (focus) field.current?.focus()
  }, [])
  const at = useRef(place)
  useLayoutEffect(() => {
    if (at.current === place) {
      begun?.set(place, { message, agent: chosen, params, more })
      return
    }
    at.current = place
    const found = begun?.get(place) ?? EMPTY
    setMessage(found.message)
    setAgent(found.agent)
    setParams(found.params)
    setMore(found.more)
    setWrong("")
  }, [place, message, chosen, params, more])
  useEffect(() => {
    if (!given) return
    setMessage(given.message)
    setAgent(given.agent ?? null)
    if (given.params !== undefined) {
      setParams(given.params ? JSON.stringify(given.params, null, 2) : "")
      setMore(Boolean(given.params))
      setWrong("")
    }
    field.current?.focus()
  }, [given?.at])
  useEffect(() => {
    const area = field.current
    if (!area) return
    // As high as its text, up to what the style allows.
    area.style.height = "auto"
    area.style.height = `${area.scrollHeight + 2}px`
  }, [message])

  const submit = (event) => {
    event?.preventDefault()
    const text = message.trim()
    if (!text || waits) {
      field.current?.focus()
      return
    }
    const read = parse(params)
    setWrong(read.wrong ?? "")
    if (read.wrong) return
    send({ message: text, agent, params: read.value })
    setMessage("")
  }
  const press = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) submit(event)
  }
  return html`<form class="composer" onSubmit=${submit}>
    <div class="composer-box">
      <label class="heard" for=${`${id}-message`}>Message</label>
      <textarea ref=${field} id=${`${id}-message`} class="composer-text" data-message rows="1" placeholder="Write a message" value=${message} maxlength="250000"
        onInput=${(event) => setMessage(event.target.value)} onKeyDown=${press}></textarea>
      <div class="composer-tools">
        <label class="heard" for=${`${id}-agent`}>Agent</label>
        <select id=${`${id}-agent`} class="chooser" value=${agent} onChange=${(event) => setAgent(event.target.value)}>
          <option value="">Default agent</option>
          ${agents.map((known) => html`<option value=${known.name} disabled=${known.available === false} title=${unmarked(known.description)}>${words(known.name)}</option>`)}
        </select>
        ${small ? null : html`<button type="button" class="icon-button" aria-expanded=${more} aria-label="Parameters" title="Parameters (JSON)" onClick=${() => setMore(!more)}><${Icon} name="braces" /></button>`}
        <span class="grow"></span>
        ${stop ? html`<button type="button" class="button small" onClick=${stop} data-stop><${Icon} name="stop" /> Stop</button>` : null}
        <button type="submit" class="send" aria-label="Send" title="Send (Enter)" disabled=${!message.trim() || waits}><${Icon} name="send" /></button>
      </div>
    </div>
    ${
      more
        ? html`<label class="field params" for=${`${id}-params`}><span>Parameters, as a JSON object</span>
      <textarea id=${`${id}-params`} rows="3" spellcheck=${false} placeholder=${'{"min_large_share": 0.2}'} value=${params} onInput=${(event) => setParams(event.target.value)}></textarea></label>`
        : null
    }
    ${wrong ? html`<p class="wrong" role="alert">${wrong}</p>` : null}
  </form>`
}

function parse(text) {
  if (!text.trim()) return { value: undefined }
  try {
    const value = JSON.parse(text)
    if (value && typeof value === "object" && !Array.isArray(value)) return { value }
    return { wrong: 'The parameters must be one JSON object, such as {"steps": 3}.' }
  } catch (error) {
    return { wrong: `The parameters are not JSON: ${error.message}` }
  }
}
