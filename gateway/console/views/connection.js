/** How the connection does: one word that is always seen, and the facts behind it. */

import { html, useEffect, useRef, useState } from "../dom.js"
import { count, duration, plural } from "../format.js"
import { useNow, useStore } from "../stores.js"

export function Connection({ session }) {
  useStore(session)
  const [open, setOpen] = useState(false)
  useStore(session.figures)
  const now = useNow(true)
  const box = useRef(null)
  const state = wordsOf(session, now)
  useClosing(open, box, () => setOpen(false))
  return html`<div class="connection" ref=${box}>
    <button type="button" class=${`pill ${state.kind}`} aria-expanded=${open} aria-haspopup="dialog" onClick=${() => setOpen(!open)} data-connection=${session.connection.phase}>
      <span class="dot" aria-hidden="true"></span><span class="pill-word">${state.word}</span>
    </button>
    ${open ? html`<div class="popover" role="dialog" aria-label="Connection"><${Facts} session=${session} now=${now} state=${state} /></div>` : null}
  </div>`
}

function Facts({ session, now, state }) {
  const { health, figures, connection } = session
  return html`<p><strong>${state.word}.</strong> ${state.more}</p>
    <dl class="facts">
      <dt>Behind</dt><dd>${plural(health.behind + health.held, "event")}</dd>
      <dt>Events here</dt><dd>${count(figures.events)}</dd>
      <dt>Last event</dt><dd>${Number.isFinite(figures.lastAt) ? `${duration(now - figures.lastAt)} ago` : "none yet"}</dd>
      <dt>Last sign of life</dt><dd>${health.lastHeardMs === undefined ? "–" : `${duration(health.lastHeardMs)} ago`}</dd>
      <dt>Reconnected</dt><dd>${plural(health.reconnects, "time")}</dd>
    </dl>
    ${connection.phase === "waiting" ? html`<button type="button" class="button" onClick=${() => session.client.wake()}>Try now</button>` : null}`
}

function wordsOf(session, now) {
  const { phase, reason, until } = session.connection
  if (phase === "connected") {
    const behind = session.health.behind + session.health.held
    if (behind > 20)
      return {
        kind: "busy",
        word: `${count(behind)} behind`,
        more: "Events are on their way; each comes once and in order.",
      }
    return { kind: "ok", word: "Live", more: "What happens is shown as it happens." }
  }
  if (phase === "waiting") {
    const seconds = Math.max(0, Math.ceil((until - now) / 1000))
    return {
      kind: "bad",
      word: seconds ? `Reconnecting in ${seconds} s` : "Reconnecting",
      more: `${capital(reason)}. Runs go on meanwhile; nothing is lost.`,
    }
  }
  if (phase === "closed") return { kind: "bad", word: "Closed", more: capital(reason) }
  return { kind: "busy", word: "Connecting", more: "" }
}

const capital = (text) => (text ? text[0].toUpperCase() + text.slice(1) : "")

/** Calls back when somebody presses Escape or clicks elsewhere; the focus goes back to the button. */
export function useClosing(open, box, close) {
  useEffect(() => {
    if (!open) return undefined
    const key = (event) => {
      if (event.key !== "Escape") return
      event.stopPropagation()
      close()
      box.current?.querySelector("button")?.focus()
    }
    const press = (event) => box.current?.contains(event.target) || close()
    document.addEventListener("keydown", key)
    document.addEventListener("pointerdown", press)
    return () => {
      document.removeEventListener("keydown", key)
      document.removeEventListener("pointerdown", press)
    }
  }, [open])
}
