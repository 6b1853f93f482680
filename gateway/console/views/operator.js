/** For operators: how many users, runs and workers there are, how fast events go, whether every service answers. Counts only. */

import { html, useEffect, useRef, useState } from "../dom.js"
import { bytes, count, duration, moment, plural, words } from "../format.js"
import { Spinner } from "../icons.js"
import { useNow } from "../stores.js"
import { Problem } from "./problem.js"

const EVERY_MS = 2000
const KEPT = 90
const NAMES = { execution: "Execution", agent_instance: "Agent instances", bridge: "Event log (bridge)" }

export function Operator({ session }) {
  const [told, setTold] = useState(null)
  const [error, setError] = useState(null)
  const rates = useRef({ last: null, log: [], sent: [] })
  useEffect(() => {
    const stop = new AbortController()
    let timer
    const look = async () => {
      // A page that nobody sees asks nobody.
      if (!document.hidden) {
        try {
          const answer = await session.rest.get("/api/operator/overview", { signal: stop.signal })
          note(rates.current, answer)
          setTold(answer)
          setError(null)
        } catch (problem) {
          if (stop.signal.aborted) return
          setError(problem)
        }
      }
      if (!stop.signal.aborted) timer = setTimeout(look, EVERY_MS)
    }
    look()
    return () => {
      stop.abort()
      clearTimeout(timer)
    }
  }, [])
  if (!told) {
    return html`<div class="page" tabindex="0" role="region" aria-label="Figures"><div class="page-body">${error ? html`<${Problem} error=${error} />` : html`<p class="quiet"><${Spinner} /> Asking the services</p>`}</div></div>`
  }
  const sums = sumsOf(told)
  const { gateway } = told
  return html`<div class="page" tabindex="0" role="region" aria-label="Figures"><div class="page-body">
    ${error ? html`<${Problem} title="These figures are no longer fresh." error=${error} />` : null}
    <ul class="tiles" aria-label="Now">
      <${Tile} name="Users with a connection" value=${count(gateway.users)} more=${plural(gateway.connections, "socket")} />
      <${Tile} name="Engines at work" value=${count(sums.engines)} more=${`of ${plural(sums.engineUsers, "user")}; most at once ${count(sums.peak)}`} />
      <${Tile} name="Workers busy" value=${`${count(sums.busy)} / ${count(sums.capacity)}`} more=${`${count(sums.idle)} warm, ${count(sums.waiting)} waited for`} share=${sums.capacity ? sums.busy / sums.capacity : 0} />
      <${Tile} name="Events into the log" value=${rate(rates.current.log)} more="per second"><${Line} values=${rates.current.log} name="Events per second into the log" /><//>
      <${Tile} name="Events to clients" value=${rate(rates.current.sent)} more="per second"><${Line} values=${rates.current.sent} name="Events per second to clients" /><//>
      <${Tile} name="Furthest behind" value=${count(gateway.lag_max_events)} more=${`events; ${count(gateway.lag_events)} in all`} />
    </ul>
    <h2>Services</h2>
    <ul class="services">
      <${Service} name="Gateway" address="this one" good text="Answers" facts=${[
        ["Sent", `${count(gateway.totals.events_sent)} events`],
        ["Held in memory", bytes(gateway.ring_bytes)],
        ["Waits for clients", plural(gateway.stalled, "socket")],
        ["Resets", count(gateway.totals.resets)],
        ["Version", told.version],
      ]} />
      ${Object.entries(told.services).flatMap(([service, copies]) => copies.map((copy) => html`<${Copy} key=${`${service} ${copy.address}`} service=${service} copy=${copy} />`))}
    </ul>
    <h2>Runs of these processes, since their start</h2>
    <ul class="tiles small-tiles" aria-label="Runs">
      <${Tile} name="Admitted" value=${count(sums.runs)} /><${Tile} name="Succeeded" value=${count(sums.ok)} /><${Tile} name="Ended otherwise" value=${count(sums.failed)} />
      <${Tile} name="Wait their turn" value=${count(sums.queued)} /><${Tile} name="Wait for a person" value=${count(sums.asking)} /><${Tile} name="95 of 100 within" value=${duration(sums.p95)} />
    </ul>
    ${
      Object.keys(sums.refusals).length
        ? html`<p class="quiet">Refused: ${Object.entries(sums.refusals)
            .map(([code, number]) => `${code} ${count(number)}`)
            .join(", ")}.</p>`
        : null
    }
    <p class="hint">Asked every two seconds while this is seen. A service that does not answer within two seconds is shown so; the rest stays.</p>
  </div></div>`
}

function Tile({ name, value, more, share, children }) {
  return html`<li class="tile"><span class="tile-name">${name}</span><span class="tile-value">${value}</span>${more ? html`<span class="tile-more">${more}</span>` : null}
    ${share === undefined ? null : html`<svg class="bar" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true"><rect class="bar-track" x="0" y="0" width="100" height="6" /><rect class="bar-fill" x="0" y="0" width=${Math.min(100, share * 100)} height="6" /></svg>`}${children}</li>`
}

function Copy({ service, copy }) {
  const { counts, error } = copy
  if (!counts) {
    return html`<${Service} name=${NAMES[service]} address=${copy.address} text=${`Does not answer: ${error.message}`} facts=${[["What to do", error.advice || "look at its log"]]} />`
  }
  const facts = {
    execution: () => [
      ["Engines", `${count(counts.engines_active)} now, ${count(counts.engines_created)} made`],
      ["Taken over", plural(counts.runs_resumed, "run")],
      ["Attempts lost", count(counts.attempts_lost)],
      ["Memory", bytes(counts.memory_bytes)],
      ["Contexts open", count(counts.contexts_created - counts.contexts_cleaned)],
    ],
    agent_instance: () => [
      ["Workers", `${count(counts.active)} busy, ${count(counts.idle)} warm, of ${count(counts.capacity)}`],
      ["A worker is there after", duration(counts.creation_p95_ms)],
      ["Served warm", `${Math.round(counts.reuse_rate * 100)} %`],
      ["Killed", count(counts.killed)],
      ["Failed", count(counts.failed)],
    ],
    bridge: () => [
      ["Events", count(counts.events_appended)],
      ["In commits", count(counts.commits)],
      ["Known already", count(counts.events_duplicate)],
      ["Users behind", count(counts.users_behind)],
      ["Recoveries", count(counts.recovery_attempts)],
    ],
  }[service]()
  return html`<${Service} name=${NAMES[service]} address=${copy.address} good=${service !== "bridge" || counts.state === "ACTIVE"} text=${service === "bridge" ? html`<${Integration} counts=${counts} />` : "Answers"} facts=${facts} />`
}

/** The bridge's integration with its log: which state it is in, and since when. */
function Integration({ counts }) {
  const now = useNow(true, 2000)
  return html`${words(counts.state).toLowerCase()} for ${duration(now - moment(counts.since))}${counts.last_error ? html`. Last trouble: ${counts.last_error}` : ""}`
}

function Service({ name, address, good, text, facts }) {
  return html`<li class="service"><div class="service-head"><span class=${good ? "state ok" : "state bad"}><span class="dot" aria-hidden="true"></span>${name}</span><code>${address}</code><span class="quiet grow service-text">${text}</span></div>
    <dl class="facts wide">${facts.map(([term, value]) => html`<div><dt>${term}</dt><dd>${value}</dd></div>`)}</dl></li>`
}

/** The last minutes as a line. */
function Line({ values, name }) {
  const most = Math.max(1, ...values)
  const points = values
    .map(
      (value, at) =>
        `${(((at + KEPT - values.length) / (KEPT - 1)) * 100).toFixed(2)},${(29 - (value / most) * 27).toFixed(2)}`,
    )
    .join(" ")
  return html`<svg class="line" viewBox="0 0 100 30" preserveAspectRatio="none" role="img" aria-label=${`${name}: ${count(values.at(-1))}, at most ${count(most)}`}><line x1="0" y1="29.5" x2="100" y2="29.5" /><polyline points=${points} /></svg>`
}

function note(rates, told) {
  const now = performance.now()
  // The services' figures may be another look's, from a moment ago.
  const logAt = now - 1000 * (told.services_age_s ?? 0)
  const log = told.services.bridge?.reduce((sum, copy) => sum + (copy.counts?.events_appended ?? NaN), 0)
  const sent = told.gateway.totals.events_sent
  const { last } = rates
  if (last) {
    // The same answer once more says nothing new.
    if (logAt - last.logAt > 500) push(rates.log, (1000 * (log - last.log)) / (logAt - last.logAt))
    push(rates.sent, (1000 * (sent - last.sent)) / (now - last.now))
  }
  rates.last = { now, logAt, log, sent }
}

function push(values, value) {
  // A process that began anew counts from 0: that is no rate.
  if (Number.isFinite(value) && value >= 0) values.push(value)
  if (values.length > KEPT) values.shift()
}

function rate(values) {
  return values.length ? count(Math.round(values.at(-1))) : "–"
}

function sumsOf({ services }) {
  const all = (service, name) => (services[service] ?? []).reduce((sum, copy) => sum + (copy.counts?.[name] ?? 0), 0)
  const refusals = {}
  for (const copy of services.execution ?? []) {
    for (const [code, number] of Object.entries(copy.counts?.refusals ?? {}))
      refusals[code] = (refusals[code] ?? 0) + number
  }
  return {
    engines: all("execution", "engines_active"),
    engineUsers: all("execution", "total_users"),
    peak: all("execution", "concurrent_peak"),
    runs: all("execution", "runs_total"),
    ok: all("execution", "runs_successful"),
    failed: all("execution", "runs_failed"),
    queued: all("execution", "runs_queued"),
    asking: all("execution", "runs_waiting"),
    refusals,
    p95: Math.max(0, ...(services.execution ?? []).map((copy) => copy.counts?.execution_time_p95_ms ?? 0)),
    busy: all("agent_instance", "active"),
    idle: all("agent_instance", "idle"),
    capacity: all("agent_instance", "capacity"),
    waiting: all("agent_instance", "waiting"),
  }
}
