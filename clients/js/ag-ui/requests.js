/** What requests beside a stream are made of, and how much of their answers is read. */

// What a gateway tells of an error has a few hundred bytes.
const MOST_TEXT = 64 * 1024

/**
 * The address that ends a run, on the gateway whose AG-UI address this is.
 * @param {string} url
 * @param {string} runId The gateway's name of the run, whatever is in it.
 * @param {string} [page] What a relative address is relative to.
 */
export function cancelAddress(url, runId, page) {
  const address = new URL(url, page)
  const path = `/api/runs/${encodeURIComponent(runId)}/cancel`
  address.pathname = address.pathname.replace(/\/ag-ui(\/[^/]*)?$/, () => path)
  return address.href
}

/**
 * The beginning of an answer's text: what follows is not read.
 * @param {Response} response
 */
export async function textOf(response) {
  const body = response.body?.getReader()
  if (body === undefined) return ""
  const decoder = new TextDecoder()
  let text = ""
  for (let piece = await body.read(); !piece.done; piece = await body.read()) {
    text += decoder.decode(piece.value, { stream: true })
    if (text.length > MOST_TEXT) {
      await body.cancel().catch(() => undefined)
      return `${text.slice(0, MOST_TEXT)}…`
    }
  }
  return text
}
