/** What went wrong, and what to do about it. */

import { html, useEffect, useState } from "../dom.js"
import { pretty } from "../format.js"
import { Icon } from "../icons.js"

const LIMITS = {
  max_engines_per_user: "runs at once",
  max_unended_runs_per_user: "runs that have not ended",
  max_active_runs: "runs of everybody",
}

/**
 * @param {{error: any, title?: string, actions?: {label: string, act: () => void, main?: boolean}[]}} props
 */
export function Problem({ error, title, actions = [] }) {
  const details = error.details ?? {}
  const left = useCountdown(error.retryAfterMs ?? (error.retry_after_s ? error.retry_after_s * 1000 : undefined))
  const fields = details.fields ? Object.entries(details.fields) : []
  return html`<section class="problem" role="alert">
    <span class="problem-sign"><${Icon} name="warn" /></span>
    <div class="problem-text">
      <p class="problem-title">${title ?? sentence(error.message ?? String(error))}</p>
      ${title && error.message ? html`<p>${sentence(error.message)}</p>` : null}
      ${fields.length ? html`<ul>${fields.map(([name, problem]) => html`<li><code>${name}</code> ${String(problem)}</li>`)}</ul>` : null}
      ${details.limit ? html`<p>In use: ${String(details.use ?? "?")} of ${String(details.limit_value ?? "?")} ${LIMITS[details.limit] ?? String(details.limit).replaceAll("_", " ")}.</p>` : null}
      ${error.advice ? html`<p class="advice">${sentence(error.advice)}</p>` : null}
      ${left > 0 ? html`<p class="quiet">Worth another try in ${left} s.</p>` : null}
      ${
        actions.length
          ? html`<div class="row">${actions.map(
              (action) => html`
        <button type="button" class=${action.main ? "button main" : "button"} onClick=${action.act}>${action.label}</button>`,
            )}</div>`
          : null
      }
      ${
        error.code
          ? html`<details class="more"><summary>Details</summary>
        <pre tabindex="0">${pretty({ code: error.code, ...(Object.keys(details).length ? { details } : {}) }, 4000)}</pre></details>`
          : null
      }
    </div>
  </section>`
}

function useCountdown(ms) {
  const [left, set] = useState(Math.ceil((ms ?? 0) / 1000))
  useEffect(() => {
    if (!(ms > 0)) return undefined
    const ends = Date.now() + ms
    const timer = setInterval(() => {
      const seconds = Math.ceil((ends - Date.now()) / 1000)
      set(Math.max(0, seconds))
      if (seconds <= 0) clearInterval(timer)
    }, 500)
    return () => clearInterval(timer)
  }, [ms])
  return left
}

/** A message of the API as a sentence. */
export function sentence(text) {
  const line = String(text).trim()
  if (!line) return ""
  const begun = line[0].toUpperCase() + line.slice(1)
  return /[.!?:…]$/.test(begun) ? begun : `${begun}.`
}
