/** Signing in: by a name where the gateway offers that, else by a token that is pasted. */

import { check, tokenFor } from "../account.js"
import { html, useEffect, useId, useRef, useState } from "../dom.js"
import { Icon, Mark, Spinner } from "../icons.js"
import { Problem, sentence } from "./problem.js"

/** The page before anybody is signed in: what this is, and the way in. */
export function SignIn({ facts, note, begin }) {
  return html`<main class="welcome">
    <section class="welcome-card">
      <div class="brand"><${Mark} /><h1>Carrel</h1></div>
      <p class="lead">AI agents for many users at once. Each run has its own worker, its own events and its own limits; nobody sees, waits for or pays for anybody else.</p>
      ${note ? html`<p class="notice" role="status"><${Icon} name="note" /> <span>${sentence(note.message)} ${note.advice ? sentence(note.advice) : ""}</span></p>` : null}
      <${SignInForm} facts=${facts} begin=${begin} focus />
    </section>
    <footer class="quiet welcome-foot">${facts.version ? `Version ${facts.version}` : ""}</footer>
  </main>`
}

/**
 * @param {{facts: {sign_in_by_name?: boolean}, begin: (token: string) => void, name?: string, compact?: boolean, focus?: boolean}} props
 */
export function SignInForm({ facts, begin, name = "", compact = false, focus = false }) {
  const [way, setWay] = useState(facts.sign_in_by_name ? "name" : "token")
  const [busy, setBusy] = useState(false)
  const [error, setError] = useState(null)
  const [user, setUser] = useState(name)
  const [operator, setOperator] = useState(false)
  const [token, setToken] = useState("")
  const field = useRef(null)
  const id = useId()
  useEffect(() => {
    if (focus) field.current?.focus()
  }, [way])

  const submit = async (event) => {
    event.preventDefault()
    if (busy) return
    setBusy(true)
    setError(null)
    try {
      const given = way === "name" ? await tokenFor(user.trim(), operator) : token.trim().replace(/^Bearer\s+/i, "")
      await check(given)
      begin(given)
    } catch (problem) {
      setError(problem)
      setBusy(false)
      field.current?.focus()
    }
  }

  const byName = html`
    <label class="field" for=${`${id}-user`}><span>Your name</span>
      <input ref=${field} id=${`${id}-user`} name="user" autocomplete="username" spellcheck=${false} required maxlength="128"
        pattern="[!-.0-~]+" title="Letters, digits and signs; no spaces and no slash" placeholder="alice" value=${user} onInput=${(event) => setUser(event.target.value)} />
    </label>
    ${
      compact
        ? null
        : html`<label class="tick"><input type="checkbox" checked=${operator} onChange=${(event) => setOperator(event.target.checked)} />
      <span>Also show the operator's view</span></label>`
    }`
  const byToken = html`
    <label class="field" for=${`${id}-token`}><span>Token</span>
      <textarea ref=${field} id=${`${id}-token`} name="token" rows=${compact ? 2 : 4} required spellcheck=${false} autocomplete="off" placeholder="eyJhbGciOi…"
        aria-describedby=${`${id}-hint`} value=${token} onInput=${(event) => setToken(event.target.value)}></textarea>
    </label>
    <p class="hint" id=${`${id}-hint`}>From your deployment's own sign-in; in development from <code>carrel token --user NAME</code>. It stays in this tab.</p>`

  return html`<form class="sign-in" onSubmit=${submit}>
    ${way === "name" ? byName : byToken}
    ${error ? html`<${Problem} error=${error} />` : null}
    <button class="button main wide" type="submit" disabled=${busy}>${busy ? html`<${Spinner} /> Signing in` : "Sign in"}</button>
    ${
      facts.sign_in_by_name
        ? html`<button type="button" class="link" onClick=${() => setWay(way === "name" ? "token" : "name")}>
      ${way === "name" ? "Paste a token instead" : "Sign in by a name instead"}</button>`
        : null
    }
    ${way === "name" && !compact ? html`<p class="hint">This is a development stack: any name will do, and needs no password.</p>` : null}
  </form>`
}
