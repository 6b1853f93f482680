/** The console: signs a user in, and shows what the address names. */

import { about, BASE, check, forgetTokens, keepToken, keptToken } from "./account.js"
import { html, render, useEffect, useErrorBoundary, useState } from "./dom.js"
import { Session } from "./session.js"
import { useStore } from "./stores.js"
import { Problem } from "./views/problem.js"
import { Shell } from "./views/shell.js"
import { SignIn } from "./views/sign_in.js"
import { Spinner } from "./icons.js"

const MAIN = "main"

function App() {
  const [facts, setFacts] = useState(undefined)
  const [session, setSession] = useState(null)
  const [note, setNote] = useState(null)
  const [looking, setLooking] = useState(Boolean(keptToken(MAIN)))
  const [fault] = useErrorBoundary((error) => console.error(error))

  const begin = (token) => {
    keepToken(MAIN, token)
    setNote(null)
    setLooking(false)
    setSession(new Session(token, BASE).start())
  }
  const end = (why) => {
    keepToken(MAIN, "")
    session?.close()
    setSession(null)
    setNote(why)
    setLooking(false)
  }

  useEffect(() => {
    about().then(setFacts, () => setFacts({ version: "", sign_in_by_name: false, docs: false }))
    const kept = keptToken(MAIN)
    if (kept) {
      check(kept).then(
        () => begin(kept),
        (error) => {
          // A gateway that is away says nothing about the token.
          if (error.status === "UNAUTHENTICATED") end(error)
          else begin(kept)
        },
      )
    }
  }, [])

  if (fault) {
    return html`<main class="centred"><${Problem} error=${{ message: "This page has met a fault of its own.", advice: "Load it again. Nothing is lost: runs go on, and what they do is kept." }}
      actions=${[{ label: "Load again", act: () => location.reload() }]} /></main>`
  }
  // How one may sign in is known before anything is shown that asks for it.
  if (facts === undefined || looking)
    return html`<main class="centred" aria-busy="true"><${Spinner} /><span class="quiet">Loading</span></main>`
  if (session) return html`<${SignedIn} session=${session} facts=${facts} end=${end} key=${session.token} />`
  return html`<${SignIn} facts=${facts} note=${note} begin=${begin} />`
}

function SignedIn({ session, facts, end }) {
  useStore(session)
  useEffect(() => {
    if (session.over) end(session.over)
  }, [session.over])
  const signOut = async () => {
    // Whether or not it can be told, this page forgets the token.
    await session.rest.logout().catch(() => {})
    forgetTokens()
    end({ message: "You are signed out." })
  }
  return html`<${Shell} session=${session} facts=${facts} signOut=${signOut} />`
}

render(html`<${App} />`, document.getElementById("app"))
