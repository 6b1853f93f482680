/**
 * `@ag-ui/client`'s HttpAgent for a Carrel gateway: a run is read to its end, over as many connections as it takes.
 *
 * Coming back is `fetch.js`'s; what events mean, and in which order they may come, stays @ag-ui/client's.
 */

import { HttpAgent } from "@ag-ui/client"

import { resumingFetch } from "./fetch.js"
import { cancelAddress, textOf } from "./requests.js"

export { resumingFetch } from "./fetch.js"

/** An agent of Carrel's. Beside HttpAgent's settings it takes those of `resumingFetch`, as `resume`. */
export class CarrelHttpAgent extends HttpAgent {
  /** @param {import("./index.js").CarrelHttpAgentConfig} config */
  constructor(config) {
    const { resume, ...rest } = config
    super(rest)
    const base = rest.fetch ?? ((url, init) => fetch(url, init))
    /** Without coming back: for requests beside the stream. */
    this.plainFetch = base
    /** The gateway's name of the run that was begun last; empty before its first event. */
    this.carrelRunId = ""
    this.fetch = resumingFetch(base, { ...resume, onRun: (runId) => (this.carrelRunId = runId) })
    this.resume = resume
  }

  /**
   * Ask the gateway to end the run that was begun last. `abortRun` ends the reading only.
   * @param {string} [reason]
   */
  async cancelRun(reason) {
    if (!this.carrelRunId) throw new Error("no run has begun: there is nothing to cancel")
    const address = cancelAddress(this.url, this.carrelRunId, globalThis.location?.href)
    const token = await this.resume?.token?.()
    const headers = { ...this.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) }
    const body = JSON.stringify(reason === undefined ? {} : { reason })
    const response = await this.plainFetch(address, {
      method: "POST",
      headers: { ...headers, "Content-Type": "application/json" },
      body,
    })
    if (!response.ok) throw new Error(`HTTP ${response.status}: ${await textOf(response)}`)
  }

  clone() {
    const copy = /** @type {CarrelHttpAgent} */ (super.clone())
    copy.plainFetch = this.plainFetch
    copy.carrelRunId = ""
    copy.resume = this.resume
    copy.fetch = resumingFetch(copy.plainFetch, { ...this.resume, onRun: (runId) => (copy.carrelRunId = runId) })
    return copy
  }
}
