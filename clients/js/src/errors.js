/**
 * What goes wrong, as one tree of classes: `CarrelError` is the root, and `code` names the failure as the gateway does.
 *
 *     CarrelError
 *     ├── InvalidRequestError    the request is wrong; the same one fails again
 *     ├── UnauthenticatedError   no valid login
 *     ├── PermissionDeniedError  known, and may not
 *     ├── NotFoundError          nothing of that name among what is the user's own
 *     ├── ConflictError          does not fit how things stand now
 *     ├── LimitExceededError     a limit is reached
 *     ├── UnavailableError       not now; later
 *     ├── DeadlineError          the time is up; whether it had an effect is unknown
 *     ├── ProtocolError          what came breaks the protocol
 *     └── DamagedError           bytes that arrived are not those that were sent
 *
 * A signal that is aborted is not here: its own reason is thrown.
 */

/** Root of the tree. */
export class CarrelError extends Error {
  static code = "CARREL"
  static status = "UNKNOWN"
  static retryable = false
  static advice = ""

  /**
   * @param {string} message What went wrong, for a person.
   * @param {{code?: string, status?: string, advice?: string, retryable?: boolean, retryAfterMs?: number,
   *   details?: Record<string, unknown>, closeCode?: number, cause?: unknown}} [more] What differs from the class's.
   */
  constructor(message, more = {}) {
    super(message, more.cause === undefined ? undefined : { cause: more.cause })
    const own = /** @type {typeof CarrelError} */ (this.constructor)
    this.name = own.name
    /** Stable, UPPER_SNAKE. */
    this.code = more.code ?? own.code
    /** Name of the gRPC status. */
    this.status = more.status ?? own.status
    /** What to do next. */
    this.advice = more.advice || own.advice
    /** Whether the same request may succeed later, unchanged. */
    this.retryable = more.retryable ?? own.retryable
    /** Milliseconds after which trying again makes sense; undefined when nobody said. */
    this.retryAfterMs = more.retryAfterMs
    /** Facts for programs. */
    this.details = more.details ?? {}
    /** The WebSocket's close code, when that is how it was told. */
    this.closeCode = more.closeCode
  }
}

/** The request itself is wrong; sending it again unchanged fails again. */
export class InvalidRequestError extends CarrelError {
  static code = "INVALID_REQUEST"
  static status = "INVALID_ARGUMENT"
  static advice = "correct the request and send it again"
}

/** No valid login. */
export class UnauthenticatedError extends CarrelError {
  static code = "UNAUTHENTICATED"
  static status = "UNAUTHENTICATED"
  static advice = "log in again"
}

/** The caller is known and may not do this. */
export class PermissionDeniedError extends CarrelError {
  static code = "PERMISSION_DENIED"
  static status = "PERMISSION_DENIED"
  static advice = "ask an operator for what is missing"
}

/** Nothing of that name among what the caller may see. */
export class NotFoundError extends CarrelError {
  static code = "NOT_FOUND"
  static status = "NOT_FOUND"
  static advice = "check the name: only what is your own can be named"
}

/** The request does not fit the present state. */
export class ConflictError extends CarrelError {
  static code = "CONFLICT"
  static status = "ABORTED"
  static advice = "look at how it stands now, then ask again"
}

/** A limit is reached; `details` has `limit`, `limit_value` and `use`. */
export class LimitExceededError extends CarrelError {
  static code = "LIMIT_EXCEEDED"
  static status = "RESOURCE_EXHAUSTED"
  static retryable = true
  static advice = "wait a little and try again, or ask for less"
}

/** It cannot be done now; later it can. */
export class UnavailableError extends CarrelError {
  static code = "UNAVAILABLE"
  static status = "UNAVAILABLE"
  static retryable = true
  static advice = "try again shortly"
}

/** The call's time is up; whether it had an effect is unknown. */
export class DeadlineError extends CarrelError {
  static code = "DEADLINE"
  static status = "DEADLINE_EXCEEDED"
  static retryable = true
  static advice = "try again, with more time"
}

/** What the gateway sent breaks the protocol. */
export class ProtocolError extends CarrelError {
  static code = "PROTOCOL"
  static status = "INTERNAL"
  static advice = "is this the address of a gateway, and of this client's release or a later one?"
}

/** Bytes that arrived are not those that were sent. */
export class DamagedError extends CarrelError {
  static code = "CORRUPT_STORE"
  static status = "DATA_LOSS"
  static advice = "read it again"
}

const BY_STATUS = new Map(
  [
    InvalidRequestError,
    UnauthenticatedError,
    PermissionDeniedError,
    NotFoundError,
    ConflictError,
    LimitExceededError,
    UnavailableError,
    DeadlineError,
    DamagedError,
  ].map((kind) => [kind.status, kind]),
)
BY_STATUS.set("FAILED_PRECONDITION", ConflictError)
BY_STATUS.set("ALREADY_EXISTS", ConflictError)
BY_STATUS.set("OUT_OF_RANGE", InvalidRequestError)

/**
 * An error as the gateway tells it: an `error` frame, or the `error` of an HTTP answer.
 * @param {Record<string, any>} body
 * @returns {CarrelError}
 */
export function errorFrom(body) {
  const text = (/** @type {unknown} */ value) => (typeof value === "string" ? value : "")
  const code = text(body.code) || "CARREL"
  const kind = code === "PROTOCOL" ? ProtocolError : (BY_STATUS.get(text(body.status)) ?? CarrelError)
  const wait = body.retry_after_s
  return new kind(text(body.message) || `the gateway says ${code}`, {
    code,
    status: text(body.status) || kind.status,
    advice: text(body.advice),
    retryable: typeof body.retryable === "boolean" ? body.retryable : undefined,
    retryAfterMs: Number.isFinite(wait) && wait >= 0 ? wait * 1000 : undefined,
    details: isObject(body.details) ? body.details : {},
  })
}

/** @type {Record<number, [new (message: string, more?: object) => CarrelError, string, string, string]>} */
const CLOSED = {
  1009: [InvalidRequestError, "TOO_LARGE", "a frame was far too large", "send large requests over REST: client.rest"],
  4500: [UnauthenticatedError, "TOKEN", "the gateway does not accept the login", "log in again, and make a new client"],
  4501: [
    InvalidRequestError,
    "FRAME",
    "the gateway refused what this client sent",
    "frames hold at most 64 KiB; larger requests go over REST: client.rest",
  ],
  4503: [
    PermissionDeniedError,
    "PERMISSION_DENIED",
    "the gateway refuses this user here",
    "is `userId` the token's own user?",
  ],
  4504: [LimitExceededError, "CONNECTIONS_LIMIT", "the user has too many connections", "close other tabs or clients"],
  4505: [DeadlineError, "HANDSHAKE_TIMEOUT", "the login did not arrive in time", "connect again; is the network slow?"],
}

/**
 * Why a connection ended for good, from its close code alone.
 * @param {number} closeCode
 * @param {string} [reason] What `bye` called it.
 * @returns {CarrelError}
 */
export function closedError(closeCode, reason = "") {
  const known = CLOSED[closeCode]
  const name = reason ? ` (${reason})` : ""
  if (!known) {
    return new CarrelError(`the gateway closed the connection with code ${closeCode}${name}`, {
      code: "CLOSED",
      advice: "docs/protocol.md lists the codes",
      closeCode,
    })
  }
  const [Kind, code, message, advice] = known
  return new Kind(`${message}: close code ${closeCode}${name}`, { code, advice, closeCode, retryable: false })
}

/** The connection ended, or could not be made, and coming back can help. Never leaves this library. */
export class LostError extends Error {
  /**
   * @param {string} problem
   * @param {{retryMs?: number, broken?: boolean, atOnce?: boolean}} [more] What the gateway asked to wait; whether it
   *   broke the protocol; whether there is nothing to wait for.
   */
  constructor(problem, { retryMs = 0, broken = false, atOnce = false } = {}) {
    super(problem)
    this.problem = problem
    this.retryMs = retryMs
    this.broken = broken
    this.atOnce = atOnce
  }
}

/**
 * @param {unknown} error
 * @returns {LostError} When it is one; anything else is thrown.
 */
export function passLost(error) {
  if (error instanceof LostError) return error
  throw error
}

/**
 * @param {string} url
 * @param {string} problem
 * @param {number} failures
 */
export function unreachableError(url, problem, failures) {
  const tries = failures === 1 ? "once" : `${failures} times`
  return new UnavailableError(`the gateway at ${url} cannot be reached: ${problem} (tried ${tries})`, {
    advice: "is it running, is the address right, and is this page's origin one that it allows?",
  })
}

/** What came does not fit what is known; coming back with the position lets the log decide. Stays in this library. */
export class AstrayError extends Error {}

/**
 * Whether a value is a JSON object.
 * @param {unknown} value
 * @returns {value is Record<string, any>}
 */
export function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value)
}
