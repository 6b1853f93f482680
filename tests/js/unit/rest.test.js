/** Requests over REST: what is asked, errors, tokens that end, time limits, artifacts. */

import assert from "node:assert/strict"
import { createHash } from "node:crypto"
import { test } from "node:test"

import { Rest } from "../../../clients/js/src/index.js"

/** A `fetch` that answers one thing after the other, and keeps what was asked. */
function answering(...answers) {
  const asked = []
  const fetch = async (url, options) => {
    asked.push([options.method, url.replace("http://h", ""), options])
    const answer = answers.length > 1 ? answers.shift() : answers[0]
    if (typeof answer === "function") return answer(options)
    return answer.clone()
  }
  return { fetch, asked }
}

const json = (body, status = 200) => new Response(JSON.stringify(body), { status })
const refusal = (code, status, more = {}) =>
  json({ error: { code, status: "UNAUTHENTICATED", message: code, ...more } }, 401)

test("each method asks what the protocol says", async () => {
  const { fetch, asked } = answering(json({ artifacts: [] }))
  const rest = new Rest({ url: "http://h", token: "t", fetch })
  await rest.execute("m", {
    agentName: "a",
    params: { x: 1 },
    threadId: "th",
    clientRef: "r",
    waitMs: 1500,
    strategy: "enqueue",
  })
  await rest.execute("m", { waitMs: 0, pipeline: ["a", "b"], bound: true })
  await rest.run("run/1")
  await rest.runs({ threadId: "th", status: ["RUNNING", "QUEUED"], pageSize: 5, pageToken: "p q" })
  await rest.cancel("run-1", { reason: "why" })
  await rest.cancel("run-1")
  await rest.provideInput("run-1", "in", undefined)
  await rest.artifacts("run-1")
  await rest.threads({ pageSize: 2 })
  await rest.messages("th/1")
  await rest.deleteThread("th")
  await rest.agents()
  await rest.socketToken()
  await rest.logout({ everywhere: true })
  await rest.gateway()
  const body = ([method, path, options]) => [
    method,
    path,
    ...(options.body === undefined ? [] : [JSON.parse(options.body)]),
  ]
  assert.deepEqual(asked.map(body), [
    [
      "POST",
      "/api/agents/execute",
      { message: "m", params: { x: 1 }, agent_name: "a", thread_id: "th", strategy: "enqueue", client_ref: "r" },
    ],
    ["POST", "/api/agents/execute", { message: "m", pipeline: ["a", "b"], bound: true }],
    ["GET", "/api/runs/run%2F1"],
    ["GET", "/api/runs?thread_id=th&status=RUNNING%2CQUEUED&page_size=5&page_token=p+q"],
    ["POST", "/api/runs/run-1/cancel", { reason: "why" }],
    ["POST", "/api/runs/run-1/cancel", {}],
    ["POST", "/api/runs/run-1/input", { input_id: "in", value: null }],
    ["GET", "/api/runs/run-1/artifacts"],
    ["GET", "/api/threads?page_size=2"],
    ["GET", "/api/threads/th%2F1/messages"],
    ["DELETE", "/api/threads/th"],
    ["GET", "/api/agents"],
    ["POST", "/api/socket-tokens"],
    ["POST", "/api/logout", { everywhere: true }],
    ["GET", "/api/operator/gateway"],
  ])
  assert.deepEqual([asked[0][2].headers.Prefer, asked[1][2].headers.Prefer], ["wait=2", "respond-async"])
  for (const [, , options] of asked) {
    assert.equal(options.headers.Authorization, "Bearer t")
    assert.equal(options.headers["Content-Type"], options.body === undefined ? undefined : "application/json")
  }
})

test("errors are the gateway's, a proxy's, or the network's", async () => {
  const one = (answer) => new Rest({ url: "http://h", token: "t", fetch: answering(answer).fetch }).run("r")
  await assert.rejects(one(refusal("TOKEN")), { code: "TOKEN", name: "UnauthenticatedError" })
  await assert.rejects(one(new Response("<html>", { status: 502 })), { code: "UNAVAILABLE", retryable: true })
  await assert.rejects(one(new Response("<html>", { status: 418 })), { code: "CARREL", message: "HTTP status 418" })
  await assert.rejects(one(new Response("<html>")), { code: "PROTOCOL" })
  await assert.rejects(one(json([])), { code: "PROTOCOL" })
  await assert.rejects(
    one(() => Promise.reject(new TypeError("fetch failed"))),
    { code: "UNAVAILABLE", message: /fetch failed/ },
  )
})

test("a token that has ended is had anew, once", async () => {
  const { fetch, asked } = answering(refusal("TOKEN_EXPIRED"), json({}), refusal("TOKEN_EXPIRED"))
  let made = 0
  const rest = new Rest({ url: "http://h", token: async () => `t${(made += 1)}`, fetch })
  await rest.run("r")
  assert.deepEqual(
    asked.map(([, , options]) => options.headers.Authorization),
    ["Bearer t1", "Bearer t2"],
  )
  await assert.rejects(rest.run("r"), { code: "TOKEN_EXPIRED" })
  assert.equal(asked.length, 4)
  await assert.rejects(new Rest({ url: "http://h", token: "t", fetch }).run("r"), { code: "TOKEN_EXPIRED" })
  assert.equal(asked.length, 5)
})

const hanging = ({ signal }) =>
  new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)))

test("requests end with their time or their signal", async () => {
  const rest = new Rest({ url: "http://h", token: "t", timeoutMs: 20, fetch: answering(hanging).fetch })
  await assert.rejects(rest.run("r"), { code: "DEADLINE", message: /GET \/api\/runs\/r in 20 ms/ })
  const controller = new AbortController()
  setTimeout(() => controller.abort(new Error("enough")), 5)
  await assert.rejects(rest.run("r", { signal: controller.signal }), /enough/)
})

test("artifacts are compared with their reference", async () => {
  const bytes = Buffer.from("chart")
  const sha256 = createHash("sha256").update(bytes).digest("hex")
  const artifact = { name: "a b.png", media_type: "image/png", size: 5, sha256 }
  const { fetch, asked } = answering(new Response(bytes))
  const rest = new Rest({ url: "http://h", token: "t", fetch })
  const blob = await rest.artifact("run-1", artifact)
  assert.deepEqual([blob.type, await blob.text()], ["image/png", "chart"])
  assert.equal(asked[0][1], "/api/runs/run-1/artifacts/a%20b.png")
  await assert.rejects(rest.artifact("run-1", { ...artifact, size: 6 }), { name: "DamagedError" })
  await assert.rejects(rest.artifact("run-1", { ...artifact, sha256: "0".repeat(64) }), { name: "DamagedError" })
  const asks = asked.length
  await assert.rejects(rest.artifact("run-1", artifact, { mostBytes: 4 }), { code: "INVALID_REQUEST", message: /4$/ })
  await assert.rejects(rest.artifact("run-1", { ...artifact, size: 2 ** 40 }), { advice: /mostBytes/ })
  await assert.rejects(rest.artifact("run-1", { ...artifact, size: undefined }), { code: "INVALID_REQUEST" })
  assert.equal(asked.length, asks)
})

/** An answer that does not end, and how many MiB of it were asked for. */
function endless(status = 200) {
  const told = { read: 0, left: false }
  const piece = new Uint8Array(2 ** 20).fill(32)
  const body = new ReadableStream({
    pull: (controller) => void ((told.read += 1), controller.enqueue(piece)),
    cancel: () => void (told.left = true),
  })
  return { told, answer: () => new Response(body, { status }) }
}

test("answers without end are left unread", async () => {
  const artifact = { name: "a", media_type: "text/plain", size: 3 * 2 ** 20, sha256: "" }
  const asks = [
    [(rest) => rest.run("r"), 200, 130, { code: "PROTOCOL", message: /more than 134217728 bytes/ }],
    [(rest) => rest.run("r"), 500, 4, { message: "HTTP status 500" }],
    [(rest) => rest.artifact("r", artifact), 200, 6, { name: "DamagedError" }],
  ]
  for (const [ask, status, most, error] of asks) {
    const { told, answer } = endless(status)
    await assert.rejects(ask(new Rest({ url: "http://h", token: "t", fetch: answering(answer).fetch })), error)
    assert.ok(told.read <= most && told.left, `${told.read} MiB were read`)
  }
})

test("a stream of events that is refused, or is none, says so", async () => {
  const read = async (answer) => {
    const rest = new Rest({ url: "http://h", token: "t", fetch: answering(answer).fetch })
    for await (const _ of rest.runEvents("r", { backoff: { attempts: 2, firstMs: 1 } }));
  }
  await assert.rejects(read(refusal("UNKNOWN_RUN", 404, { status: "NOT_FOUND" })), { code: "UNKNOWN_RUN" })
  await assert.rejects(read(json({})), { code: "UNAVAILABLE", message: /no stream of events/ })
  await read(new Response(null, { status: 204 }))
})
