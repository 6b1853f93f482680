/** Uses of the client in TypeScript: compiled by a test, never run. What must not compile is marked. */

import {
  Backoff,
  CarrelClient,
  CarrelError,
  formatPosition,
  Gap,
  hasEnded,
  Notice,
  parsePosition,
  Reset,
  Rest,
  RunStatus,
  type Accepted,
  type CarrelEvent,
  type Health,
  type Item,
  type Position,
} from "carrel-client"

export async function use(token: string): Promise<void> {
  const saved: Position = parsePosition("oldest")
  const client = new CarrelClient({
    url: new URL("https://host"),
    token: async ({ signal }) => (await fetch("/token", { signal })).text(),
    resume: saved,
    backoff: new Backoff({ attempts: Infinity }),
    onState: ({ phase }) => phase === "waiting",
    onReset: (reset) => reset.reason,
    WebSocket,
    fetch,
  })
  await client.connect({ signal: AbortSignal.timeout(1000) })
  const run: Accepted = await client.execute("x", { params: { a: 1 }, strategy: "enqueue", timeoutMs: 5 })
  for await (const item of client.runItems([run.runId])) show(item)
  for await (const event of client.events()) await client.approve(event.run_id, String(event.data.input_id), true)
  const stop: () => void = client.listen({ onEvent: (event: CarrelEvent) => event.offset, onEnd: () => undefined })
  stop()
  const { behind, lastHeardMs }: Health = client.health
  console.log(behind + (lastHeardMs ?? 0), formatPosition(client.position), hasEnded("FAILED"))
  const rest = new Rest({ token })
  const [first] = await rest.artifacts(run.runId)
  if (first) console.log((await rest.artifact(run.runId, first)).size)
  // @ts-expect-error: no such strategy
  await client.execute("x", { strategy: "replace" })
  // @ts-expect-error: a run's id is a text
  await client.cancel(7)
  // @ts-expect-error: nobody sets the position
  client.position = saved
  // @ts-expect-error: options are camelCase
  new CarrelClient({ token, thread_id: "x" })
  client.close()
}

function show(item: Item): string {
  if (item instanceof Reset) return item.reason
  if (item instanceof Gap) return `${item.first} ${item.last}`
  if (item instanceof RunStatus) return item.status
  if (item instanceof Notice) return item.kind
  return item.event_type === "run_completed" ? String(item.data.status) : item.event_id
}

export function told(error: unknown): string {
  return error instanceof CarrelError ? `${error.code} ${error.advice} ${error.closeCode ?? ""}` : String(error)
}
