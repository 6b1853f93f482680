/**
 * A few runs' events out of a user's stream, to the end of each, over lost connections and resets.
 *
 * A reset may take a run's last event with it. How the run stands is then told by `run_state`, or asked for over REST
 * when that does not come; it is over once it has ended and the stream has been quiet for a moment.
 */

import { CarrelError } from "./errors.js"
import { LATE } from "./inbox.js"
import { Notice, Reset, RunStatus } from "./notices.js"

// How long nothing may come before a run that is known to have ended is over without its last event.
const QUIET_MS = 2000
// How long `run_state` may take after a reset before REST is asked, and how often that is.
const TOLD_MS = 5000

/**
 * @param {Iterable<string>} runIds The runs.
 * @param {(ms: number | undefined) => Promise<any>} take The next item of the stream, undefined at its end, LATE when
 *   none comes within so long.
 * @param {(runId: string) => Promise<RunStatus>} look How a run stands.
 * @param {{knownEnded?: Iterable<string>, steady?: () => boolean}} [options] Those that had ended before: their last
 *   event may not be in the log any more; whether the stream is being read: silence says nothing while it is away.
 */
export async function* follow(runIds, take, look, { knownEnded = [], steady = () => true } = {}) {
  const pending = new Set(runIds)
  const ended = new Set(knownEnded)
  /** @type {Set<string>} */
  let untold = new Set()
  let lookAt = 0
  const over = () => [...pending].every((runId) => ended.has(runId))
  while (pending.size) {
    const wait = over() ? QUIET_MS : untold.size ? Math.max(0, lookAt - performance.now()) : undefined
    const item = await take(wait)
    if (item === undefined) return
    if (item === LATE) {
      if (!over()) {
        for (const runId of await endedOf(untold, look)) ended.add(runId)
        lookAt = performance.now() + TOLD_MS
      } else if (steady()) {
        return
      }
      continue
    }
    if (!(item instanceof Notice) && !pending.has(item.run_id)) continue
    yield item
    if (item instanceof Reset) {
      untold = new Set([...pending].filter((runId) => !ended.has(runId)))
      lookAt = performance.now() + TOLD_MS
    } else if (item instanceof RunStatus) {
      untold.delete(item.runId)
      if (item.ended) ended.add(item.runId)
    } else if (!(item instanceof Notice) && item.event_type === "run_completed") {
      pending.delete(item.run_id)
      untold.delete(item.run_id)
    }
  }
}

/**
 * Those of the runs that have ended; runs whose state is known leave `untold`.
 * @param {Set<string>} untold
 * @param {(runId: string) => Promise<RunStatus>} look
 */
async function endedOf(untold, look) {
  const found = []
  for (const runId of [...untold].sort()) {
    let status
    try {
      status = await look(runId)
    } catch (error) {
      if (!(error instanceof CarrelError) || !error.retryable) throw error
      continue
    }
    untold.delete(runId)
    if (status.ended) found.push(runId)
  }
  return found
}
