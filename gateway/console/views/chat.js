/** A conversation: what was said, what is being done, and the field for the next message. */

import { offersTwo } from "../account.js"
import { html, useEffect, useLayoutEffect, useRef, useState } from "../dom.js"
import { count, plural, unmarked, words } from "../format.js"
import { Icon, Spinner } from "../icons.js"
import { place, threadPath } from "../page.js"
import { useStore } from "../stores.js"
import { Composer } from "./composer.js"
import { Problem } from "./problem.js"
import { DraftCard, RunCard } from "./run.js"

const FIRST = 12
const NEAR_PX = 80
// What is seen of the work above an answer.
const ABOVE_PX = 120

/** @param {{session: any, threadId: string, stopper: {current: any}}} props `stopper` gets what ends the present run. */
export function Chat({ session, facts, threadId, stopper }) {
  const thread = threadId ? session.threads.thread(threadId) : null
  useStore(thread)
  useStore(session)
  const [draft, setDraft] = useState(null)
  const [given, setGiven] = useState(undefined)
  const [shown, setShown] = useState(FIRST)
  useStore(draft)
  useEffect(() => {
    thread?.open()
    setShown(FIRST)
  }, [thread])
  // A conversation that began with this message has a name from here on.
  useEffect(() => {
    if (draft?.threadId && !threadId) {
      setDraft(null)
      // What has been begun meanwhile goes along.
      session.begun.set(draft.threadId, { ...session.begun.get("") })
      session.begun.delete("")
      place.go(threadPath(draft.threadId), { replace: true })
    }
  }, [draft?.threadId])

  const runs = thread?.runs ?? []
  // The oldest: those after it wait for its end.
  const active = runs.find((run) => !run.ended)
  useStore(active)
  stopper.current = active && !active.ended ? () => session.cancel(active).catch(() => {}) : null

  const send = ({ message, agent, params }) => {
    const sent = session.send({ message, agent, params, threadId })
    if (!threadId) setDraft(sent)
  }
  const give = (message, agent = undefined, params = undefined) => setGiven({ message, agent, params, at: Date.now() })
  const forget = (gone) => {
    session.drafts.delete(gone.ref)
    if (thread) {
      thread.drafts = thread.drafts.filter((other) => other !== gone)
      thread.changed()
    }
    if (gone === draft) setDraft(null)
  }
  const edit = (old) => {
    forget(old)
    give(old.request.message, old.request.agent, old.request.params ?? null)
  }
  // Where it was asked elsewhere, with what parameters is not known: then it is put into the field.
  const again = (run) => (run.request ? send(run.request) : give(run.message, run.agent))
  const drafts = [...(thread?.drafts ?? []), ...(draft && !draft.threadId ? [draft] : [])]
  const hidden = Math.max(0, runs.length - shown)
  const empty = !runs.length && !drafts.length

  return html`<div class="chat">
    <${Scroll} key=${threadId} deps=${runs.length + drafts.length}>
      <div class="column" role="log" aria-label="Conversation" aria-live="off">
        ${thread?.left && !hidden ? html`<p class="quiet earlier">${leftOut(thread)}</p>` : null}
        ${hidden ? html`<button type="button" class="link earlier" onClick=${() => setShown(shown + 24)}>Show ${plural(Math.min(24, hidden), "earlier message")}</button>` : null}
        ${
          thread?.error
            ? html`<${Problem} title=${thread.gone ? "There is no such conversation." : "The conversation cannot be read."} error=${thread.error}
          actions=${[{ label: thread.gone ? "Begin a new one" : "Try again", act: () => (thread.gone ? place.go("") : thread.reload()) }]} />`
            : null
        }
        ${thread?.loading && !runs.length ? html`<p class="quiet"><${Spinner} /> Reading the conversation</p>` : null}
        ${empty && !thread ? html`<${Beginning} session=${session} facts=${facts} send=${send} give=${give} />` : null}
        ${empty && thread?.loaded && !thread.error ? html`<p class="quiet">Nothing has been said here.</p>` : null}
        ${runs.slice(hidden).map((run) => html`<${RunCard} key=${run.runId} session=${session} run=${run} again=${again} stoppable=${run !== active} />`)}
        ${drafts.map((waiting) => html`<${DraftCard} key=${waiting.ref} session=${session} draft=${waiting} forget=${forget} edit=${edit} />`)}
      </div>
    <//>
    <div class="dock"><div class="column">
      <${Composer} agents=${session.agents} send=${send} given=${given} focus stop=${stopper.current ?? undefined}
        begun=${session.begun} place=${threadId} usual=${threadId ? usualOf(runs) : session.asked}
        waits=${Boolean(draft && !draft.threadId && !draft.error)} />
    </div></div>
  </div>`
}

/** Who is spoken to in a conversation: the agent of its last run, where one was asked for by name. */
function usualOf(runs) {
  const last = runs.at(-1)
  if (!last) return ""
  return last.request ? (last.request.agent ?? "") : last.agent
}

function leftOut({ left, more }) {
  if (more)
    return `This conversation has more messages than this page reads. The newest are missing, and the first ${count(left)}.`
  return `This conversation is longer than this page shows: its first ${plural(left, "message")} are left out.`
}

/** A region that stays at its end while it grows, unless somebody reads further up, or `deps` says that there is nothing in it. */
export function Scroll({ children, deps }) {
  const outer = useRef(null)
  const inner = useRef(null)
  const stick = useRef(true)
  const last = useRef(0)
  useLayoutEffect(() => {
    stick.current = deps > 0
    const toEnd = () => {
      if (!stick.current) return
      const { scrollHeight, clientHeight } = outer.current
      // An answer that is longer than the page is read from its beginning.
      const answer = inner.current.querySelector(".exchange:last-child [data-anchor]")
      const top = answer?.getClientRects().length
        ? outer.current.scrollTop +
          answer.getBoundingClientRect().top -
          outer.current.getBoundingClientRect().top -
          ABOVE_PX
        : Infinity
      outer.current.scrollTop = last.current = Math.min(scrollHeight - clientHeight, top)
    }
    outer.current.classList.toggle("sticks", stick.current)
    toEnd()
    const watcher = new ResizeObserver(toEnd)
    watcher.observe(inner.current)
    return () => watcher.disconnect()
  }, [deps])
  const moved = () => {
    const { scrollTop, scrollHeight, clientHeight } = outer.current
    // It may have grown since it was scrolled to its end: only who goes up wants to stay where he is.
    if (scrollHeight - scrollTop - clientHeight < NEAR_PX) stick.current = deps > 0
    else if (scrollTop < last.current - 2) stick.current = false
    last.current = scrollTop
    // While it stays at the end the browser must not hold on to what is seen; for who reads further up it does.
    outer.current.classList.toggle("sticks", stick.current)
  }
  return html`<div class="scroll" ref=${outer} onScroll=${moved} tabindex="0" role="region" aria-label="What was said"><div ref=${inner}>${children}</div></div>`
}

/** What a newcomer sees first. */
function Beginning({ session, facts, send, give }) {
  const names = new Map(session.agents.map((agent) => [agent.name, agent]))
  const ideas = []
  if (names.has("supervisor") && names.has("report")) {
    ideas.push({
      title: "Write a report",
      text: "Four agents price a trace of model requests and draw the charts. A few seconds.",
      act: () => send({ message: "Write a report", agent: "" }),
    })
  }
  if (names.get("assistant")?.available) {
    ideas.push({
      title: "Ask the assistant",
      text: "A model that calculates, converts units, and asks before it keeps a note.",
      act: () => give("How many miles are 42 km, and what is 17 % of that?", "assistant"),
    })
  }
  for (const agent of session.agents) {
    if (ideas.length >= 3) break
    if (
      ["supervisor", "assistant"].includes(agent.name) ||
      agent.requires?.length ||
      agent.available === false ||
      (names.has("supervisor") && agent.name === "data")
    )
      continue
    ideas.push({
      title: `Ask ${words(agent.name)}`,
      text: unmarked(agent.description),
      act: () => give("Hello", agent.name),
    })
  }
  if (offersTwo(session, facts))
    ideas.push({
      title: "See two users at once",
      text: "Two sign-ins side by side: each sees its own runs and nothing else.",
      act: () => place.go("two"),
    })
  return html`<section class="beginning">
    <h2>What should the agents do?</h2>
    <p class="lead">Send a message. You see each agent, tool and question as it happens, you may stop it at any time, and you may close this page: the run goes on, and everything is here when you come back.</p>
    <ul class="ideas">${ideas.map(
      (idea) => html`<li><button type="button" class="idea" onClick=${idea.act}>
      <span class="idea-title">${idea.title}<${Icon} name="chevron" /></span><span class="idea-text">${idea.text}</span></button></li>`,
    )}</ul>
  </section>`
}
