/** The pages about the API: one for each document, and the list of what is on it. The address names page and place. */

import { html, render, useEffect, useErrorBoundary, useMemo, useState } from "./dom.js"
import { protoPage } from "./protos.js"
import { restPage } from "./rest.js"
import { socketPage } from "./socket.js"

const PAGES = {
  rest: { title: "REST", file: "openapi.json", make: restPage },
  socket: { title: "WebSocket", file: "asyncapi.json", make: socketPage },
  protos: { title: "gRPC", file: "proto.json", make: protoPage },
}

function place() {
  const [name, ...rest] = decoded(location.hash.replace(/^#\/?/, "")).split("/")
  return { name: Object.hasOwn(PAGES, name) ? name : "rest", id: rest.join("/") }
}

// An address is whatever somebody has written into a link.
function decoded(text) {
  try {
    return decodeURIComponent(text)
  } catch {
    return text
  }
}

function usePlace() {
  const [at, setAt] = useState(place)
  useEffect(() => {
    const moved = () => setAt(place())
    addEventListener("hashchange", moved)
    return () => removeEventListener("hashchange", moved)
  }, [])
  return at
}

function App() {
  const at = usePlace()
  const [documents, setDocuments] = useState({})
  const [wrong, setWrong] = useState("")
  const [fault] = useErrorBoundary((error) => console.error(error))
  const { file, make, title } = PAGES[at.name]
  const loaded = documents[at.name]

  useEffect(() => {
    if (loaded) return
    setWrong("")
    fetch(new URL(file, import.meta.url))
      .then((answer) =>
        answer.ok ? answer.json() : Promise.reject(new Error(`the gateway answered ${answer.status}`)),
      )
      .then((document) => setDocuments((others) => ({ ...others, [at.name]: document })))
      .catch((error) => setWrong(error.message))
  }, [at.name, loaded])

  const page = useMemo(() => loaded && make(loaded), [loaded, make])
  useEffect(() => {
    document.title = `Carrel: ${title}`
    if (!page) return
    const target = at.id && document.getElementById(`${at.name}/${at.id}`)
    if (target) target.scrollIntoView()
    else scrollTo(0, 0)
  }, [at, page, title])

  return html`
    <${Top} name=${at.name} />
    <div class="columns">
      ${page && html`<${List} groups=${page.groups} name=${at.name} at=${at.id} />`}
      <main id="content" tabindex="-1">
        ${(fault || wrong) && html`<p class="wrong" role="alert">${file} cannot be shown: ${wrong || String(fault)}. Load the page again.</p>`}
        ${!page && !wrong && !fault && html`<p class="quiet" role="status">Loading ${file} …</p>`}
        ${page && page.content}
      </main>
    </div>
  `
}

function Top({ name }) {
  return html`
    <a class="skip" href="#content" onClick=${skip}>To the content</a>
    <header class="top">
      <p class="name"><img src="docs/mark.svg" alt="" width="26" height="26" /> Carrel API</p>
      <nav aria-label="Documents">
        ${Object.entries(PAGES).map(
          ([key, { title }]) => html`
          <a class="tab" href=${`#/${key}`} aria-current=${key === name ? "page" : undefined}>${title}</a>
        `,
        )}
      </nav>
      <a class="raw" href=${`docs/${PAGES[name].file}`}>${PAGES[name].file}</a>
    </header>
  `
}

// The address after # is a place of ours, so that the browser's own jump is not for it.
function skip(event) {
  event.preventDefault()
  document.getElementById("content").focus()
}

function List({ groups, name, at }) {
  const [wanted, setWanted] = useState("")
  const [open, setOpen] = useState(() => matchMedia("(min-width: 900px)").matches)
  const text = wanted.trim().toLowerCase()
  useEffect(() => setWanted(""), [name])
  return html`
    <details class="list" open=${open} onToggle=${(event) => setOpen(event.target.open)}>
      <summary>Contents</summary>
      <nav aria-label="Contents">
        <input class="input" type="search" aria-label="Find in the contents" placeholder="Find"
          value=${wanted} onInput=${(event) => setWanted(event.target.value)} />
        ${groups.map(({ title, items }) => {
          const shown = items.filter((item) => `${item.label} ${item.mark ?? ""}`.toLowerCase().includes(text))
          return (
            shown.length > 0 &&
            html`
            <h2>${title}</h2>
            <ul>${shown.map(
              ({ id, label, mark }) => html`
              <li><a href=${`#/${name}/${id}`} aria-current=${id === at ? "true" : undefined}>
                ${mark && html`<span class=${`mark-word ${mark.toLowerCase()}`}>${mark}</span>`} <span>${label}</span>
              </a></li>
            `,
            )}</ul>
          `
          )
        })}
      </nav>
    </details>
  `
}

render(html`<${App} />`, document.getElementById("app"))
