/** The frame around every view: the way between them, the conversations, the connection, the account. */

import { BASE, offersTwo } from "../account.js"
import { classes, html, useEffect, useRef, useState } from "../dom.js"
import { ago, exact } from "../format.js"
import { Icon, Mark, Spinner } from "../icons.js"
import { announcer, place, shortcutOf, SHORTCUTS, theme, threadPath } from "../page.js"
import { useNow, useStore } from "../stores.js"
import { Chat } from "./chat.js"
import { Connection, useClosing } from "./connection.js"
import { Dialog } from "./dialog.js"
import { History } from "./history.js"
import { Operator } from "./operator.js"
import { Problem } from "./problem.js"
import { TwoUsers } from "./two.js"

const TITLES = { runs: "Runs", two: "Two users", operator: "Operator" }

/** @param {{session: any, facts: any, signOut: () => void}} props */
export function Shell({ session, facts, signOut }) {
  useStore(place)
  useStore(session)
  const [view, id] = place.parts
  const threadId = view === "t" ? id : ""
  const thread = threadId ? session.threads.thread(threadId) : null
  useStore(thread)
  const [menu, setMenu] = useState(false)
  const [dialog, setDialog] = useState(null)
  const stopper = useRef(null)
  const title = TITLES[view] ?? (thread ? thread.title || "Conversation" : "New conversation")

  useEffect(() => {
    document.title = `${title} · Carrel`
  }, [title])
  useEffect(() => {
    setMenu(false)
  }, [view, id])
  // Where the menu is a drawer, the focus goes into it, and back when it closes.
  useEffect(() => {
    const button = document.querySelector(".menu-button")
    if (button.offsetParent === null) return undefined
    const side = document.querySelector(".side")
    if (!menu) {
      if (side.contains(document.activeElement)) button.focus()
      return undefined
    }
    // What is hidden cannot have it: once it is seen.
    const timer = setTimeout(() => side.contains(document.activeElement) || side.querySelector(".nav-link").focus(), 60)
    return () => clearTimeout(timer)
  }, [menu])
  useEffect(() => {
    const acts = {
      stop: () => stopper.current?.(),
      help: () => setDialog({ kind: "help" }),
      new: () => place.go(""),
      write: () => document.querySelector("[data-message]")?.focus(),
      list: () => {
        setMenu(true)
        setTimeout(() => document.querySelector(".threads a")?.focus())
      },
    }
    const press = (event) => {
      const act = acts[shortcutOf(event)]
      if (act) {
        event.preventDefault()
        act()
      } else if (event.key === "Escape") {
        setMenu(false)
      }
    }
    addEventListener("keydown", press)
    return () => removeEventListener("keydown", press)
  }, [])

  return html`<div class=${classes("shell", menu && "menu-open")}>
    <a class="skip" href="#main" onClick=${(event) => {
      event.preventDefault()
      document.getElementById("main").focus()
    }}>Skip to the content</a>
    <${Side} session=${session} view=${view} threadId=${threadId} remove=${(gone) => setDialog({ kind: "remove", thread: gone })}
      signOut=${signOut} help=${() => setDialog({ kind: "help" })} facts=${facts} />
    <div class="shade" onClick=${() => setMenu(false)}></div>
    <div class="stage">
      <header class="top">
        <button type="button" class="icon-button menu-button" aria-label="Menu" aria-expanded=${menu} onClick=${() => setMenu(!menu)}><${Icon} name="menu" /></button>
        <h1 class="top-title">${title}</h1>
        ${thread && thread.loaded ? html`<button type="button" class="icon-button" aria-label="Delete this conversation" title="Delete this conversation" onClick=${() => setDialog({ kind: "remove", thread })}><${Icon} name="trash" /></button>` : null}
        <${Connection} session=${session} />
      </header>
      <main id="main" tabindex="-1">
        ${
          view === "runs"
            ? html`<${History} session=${session} />`
            : view === "two"
              ? html`<${TwoUsers} facts=${facts} />`
              : view === "operator"
                ? html`<${Operator} session=${session} />`
                : html`<${Chat} key=${session.user} session=${session} facts=${facts} threadId=${threadId} stopper=${stopper} />`
        }
      </main>
    </div>
    ${dialog?.kind === "help" ? html`<${Help} close=${() => setDialog(null)} />` : null}
    ${dialog?.kind === "remove" ? html`<${Remove} session=${session} thread=${dialog.thread} close=${() => setDialog(null)} />` : null}
    <${Announcements} />
  </div>`
}

function Side({ session, view, threadId, remove, signOut, help, facts }) {
  const link = (path, name, icon) => {
    const here = (view ?? "") === path
    return html`<li><a class="nav-link" href=${`#/${path}`} aria-current=${here ? "page" : undefined}><${Icon} name=${icon} /> ${name}</a></li>`
  }
  return html`<aside class="side" aria-label="Menu">
    <div class="side-top"><a class="brand" href="#/" aria-label="Carrel, new conversation"><${Mark} /><span>Carrel</span></a></div>
    <nav aria-label="Views"><ul class="nav">
      ${link("", "New conversation", "plus")}
      ${link("runs", "Runs", "history")}
      ${offersTwo(session, facts) || view === "two" ? link("two", "Two users", "people") : null}
      ${session.operator ? link("operator", "Operator", "gauge") : null}
    </ul></nav>
    <${Conversations} session=${session} threadId=${threadId} remove=${remove} />
    <${Account} session=${session} signOut=${signOut} help=${help} facts=${facts} />
  </aside>`
}

function Conversations({ session, threadId, remove }) {
  const threads = useStore(session.threads)
  const now = useNow(true, 30_000)
  return html`<nav class="conversations" aria-label="Conversations">
    <h2 class="side-head">Conversations</h2>
    ${threads.error && !threads.list.length ? html`<${Problem} error=${threads.error} actions=${[{ label: "Try again", act: () => threads.load() }]} />` : null}
    ${!threads.loaded && !threads.error ? html`<p class="quiet side-note"><${Spinner} /> Reading</p>` : null}
    ${threads.loaded && !threads.list.length ? html`<p class="quiet side-note">None yet. They appear here as you go.</p>` : null}
    <ul class="threads">${threads.list.map(
      (thread) => html`<li key=${thread.threadId} class=${classes("thread", thread.threadId === threadId && "here")}>
      <a href=${`#/${threadPath(thread.threadId)}`} aria-current=${thread.threadId === threadId ? "page" : undefined}>
        <span class="thread-title">${thread.title || "Conversation"}</span>
        <span class="thread-when">${thread.active ? html`<span class="dot live" aria-hidden="true"></span><span class="heard">a run is under way, </span>` : null}${ago(thread.updatedAt, now)}</span>
      </a>
      <button type="button" class="icon-button thread-remove" aria-label=${`Delete the conversation ${thread.title}`} onClick=${() => remove(thread)}><${Icon} name="trash" /></button>
    </li>`,
    )}</ul>
    ${threads.next ? html`<button type="button" class="link" onClick=${() => threads.more()}>Show older ones</button>` : null}
  </nav>`
}

function Account({ session, signOut, help, facts }) {
  const [open, setOpen] = useState(false)
  const box = useRef(null)
  useStore(theme)
  useClosing(open, box, () => setOpen(false))
  return html`<div class="account" ref=${box}>
    <button type="button" class="account-button" aria-expanded=${open} aria-haspopup="dialog" onClick=${() => setOpen(!open)}>
      <span class="face" aria-hidden="true">${session.user.slice(0, 1).toUpperCase()}</span><span class="account-name">${session.user}</span><${Icon} name="chevron" />
    </button>
    ${
      open
        ? html`<div class="popover up" role="dialog" aria-label="Account">
      <p class="quiet">Signed in as <strong>${session.user}</strong>${Number.isFinite(session.expiresAt) ? `, until ${exact(session.expiresAt)}` : ""}.</p>
      <fieldset class="switch"><legend>Colours</legend>${["system", "light", "dark"].map(
        (value) => html`<label class=${theme.value === value ? "on" : ""}>
        <input type="radio" name="theme" value=${value} checked=${theme.value === value} onChange=${() => theme.set(value)} />${value[0].toUpperCase() + value.slice(1)}</label>`,
      )}</fieldset>
      <button type="button" class="menu-item" onClick=${() => {
        setOpen(false)
        help()
      }}><${Icon} name="keys" /> Keyboard shortcuts</button>
      ${facts.docs ? html`<a class="menu-item" href=${`${BASE}/docs`} target="_blank" rel="noopener"><${Icon} name="file" /> About the API</a>` : null}
      <button type="button" class="menu-item" onClick=${signOut}><${Icon} name="out" /> Sign out</button>
      <p class="quiet">${facts.version ? `Carrel ${facts.version}` : ""}</p>
    </div>`
        : null
    }
  </div>`
}

function Help({ close }) {
  return html`<${Dialog} title="Keyboard shortcuts" close=${close}>
    <dl class="keys">${SHORTCUTS.map(({ id, keys, does }) => html`<div key=${id}><dt>${does}</dt><dd>${keys.map((key) => html`<kbd>${key}</kbd>`)}</dd></div>`)}</dl>
    <p class="hint">Tab goes from one control to the next everywhere. On a Mac, Ctrl may be ⌘.</p>
  <//>`
}

function Remove({ session, thread, close }) {
  const [error, setError] = useState(null)
  const [busy, setBusy] = useState(false)
  const act = async () => {
    setBusy(true)
    try {
      await session.threads.remove(thread)
      if (place.parts[1] === thread.threadId) place.go("", { replace: true })
      announcer.say("The conversation is deleted.")
      close()
    } catch (problem) {
      setError(problem)
      setBusy(false)
    }
  }
  return html`<${Dialog} title="Delete this conversation?" close=${close}>
    <p>“${thread.title || "Conversation"}”, with its messages, runs and files. This cannot be undone.</p>
    ${error ? html`<${Problem} error=${error} />` : null}
    <div class="row end"><button type="button" class="button" onClick=${close}>Keep it</button><button type="button" class="button danger" disabled=${busy} onClick=${act}>Delete</button></div>
  <//>`
}

function Announcements() {
  useStore(announcer)
  return html`<div class="heard" role="status" aria-live="polite">${announcer.text}</div>`
}
