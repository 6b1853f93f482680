/** Types of carrel-client; docs/javascript.md tells how to use it, docs/protocol.md what events and runs hold. */

export type Json = Record<string, any>

/** A place in a user's log to go on reading from. Save `formatPosition(position)`. */
export interface Position {
  readonly epoch: string
  readonly offset: number
  readonly event_id: string
}

export function formatPosition(position: Position): string
/** From what was saved; `"oldest"` stands for everything that is kept. Throws InvalidRequestError. */
export function parsePosition(saved: string | Position): Position

export type EventType =
  | "run_accepted"
  | "agent_started"
  | "agent_thinking"
  | "tool_executing"
  | "tool_completed"
  | "agent_message"
  | "agent_completed"
  | "agent_error"
  | "run_completed"
  | "run_attempt"
  | "input_required"
  | "event_rejected"
  | "log_gap"

/** One entry of a user's log, as the gateway sends it. Later releases may add kinds and fields. */
export interface CarrelEvent {
  event_type: EventType | (string & {})
  event_id: string
  offset: number
  user_id: string
  thread_id: string
  run_id: string
  request_id: string
  parent_request_id?: string
  agent_name: string
  attempt: number
  timestamp: string
  data: Json
  /** The place right after this event. Not a field of the JSON. */
  readonly position: Position
}

/** A control frame that answers no command. Events have no `kind`, notices no `event_type`. */
export class Notice {
  constructor(kind: string, body: Json)
  readonly kind: string
  readonly body: Json
  readonly event_type?: undefined
}

/** The position was lost: what follows begins after `position`, and may leave events out. */
export class Reset extends Notice {
  readonly reason: "epoch_changed" | "trimmed" | "beyond_top" | "event_mismatch" | (string & {})
  readonly position: Position
}

/** The entries `first` to `last` do not come. */
export class Gap extends Notice {
  readonly first: number
  readonly last: number
  readonly announced: boolean
}

/** How a run stands; after a reset. */
export class RunStatus extends Notice {
  readonly runId: string
  readonly status: string
  readonly ended: boolean
}

/** The gateway ends the connection. */
export class Bye extends Notice {
  readonly code: number
  readonly reason: string
  readonly reconnect: boolean
  readonly retryMs: number
}

export type Item = CarrelEvent | Notice

/** Whether a run with this status has ended. */
export function hasEnded(status: string): boolean

export interface BackoffOptions {
  /** Tries in a row that may fail, the first one included; Infinity never gives up. 12. */
  attempts?: number
  /** Bound of the first wait. 100. */
  firstMs?: number
  /** Bound of every wait. 5000. */
  longestMs?: number
  /** How much longer each bound is than the one before. 2. */
  factor?: number
  /** The part of a bound that is always waited, 0 to 1; the rest is jitter. 0. */
  steady?: number
  random?: () => number
}

export class Backoff {
  constructor(options?: BackoffOptions)
  delayMs(failures: number, atLeastMs?: number): number | undefined
}

/** A token, or what gives one: asked before each connection, and before the present token ends. */
export type TokenSource = string | ((options: { signal: AbortSignal }) => string | Promise<string>)

export interface ConnectionState {
  readonly phase: "connecting" | "connected" | "waiting" | "closed"
  /** For a person. */
  readonly reason: string
  /** The wait before the next attempt. */
  readonly retryMs: number
  /** Attempts in a row that came to nothing. */
  readonly failures: number
}

export interface Health extends ConnectionState {
  /** Since something came last; undefined without a connection. Beyond `heartbeatMs` something is slow. */
  readonly lastHeardMs: number | undefined
  readonly heartbeatMs: number | undefined
  /** Events that the log has and that have not come yet, as far as is known. */
  readonly behind: number
  /** Events and notices that have come and the application has not taken. */
  readonly held: number
  readonly reconnects: number
}

export interface ClientOptions {
  /** The gateway: https://host or http://host:port. In a page by default the page's own origin. */
  url?: string | URL
  token?: TokenSource
  /** Gives a single-use socket token for each connection, in place of `token`; REST needs `token` all the same. */
  socketToken?: TokenSource
  /** The user that the token must be of; not checked when left out. */
  userId?: string
  /** Only events of this thread; also the thread of runs that name none. */
  threadId?: string
  /** Where to go on reading: a saved position, `"oldest"` for everything kept; left out: what comes from now on. */
  resume?: string | Position
  /** Ask for batches. True. */
  batch?: boolean
  /** Ask for compressed ones. True. */
  compress?: boolean
  /** Events that may wait for the application; the gateway is asked to send no more. 1000. 0 asks it for nothing. */
  window?: number
  /** Give again after a reset what was given before it. */
  repeat?: boolean
  backoff?: BackoffOptions | Backoff
  /** Whether the first connection is tried again, too, when it fails. */
  patient?: boolean
  /** Called, and awaited, when the reader comes to a reset: after the events before it were taken. */
  onReset?: (reset: Reset) => unknown
  onState?: (state: ConnectionState) => void
  /** The class to connect with. */
  WebSocket?: new (url: string, protocol: string) => any
  fetch?: typeof fetch
  /** For REST. 30000. */
  timeoutMs?: number
}

export interface RunOptions {
  /** Parameters for the agents. */
  params?: Json
  /** Several agents, which are put in order. */
  pipeline?: string[]
  /** One agent; without it and `pipeline` the deployment's default. */
  agentName?: string
  /** The conversation; a new one when left out. */
  threadId?: string
  /** What to do about a run that the thread has already. */
  strategy?: "reject" | "enqueue" | "interrupt" | "rollback"
  /** Names the request: within 24 h the same one gives the same run. Made when left out. */
  clientRef?: string
  /** The run ends with the connection, or the request, that asked for it. */
  bound?: boolean
  /** Your own trace (W3C Trace Context). */
  traceparent?: string
  /** Ends the waiting, not the run. */
  signal?: AbortSignal
}

export interface ExecuteOptions extends RunOptions {
  /** How long to wait for the answer, lost connections included. 30000. */
  timeoutMs?: number
}

export interface RestExecuteOptions extends RunOptions {
  /** How long to wait for the run's end; 0 not at all; left out: as long as the gateway lets a request wait. */
  waitMs?: number
}

export interface Accepted {
  runId: string
  threadId: string
  requestId: string
  agentName: string
  status: string
  clientRef: string
  /** Whether `clientRef` named a run that was there already. */
  existing: boolean
}

export interface Handlers {
  onEvent?: (event: CarrelEvent) => unknown
  onNotice?: (notice: Notice) => unknown
  /** Without an error when the client was closed. */
  onEnd?: (error?: unknown) => void
}

interface Asking {
  timeoutMs?: number
  signal?: AbortSignal
}

interface Reading {
  signal?: AbortSignal
}

/** A user's connection to a gateway. */
export class CarrelClient {
  constructor(options: ClientOptions)
  readonly rest: Rest
  readonly state: ConnectionState
  readonly health: Health
  readonly reconnects: number
  /** The place after what the application has taken last. */
  readonly position: Position
  readonly connectionId: string

  connect(options?: { signal?: AbortSignal }): Promise<this>
  close(): void
  wake(): void

  execute(message: string, options?: ExecuteOptions): Promise<Accepted>
  cancel(runId: string, options?: { reason?: string } & Asking): Promise<string>
  provideInput(runId: string, inputId: string, value: unknown, options?: Asking): Promise<string>
  approve(runId: string, inputId: string, approved: boolean, options?: { reason?: string } & Asking): Promise<string>
  /** Milliseconds until the gateway has answered. */
  ping(options?: Asking): Promise<number>

  events(options?: Reading): AsyncGenerator<CarrelEvent, void, undefined>
  items(options?: Reading): AsyncGenerator<Item, void, undefined>
  runEvents(
    runIds: string | string[],
    options?: Reading & { knownEnded?: string[] },
  ): AsyncGenerator<CarrelEvent, void, undefined>
  runItems(
    runIds: string | string[],
    options?: Reading & { knownEnded?: string[] },
  ): AsyncGenerator<Item, void, undefined>
  /** Hands everything to callbacks, each awaited before the next; what it returns ends it. */
  listen(handlers: Handlers): () => void
  runStatus(runId: string): RunStatus | undefined
}

export interface RestOptions {
  url?: string | URL
  token?: TokenSource
  fetch?: typeof fetch
  /** 30000. */
  timeoutMs?: number
}

export interface StreamOptions {
  /** A position from any transport. */
  resume?: string | Position
  backoff?: BackoffOptions | Backoff
  signal?: AbortSignal
}

export interface ArtifactReference {
  name: string
  media_type: string
  size: number
  sha256: string
  created_at: string
  url: string
}

/** The gateway's REST addresses; bodies as docs/protocol.md has them. */
export class Rest {
  constructor(options: RestOptions)
  get(path: string, options?: Reading): Promise<Json>
  post(path: string, body?: Json, options?: Reading): Promise<Json>
  execute(message: string, options?: RestExecuteOptions): Promise<Json>
  run(runId: string, options?: Reading): Promise<Json>
  runs(
    options?: { threadId?: string; status?: string[]; pageSize?: number; pageToken?: string } & Reading,
  ): Promise<Json>
  cancel(runId: string, options?: { reason?: string } & Reading): Promise<Json>
  provideInput(runId: string, inputId: string, value: unknown, options?: Reading): Promise<Json>
  artifacts(runId: string, options?: Reading): Promise<ArtifactReference[]>
  artifact(
    runId: string,
    artifact: Pick<ArtifactReference, "name" | "media_type" | "size" | "sha256">,
    /** `mostBytes`: the largest that is fetched, 64 MiB. */
    options?: { mostBytes?: number } & Reading,
  ): Promise<Blob>
  runEvents(runId: string, options?: StreamOptions): AsyncGenerator<Item, void, undefined>
  events(options?: StreamOptions & { threadId?: string }): AsyncGenerator<Item, void, undefined>
  threads(options?: { pageSize?: number; pageToken?: string } & Reading): Promise<Json>
  messages(threadId: string, options?: { pageSize?: number; pageToken?: string } & Reading): Promise<Json>
  deleteThread(threadId: string, options?: Reading): Promise<void>
  agents(options?: Reading): Promise<Json>
  socketToken(options?: Reading): Promise<Json>
  logout(options?: { everywhere?: boolean } & Reading): Promise<Json>
  gateway(options?: Reading): Promise<Json>
}

export interface ErrorFacts {
  code?: string
  status?: string
  advice?: string
  retryable?: boolean
  retryAfterMs?: number
  details?: Json
  closeCode?: number
  cause?: unknown
}

/** Everything that goes wrong on purpose; `code` names it. */
export class CarrelError extends Error {
  constructor(message: string, facts?: ErrorFacts)
  readonly code: string
  /** Name of the gRPC status. */
  readonly status: string
  /** What to do next. */
  readonly advice: string
  /** Whether the same request may succeed later, unchanged. */
  readonly retryable: boolean
  readonly retryAfterMs: number | undefined
  readonly details: Json
  /** The WebSocket's close code, when that is how it was told. */
  closeCode: number | undefined
}
export class InvalidRequestError extends CarrelError {}
export class UnauthenticatedError extends CarrelError {}
export class PermissionDeniedError extends CarrelError {}
export class NotFoundError extends CarrelError {}
export class ConflictError extends CarrelError {}
export class LimitExceededError extends CarrelError {}
export class UnavailableError extends CarrelError {}
export class DeadlineError extends CarrelError {}
export class ProtocolError extends CarrelError {}
export class DamagedError extends CarrelError {}
