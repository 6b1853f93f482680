/** What a run has made: its report with its charts, other files to look at and to save. Made by agents, so never trusted. */

import { classes, html, useEffect, useRef, useState } from "../dom.js"
import { bytes, pretty } from "../format.js"
import { Icon, Spinner } from "../icons.js"
import { Markdown } from "../markdown.js"
import { Problem } from "./problem.js"

const REPORT_MOST = 1024 * 1024
// A report may name a picture as often as it likes: beyond so many places it is named by its words.
const PICTURES_MOST = 100
// Pictures that a browser draws without running anything of them: as images, never as documents of their own.
const PICTURES = new Set(["image/png", "image/jpeg", "image/gif", "image/webp", "image/svg+xml"])
const typeOf = (artifact) => String(artifact.media_type).split(";")[0].trim().toLowerCase()
const TEXTS = new Set(["text/plain", "text/csv", "application/json"])

/** @param {{session: any, run: any}} props */
export function Report({ session, run }) {
  const [artifacts, setArtifacts] = useState(run.artifacts)
  const [error, setError] = useState(null)
  const load = () => {
    setError(null)
    session.rest.artifacts(run.runId).then((found) => {
      run.artifacts = found
      setArtifacts(found)
    }, setError)
  }
  useEffect(() => {
    if (artifacts === null) load()
  }, [])
  if (error)
    return html`<${Problem} title="What the run has made cannot be listed." error=${error} actions=${[{ label: "Try again", act: load }]} />`
  if (!artifacts?.length) return null
  const reports = artifacts.filter((artifact) => typeOf(artifact) === "text/markdown" && artifact.size <= REPORT_MOST)
  const shown = new Set(reports.length ? artifacts.filter(isPicture).map((artifact) => artifact.name) : [])
  const others = artifacts.filter((artifact) => !reports.includes(artifact))
  return html`<section class="made" aria-label="What the run has made">
    ${reports.map((report) => html`<${Document} key=${report.name} session=${session} run=${run} report=${report} artifacts=${artifacts} />`)}
    ${others.length ? html`<ul class="files">${others.map((artifact) => html`<${File} key=${artifact.name} session=${session} run=${run} artifact=${artifact} closed=${shown.has(artifact.name)} />`)}</ul>` : null}
  </section>`
}

function Document({ session, run, report, artifacts }) {
  const [text, setText] = useState(null)
  const [error, setError] = useState(null)
  // Each picture is asked for once, in however many places it is shown.
  const read = useRef(new Map())
  useEffect(() => {
    session.rest
      .artifact(run.runId, report)
      .then((blob) => blob.text())
      .then(setText, setError)
  }, [])
  if (error) return html`<${Problem} title=${`${report.name} cannot be read.`} error=${error} />`
  const once = (artifact) => {
    if (!read.current.has(artifact.name)) read.current.set(artifact.name, session.rest.artifact(run.runId, artifact))
    return read.current.get(artifact.name)
  }
  let places = 0
  const image = (name, alt) => {
    const picture = artifacts.find((artifact) => artifact.name === name && isPicture(artifact))
    if (!picture || places >= PICTURES_MOST) return undefined
    places += 1
    return html`<${Picture} session=${session} run=${run} artifact=${picture} alt=${alt} read=${once} />`
  }
  return html`<article class="report" aria-label=${report.name} aria-busy=${text === null}>
    <header class="report-head"><${Icon} name="file" /><span class="grow">${report.name}</span><${Save} session=${session} run=${run} artifact=${report} /></header>
    <div class="report-body">${text === null ? html`<p class="quiet"><${Spinner} /> Reading the report</p>` : html`<${Markdown} text=${text} image=${image} />`}</div>
  </article>`
}

function File({ session, run, artifact, closed }) {
  const [open, setOpen] = useState(false)
  const can = isPicture(artifact) || (TEXTS.has(typeOf(artifact)) && artifact.size <= REPORT_MOST)
  return html`<li class="file">
    <div class="file-line">
      <${Icon} name="file" /><span class="grow file-name">${artifact.name}</span><span class="quiet">${bytes(artifact.size)}</span>
      ${can && !closed ? html`<button type="button" class="link" aria-expanded=${open} onClick=${() => setOpen(!open)} aria-label=${`${open ? "Hide" : "Show"} ${artifact.name}`}>${open ? "Hide" : "Show"}</button>` : null}
      <${Save} session=${session} run=${run} artifact=${artifact} />
    </div>
    ${open ? (isPicture(artifact) ? html`<${Picture} session=${session} run=${run} artifact=${artifact} alt=${artifact.name} />` : html`<${Text} session=${session} run=${run} artifact=${artifact} />`) : null}
  </li>`
}

function Text({ session, run, artifact }) {
  const [text, setText] = useState(null)
  const [error, setError] = useState(null)
  useEffect(() => {
    session.rest
      .artifact(run.runId, artifact)
      .then((blob) => blob.text())
      .then((read) => setText(typeOf(artifact) === "application/json" ? tidy(read) : read), setError)
  }, [])
  if (error) return html`<${Problem} error=${error} />`
  return html`<pre tabindex="0">${text === null ? "…" : text.slice(0, 200_000)}</pre>`
}

/**
 * An image of the run's own, by an address that only this page knows and that ends with the picture. `read` gives its
 * bytes where they are shared.
 */
export function Picture({ session, run, artifact, alt, read = (one) => session.rest.artifact(run.runId, one) }) {
  const [address, setAddress] = useState("")
  const [error, setError] = useState(null)
  useEffect(() => {
    let made = ""
    let gone = false
    read(artifact).then((blob) => {
      if (gone) return
      made = URL.createObjectURL(blob)
      setAddress(made)
    }, setError)
    return () => {
      gone = true
      if (made) URL.revokeObjectURL(made)
    }
  }, [])
  if (error) return html`<span class="wrong">${artifact.name} cannot be read: ${error.message}</span>`
  const drawn = typeOf(artifact) === "image/svg+xml"
  return html`<figure class=${classes("picture", drawn && "drawn")}>${address ? html`<img src=${address} alt=${alt || artifact.name} />` : html`<span class="picture-gap"><${Spinner} /></span>`}</figure>`
}

function Save({ session, run, artifact }) {
  const [error, setError] = useState("")
  const save = async () => {
    setError("")
    try {
      const blob = await session.rest.artifact(run.runId, artifact)
      // As bytes: a browser shows none of it as a document of this page's.
      const address = URL.createObjectURL(new Blob([blob], { type: "application/octet-stream" }))
      const link = document.createElement("a")
      link.href = address
      link.download = artifact.name.replaceAll(/[^\w.-]+/g, "_")
      link.click()
      setTimeout(() => URL.revokeObjectURL(address), 10_000)
    } catch (problem) {
      setError(problem.message)
    }
  }
  return html`<button type="button" class="icon-button" onClick=${save} aria-label=${`Save ${artifact.name}`} title=${error || `Save ${artifact.name}`}><${Icon} name="down" /></button>
    ${error ? html`<span class="wrong" role="alert">${error}</span>` : null}`
}

const isPicture = (artifact) => PICTURES.has(typeOf(artifact))

function tidy(text) {
  try {
    return pretty(JSON.parse(text), 200_000)
  } catch {
    return text
  }
}
