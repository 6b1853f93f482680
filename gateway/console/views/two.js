/** Two users side by side, each with a sign-in, a connection and a log of their own: what isolation looks like. */

import { BASE, check, keepToken, keptToken } from "../account.js"
import { html, useEffect, useRef, useState } from "../dom.js"
import { count, plural } from "../format.js"
import { Icon } from "../icons.js"
import { Session } from "../session.js"
import { useStore } from "../stores.js"
import { Scroll } from "./chat.js"
import { Composer } from "./composer.js"
import { Connection } from "./connection.js"
import { Problem, sentence } from "./problem.js"
import { DraftCard, RunCard } from "./run.js"
import { SignInForm } from "./sign_in.js"

const SIDES = ["left", "right"]
const NAMES = { left: "alice", right: "bob" }
const SHOWN = 8

export function TwoUsers({ facts }) {
  const [pair, setPair] = useState({ left: null, right: null })
  const open = useRef(new Set())
  const put = (side, session) => setPair((now) => ({ ...now, [side]: session }))
  const start = (token) => {
    const session = new Session(token, BASE).start()
    open.current.add(session)
    return session
  }
  const begin = (side, token) => {
    keepToken(side, token)
    put(side, start(token))
  }
  useEffect(() => {
    let gone = false
    for (const side of SIDES) {
      const token = keptToken(side)
      if (!token) continue
      check(token).then(
        () => {
          if (gone) return
          put(side, start(token))
        },
        () => keepToken(side, ""),
      )
    }
    // Both connections end with this view; what they began goes on.
    return () => {
      gone = true
      for (const session of open.current) session.close()
    }
  }, [])

  const { left, right } = pair
  return html`<div class="two">
    <section class="two-head">
      <p class="lead">Two sign-ins, two connections, two logs. Let both work at once: nothing of one ever reaches the other, and asking for the other's run finds nothing.</p>
      ${left && right ? html`<${Together} left=${left} right=${right} />` : html`<p class="quiet">Sign in on both sides${facts.sign_in_by_name ? "" : ", with a token each"}.</p>`}
    </section>
    <div class="two-sides">${SIDES.map(
      (
        side,
      ) => html`<${Side} key=${side} side=${side} facts=${facts} session=${pair[side]} other=${pair[side === "left" ? "right" : "left"]}
      begin=${(token) => begin(side, token)} end=${() => {
        keepToken(side, "")
        pair[side]?.close()
        put(side, null)
      }} />`,
    )}</div>
  </div>`
}

function Together({ left, right }) {
  const [message, setMessage] = useState("")
  useStore(left)
  const both = (event) => {
    event.preventDefault()
    const text = message.trim() || "Write a report"
    for (const session of [left, right]) session.send({ message: text, agent: "" })
  }
  return html`<form class="row both" onSubmit=${both}>
    <label class="heard" for="both-message">Message for both</label>
    <input id="both-message" class="input grow" placeholder="Write a report" value=${message} onInput=${(event) => setMessage(event.target.value)} />
    <button class="button main">Send from both at once</button>
  </form>`
}

function Side({ side, facts, session, other, begin, end }) {
  const label = side === "left" ? "First user" : "Second user"
  if (!session) {
    return html`<section class="two-side" aria-label=${label}><div class="two-sign-in"><h2>${label}</h2>
      <${SignInForm} facts=${facts} begin=${begin} name=${facts.sign_in_by_name ? NAMES[side] : ""} compact /></div></section>`
  }
  return html`<${Pane} label=${label} session=${session} other=${other} end=${end} />`
}

function Pane({ label, session, other, end }) {
  useStore(session)
  useStore(session.threads)
  useStore(session.figures)
  const [given, setGiven] = useState(undefined)
  const drafts = [...session.drafts.values()]
  const forget = (draft) => {
    session.drafts.delete(draft.ref)
    session.changed()
  }
  const edit = (draft) => {
    forget(draft)
    const { message, agent, params = null } = draft.request
    setGiven({ message, agent, params, at: Date.now() })
  }
  const runs = [...session.runs.values()].filter((run) => run.message || run.count).slice(-SHOWN)
  const { events, strangers } = session.figures
  return html`<section class="two-side" aria-label=${label} data-user=${session.user}>
    <header class="two-side-head">
      <span class="face" aria-hidden="true">${session.user.slice(0, 1).toUpperCase()}</span><h2 class="grow">${session.user}</h2>
      <${Connection} session=${session} />
      <button type="button" class="icon-button" aria-label=${`Sign ${session.user} out here`} title="Sign out here" onClick=${end}><${Icon} name="out" /></button>
    </header>
    ${session.over ? html`<${Problem} error=${session.over} actions=${[{ label: "Sign in again", act: end }]} />` : null}
    <p class="two-figures">${plural(events, "event")} received, <strong class=${strangers ? "wrong" : "right-answer"} data-strangers>${count(strangers)} of anybody else</strong>.</p>
    <${Scroll} deps=${runs.length + drafts.length}>
      <div class="two-runs">
        ${!runs.length && !drafts.length ? html`<p class="quiet">Nothing yet.</p>` : null}
        ${runs.map((run) => html`<${RunCard} key=${run.runId} session=${session} run=${run} />`)}
        ${drafts.map((draft) => html`<${DraftCard} key=${draft.ref} session=${session} draft=${draft} edit=${edit} forget=${forget} />`)}
      </div>
    <//>
    <div class="two-foot">
      ${other ? html`<${Intrude} session=${session} other=${other} />` : null}
      <${Composer} agents=${session.agents} send=${(request) => session.send(request)} given=${given} small />
    </div>
  </section>`
}

/** Asks for the other one's latest run, as this user: the gateway must not know what is meant. */
function Intrude({ session, other }) {
  useStore(other)
  const [answer, setAnswer] = useState(null)
  const run = [...other.runs.values()].at(-1)
  if (!run) return null
  const ask = async () => {
    try {
      await session.rest.run(run.runId)
      setAnswer({ seen: true, text: `${session.user} can see it. That must not be.` })
    } catch (error) {
      setAnswer({ seen: false, text: `The gateway answers ${session.user}: ${error.code}. ${sentence(error.message)}` })
    }
  }
  return html`<div class="intrude"><button type="button" class="link" onClick=${ask}>Try to read ${other.user}'s latest run</button>
    ${answer ? html`<span class=${answer.seen ? "wrong" : "right-answer"} role="status">${answer.seen ? "" : html`<${Icon} name="check" /> `}${answer.text}</span>` : null}</div>`
}
