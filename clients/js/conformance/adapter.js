/**
 * The client behind the line protocol of the conformance suite (`python -m conformance client -- node …/adapter.js`).
 * What is told it comes on standard input, and what an application would see goes to standard output.
 */

import { createInterface } from "node:readline"

import { CarrelClient, CarrelError, Gap, Notice, Reset } from "../src/index.js"

const FEATURES = ["batch", "compress", "ack", "execute", "thread"]

/**
 * @param {string} kind
 * @param {object} body
 */
const tell = (kind, body) => process.stdout.write(`${JSON.stringify({ [kind]: body })}\n`)

/** @type {CarrelClient} */
let client
let goOn = Promise.resolve()
let release = () => {}

/** @param {any} told */
async function read(told) {
  client = new CarrelClient({
    url: told.url,
    token: told.token,
    threadId: told.thread_id,
    resume: told.resume ?? undefined,
    patient: true,
    window: 50,
    backoff: { attempts: 30, firstMs: told.first_wait_ms, longestMs: told.longest_wait_ms },
  })
  try {
    await client.connect()
    const items = client.items()
    for (;;) {
      await goOn
      const { value, done } = await items.next()
      if (done) return
      if (!(value instanceof Notice)) tell("event", value)
      else if (value instanceof Reset) tell("reset", { reason: value.reason, ...value.position })
      else if (value instanceof Gap) tell("gap", { from: value.first, to: value.last })
    }
  } catch (error) {
    if (!(error instanceof CarrelError)) throw error
    tell("error", { code: error.code, message: error.message })
  }
}

/** @param {any} told */
async function execute(told) {
  try {
    const run = await client.execute(told.message, { clientRef: told.client_ref })
    tell("accepted", { client_ref: told.client_ref, run_id: run.runId })
  } catch (error) {
    if (!(error instanceof CarrelError)) throw error
    tell("refused", { client_ref: told.client_ref, code: error.code })
  }
}

process.stdout.write(`${JSON.stringify({ client: "carrel-client", features: FEATURES })}\n`)
for await (const line of createInterface({ input: process.stdin })) {
  const told = JSON.parse(line)
  if (told.do === "connect") void read(told)
  else if (told.do === "pause") goOn = new Promise((resolve) => (release = resolve))
  else if (told.do === "go_on") release()
  else if (told.do === "execute") void execute(told)
  else if (told.do === "close") break
}
client?.close()
process.exit(0)
