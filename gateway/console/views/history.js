/** All of the user's runs, newest first: when, which agent, how it ended, how long it took; and of each where its time went. */

import { classes, html, useEffect, useRef, useState } from "../dom.js"
import { duration, exact, moment, words } from "../format.js"
import { Icon, Spinner } from "../icons.js"
import { place, threadPath } from "../page.js"
import { useStore } from "../stores.js"
import { Problem } from "./problem.js"
import { State } from "./run.js"

const PAGE = 50
const FILTERS = [
  ["", "All"],
  ["QUEUED,RUNNING,WAITING,FINISHING", "Under way"],
  ["SUCCEEDED", "Done"],
  ["FAILED,TIMED_OUT", "Failed"],
  ["CANCELLED", "Stopped"],
]

export function History({ session }) {
  useStore(session)
  const [filter, setFilter] = useState("")
  const [page, setPage] = useState({ runs: [], next: "", loading: true, error: null })
  // Only the latest question counts: an earlier one may be answered after it.
  const asked = useRef(0)
  const load = async (token = "", before = []) => {
    asked.current += 1
    const mine = asked.current
    const show = (next) => mine === asked.current && setPage(next)
    setPage((now) => ({ ...now, loading: true, error: null }))
    try {
      const answer = await session.rest.runs({
        status: filter ? filter.split(",") : undefined,
        pageSize: PAGE,
        pageToken: token || undefined,
      })
      show({ runs: [...before, ...answer.runs], next: answer.next_page_token ?? "", loading: false, error: null })
    } catch (error) {
      show((now) => ({ ...now, loading: false, error }))
    }
  }
  useEffect(() => {
    load()
  }, [filter])
  const { runs, next, loading, error } = page
  return html`<div class="page" tabindex="0" role="region" aria-label="Runs"><div class="page-body">
    <div class="page-head">
      <div class="switch" role="group" aria-label="Which runs">${FILTERS.map(
        ([value, name]) => html`
        <button type="button" class=${filter === value ? "on" : ""} aria-pressed=${filter === value} onClick=${() => setFilter(value)}>${name}</button>`,
      )}</div>
      <button type="button" class="button small" onClick=${() => load()}><${Icon} name="again" /> Refresh</button>
    </div>
    ${error ? html`<${Problem} title="The runs cannot be read." error=${error} actions=${[{ label: "Try again", act: () => load() }]} />` : null}
    ${!loading && !error && !runs.length ? html`<p class="quiet">${filter ? "No such runs." : "No runs yet. They appear here once you have sent a message."}</p>` : null}
    ${runs.length ? html`<ul class="runs" aria-label="Runs">${runs.map((told) => html`<${Row} key=${told.run_id} session=${session} told=${told} />`)}</ul>` : null}
    ${loading ? html`<p class="quiet"><${Spinner} /> Reading</p>` : null}
    ${next && !loading ? html`<button type="button" class="button" onClick=${() => load(next, runs)}>Show older ones</button>` : null}
  </div></div>`
}

function Row({ session, told }) {
  const [open, setOpen] = useState(false)
  // What came live is newer than the list.
  const live = useStore(session.runs.get(told.run_id))
  const status = live && live.count ? live.status : told.status
  const ms =
    live && live.count && live.ended ? live.elapsed() : told.execution_time === null ? NaN : told.execution_time * 1000
  return html`<li class=${classes("run-row", open && "open")}>
    <button type="button" class="run-line" aria-expanded=${open} onClick=${() => setOpen(!open)}>
      <span class="turn"><${Icon} name="chevron" /></span>
      <${State} status=${status} />
      <span class="run-agent">${words(told.agent_name)}</span>
      <span class="run-when">${exact(moment(told.created_at))}</span>
      <span class="run-took">${duration(ms)}</span>
    </button>
    ${open ? html`<${Detail} session=${session} runId=${told.run_id} />` : null}
  </li>`
}

function Detail({ session, runId }) {
  const [told, setTold] = useState(null)
  const [error, setError] = useState(null)
  useEffect(() => {
    session.rest.run(runId).then(setTold, setError)
  }, [])
  if (error) return html`<${Problem} error=${error} />`
  if (!told) return html`<p class="quiet run-detail"><${Spinner} /> Reading</p>`
  return html`<div class="run-detail">
    ${told.error && told.status !== "CANCELLED" ? html`<${Problem} error=${told.error} />` : null}
    ${
      told.stages.length
        ? html`<div class="table" tabindex="0" role="region" aria-label="Stages"><table>
      <thead><tr><th scope="col">Stage</th><th scope="col">State</th><th scope="col" class="right">Attempts</th><th scope="col" class="right">Took</th></tr></thead>
      <tbody>${told.stages.map(
        (
          stage,
        ) => html`<tr><td>${words(stage.agent_name)}${stage.answered_by ? ` (answered by ${words(stage.answered_by)})` : ""}</td><td>${stage.status === "FAILED" && told.status === "CANCELLED" ? "not done" : words(String(stage.status).toLowerCase())}</td>
        <td class="right">${stage.attempt || "–"}</td><td class="right">${duration(moment(stage.ended_at) - moment(stage.started_at)) || "–"}</td></tr>`,
      )}</tbody>
    </table></div>`
        : null
    }
    ${told.timing ? html`<${Timing} timing=${told.timing} />` : null}
    <dl class="facts wide">
      <dt>Run</dt><dd><code>${told.run_id}</code></dd>
      <dt>Began</dt><dd>${exact(moment(told.started_at)) || "not yet"}</dd>
      <dt>Ended</dt><dd>${exact(moment(told.ended_at)) || "not yet"}</dd>
      <dt>Files</dt><dd>${told.artifacts.length ? told.artifacts.map((artifact) => artifact.name).join(", ") : "none"}</dd>
    </dl>
    <button type="button" class="button" onClick=${() => place.go(threadPath(told.thread_id))}><${Icon} name="chat" /> Open the conversation</button>
  </div>`
}

/** Where a run's time went: its parts, largest first. */
function Timing({ timing }) {
  const parts = Object.entries(timing.parts_ms)
    .filter(([, ms]) => ms > 0)
    .sort(([, one], [, other]) => other - one)
    .slice(0, 8)
  const total = Math.max(1, timing.total_ms)
  return html`<figure class="timing"><figcaption>Where its ${duration(timing.total_ms)} went</figcaption>
    <ul>${parts.map(
      ([name, ms]) => html`<li><span class="timing-name">${words(name)}</span>
      <svg class="bar" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true"><rect class="bar-back" x="0" y="2.5" width="100" height="1" /><rect class="bar-fill" x="0" y="0" width=${Math.max(0.5, (ms / total) * 100)} height="6" /></svg>
      <span class="timing-ms">${duration(ms)}</span></li>`,
    )}</ul></figure>`
}
