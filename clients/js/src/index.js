/** Carrel's client for browsers and Node: what it offers. docs/javascript.md tells how to use it. */

export { Backoff } from "./backoff.js"
export { CarrelClient } from "./client.js"
export {
  CarrelError,
  ConflictError,
  DamagedError,
  DeadlineError,
  InvalidRequestError,
  LimitExceededError,
  NotFoundError,
  PermissionDeniedError,
  ProtocolError,
  UnauthenticatedError,
  UnavailableError,
} from "./errors.js"
export { Bye, Gap, hasEnded, Notice, Reset, RunStatus } from "./notices.js"
export { formatPosition, parsePosition } from "./positions.js"
export { Rest } from "./rest.js"
