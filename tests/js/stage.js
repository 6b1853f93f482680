/**
 * What scenarios.js plays on: scripted gateways (scripted.py), clients of them, and what must hold of what came. In Node
 * and in pages alike.
 */

import { Bye, CarrelClient, Notice, Rest } from "../../clients/js/src/index.js"

/** @param {number} ms */
export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms))

/**
 * @param {unknown} holds
 * @param {() => string} why
 */
export function check(holds, why) {
  if (!holds) throw new Error(why())
}

/**
 * @param {unknown} got
 * @param {unknown} want
 * @param {string} what
 */
export function same(got, want, what) {
  const [a, b] = [JSON.stringify(got), JSON.stringify(want)]
  check(a === b, () => `${what}: ${a.slice(0, 300)}, and ${b.slice(0, 300)} was due`)
}

/**
 * @param {() => boolean} holds
 * @param {string} what
 */
export async function until(holds, what) {
  const late = performance.now() + 10_000
  while (!holds()) {
    check(performance.now() < late, () => `${what} did not come to be`)
    await pause(5)
  }
}

/** A plain event of a log of as many as are wanted. */
export function event(offset, changes = {}) {
  return {
    event_type: "agent_thinking",
    event_id: `evt-${offset}`,
    offset,
    user_id: "alice",
    thread_id: "thread-1",
    run_id: "run-1",
    request_id: "req-1",
    agent_name: "data",
    attempt: 1,
    timestamp: "2026-01-01T00:00:00.000000Z",
    data: { text: `text ${offset} ä\u2028` },
    ...changes,
  }
}

export const log = (count, first = 1) => Array.from({ length: count }, (_, at) => event(first + at))
export const end = (offset, run = "run-1") => event(offset, { event_type: "run_completed", run_id: run })

/** A gateway with a script, and clients of it. */
class Stage {
  /** @param {string} base */
  constructor(base) {
    this.base = base
    this.clients = []
  }

  async script(script) {
    const response = await fetch(`${this.base}/scripts`, { method: "POST", body: JSON.stringify(script) })
    this.url = `${this.base}/${(await response.json()).id}`
    return this
  }

  async told() {
    return (await fetch(`${this.url}/told`)).json()
  }

  async commit(...events) {
    await fetch(`${this.url}/commit`, { method: "POST", body: JSON.stringify(events) })
  }

  async change(changes) {
    await fetch(`${this.url}/change`, { method: "POST", body: JSON.stringify(changes) })
  }

  client(options = {}) {
    const client = new CarrelClient({
      url: this.url,
      token: "a.good.token",
      resume: "oldest",
      backoff: { attempts: 40, firstMs: 5, longestMs: 50 },
      patient: true,
      ...options,
    })
    this.clients.push(client)
    return client
  }

  rest() {
    return new Rest({ url: this.url, token: "a.good.token" })
  }
}

/** Items until so many events have come; what comes meanwhile, too. */
export async function collect(client, count, { ms = 12_000, items = client.items() } = {}) {
  const got = []
  const late = new AbortController()
  const timer = setTimeout(() => late.abort(new Error("late")), ms)
  try {
    while (got.filter((item) => !(item instanceof Notice)).length < count) {
      const step = await Promise.race([
        items.next(),
        new Promise((_, reject) => late.signal.addEventListener("abort", () => reject(late.signal.reason))),
      ])
      if (step.done) break
      got.push(step.value)
    }
  } catch (error) {
    if (error !== late.signal.reason) throw error
    throw new Error(`${count} events did not come; there were ${JSON.stringify(got.map(brief)).slice(-300)}`)
  } finally {
    clearTimeout(timer)
  }
  return got
}

export const brief = (item) => (item instanceof Notice ? item.kind : item.offset)
const noBye = (items) => items.filter((item) => !(item instanceof Bye))

/** Everything that the log has, once and in order, and no notices but farewells. */
export function whole(items, events) {
  const got = noBye(items).map((item) =>
    item instanceof Notice ? `notice ${item.kind}` : [item.offset, item.event_id],
  )
  same(
    got,
    events.map((item) => [item.offset, item.event_id]),
    "what came",
  )
}

export async function wholeLog(stage, client, events) {
  await client.connect()
  whole(await collect(client, events.length), events)
  same((await stage.told()).wrong, [], "what the client did wrong")
}

/**
 * Play one; throws what does not hold.
 * @param {string} base Where the scripted gateways are.
 * @param {(stage: Stage) => Promise<void>} scenario
 */
export async function play(base, scenario) {
  const stage = new Stage(base)
  try {
    await scenario(stage)
  } finally {
    for (const client of stage.clients) client.close()
  }
}

/**
 * A part of them that is always the same for a seed: the cuts at random, all else. `count` 0 takes all.
 * @template T
 * @param {[string, T][]} all
 * @param {number} count Of cuts of the recorded run.
 * @param {number} seed
 * @returns {[string, T][]}
 */
export function sample(all, count, seed) {
  const cut = all.filter(([name]) => name.startsWith("cut ") && name.includes(" after frame "))
  if (!count || count >= cut.length) return all
  let state = seed
  const random = () => (state = (state * 48271) % 2147483647) / 2147483647
  const chosen = new Set()
  while (chosen.size < count) chosen.add(cut[Math.floor(random() * cut.length)])
  const left = new Set(cut.filter((cell) => !chosen.has(cell)))
  return all.filter((cell) => !left.has(cell))
}
