import { HttpAgent, type HttpAgentConfig, type HttpAgentFetchFn } from "@ag-ui/client"

/** How a stream comes back after a cut. */
export interface ResumeOptions {
  /** How often it is tried in a row without an event in between; 30. */
  attempts?: number
  /** The first wait, which doubles with each failure; 250 ms. */
  firstMs?: number
  /** The longest wait; 10 s. */
  longestMs?: number
  /** A connection that brings nothing for so long, no sign of life either, is given up; 75 s (heartbeats come every 30 s). */
  silenceMs?: number
  /** Gives the login token for each request, so that one that has ended is replaced. */
  token?: () => string | Promise<string>
}

export interface CarrelHttpAgentConfig extends HttpAgentConfig {
  resume?: ResumeOptions
}

/** `@ag-ui/client`'s HttpAgent for a Carrel gateway: it reads a run to its end, over as many connections as it takes. */
export declare class CarrelHttpAgent extends HttpAgent {
  constructor(config: CarrelHttpAgentConfig)
  /** The gateway's name of the run that was begun last; empty before its first event. */
  readonly carrelRunId: string
  /** Ask the gateway to end the run that was begun last. `abortRun` ends the reading only. */
  cancelRun(reason?: string): Promise<void>
  clone(): CarrelHttpAgent
}

/** A `fetch` whose streams of server-sent events come back by themselves until the run has ended. */
export declare function resumingFetch(base: HttpAgentFetchFn, options?: ResumeOptions): HttpAgentFetchFn
