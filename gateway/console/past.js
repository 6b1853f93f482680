/**
 * Reads what a run did before this page looked. What there is, is shown as it comes: a run may work or wait for hours yet.
 * No drawing, and no network but the stream that is handed in.
 */

// What comes together is put in its place together; the first of it soon.
const FIRST_MS = 100
const MORE_MS = 500
// So long without an event: all that there is has come. Browsers have few connections to one gateway; none is held for this.
const QUIET_MS = 5_000

/**
 * Puts the run's events in their places, from its first to those that came live. Where none came live before it is quiet,
 * the run is not `whole`: to be called again once one has.
 * @param {import("./runs.js").Run} run
 * @param {(signal: AbortSignal) => AsyncIterable<any>} open Gives the run's events from its first, and notices.
 * @param {{most: number, quietMs?: number}} options As many events as are read; how long none may come.
 */
export async function readPast(run, open, { most, quietMs = QUIET_MS }) {
  const controller = new AbortController()
  let events = []
  let count = 0
  let timer
  let quiet
  const put = () => {
    clearTimeout(timer)
    timer = undefined
    run.loading = false
    run.merge(events)
    events = []
    run.changed()
  }
  const heard = () => {
    clearTimeout(quiet)
    quiet = setTimeout(() => controller.abort(), quietMs)
  }
  run.loading = true
  run.changed()
  heard()
  try {
    for await (const event of open(controller.signal)) {
      heard()
      if (!event.event_type) continue
      // From here on they have come live.
      if (event.offset >= run.liveFrom) break
      if (count >= most) {
        run.partial = true
        break
      }
      count += 1
      events.push(event)
      timer ??= setTimeout(put, run.loading ? FIRST_MS : MORE_MS)
      if (event.event_type === "run_completed") break
    }
    run.whole = true
  } catch (error) {
    if (!controller.signal.aborted) throw error
  } finally {
    clearTimeout(quiet)
    controller.abort()
    put()
  }
}
