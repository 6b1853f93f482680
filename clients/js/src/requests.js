/** The request for a run as the socket and REST take it, and the answer to it. Nothing of how it is sent. */

/**
 * Its fields; those that say nothing are left out.
 * @param {string} message
 * @param {{params?: Record<string, unknown>, pipeline?: string[], agentName?: string, threadId?: string,
 *   strategy?: string, bound?: boolean, traceparent?: string}} options
 */
export function executeFields(message, { params, pipeline, agentName, threadId, strategy, bound, traceparent }) {
  /** @type {Record<string, unknown>} */
  const fields = { message }
  if (params && Object.keys(params).length) fields.params = params
  if (pipeline?.length) fields.pipeline = pipeline
  if (agentName) fields.agent_name = agentName
  if (threadId) fields.thread_id = threadId
  if (strategy) fields.strategy = strategy
  if (bound) fields.bound = true
  if (traceparent) fields.traceparent = traceparent
  return fields
}

/**
 * The gateway's `run_accepted`.
 * @param {Record<string, any>} body
 * @param {string} clientRef
 */
export function acceptedFrom(body, clientRef) {
  const text = (/** @type {unknown} */ value) => (typeof value === "string" ? value : "")
  return {
    runId: text(body.run_id),
    threadId: text(body.thread_id),
    requestId: text(body.request_id),
    agentName: text(body.agent_name),
    status: text(body.status),
    clientRef,
    existing: body.existing === true,
  }
}
