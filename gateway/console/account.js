/**
 * Signing in and out: what the gateway offers, where this tab keeps its token. Only session storage is used: it ends with
 * the tab, and no other tab sees it.
 */

import { CarrelError, Rest } from "./client/index.js"

/** The gateway's address, which is where this file came from. */
export const BASE = new URL("..", import.meta.url).href.replace(/\/$/, "")

const PREFIX = "carrel.token."

/** The token that is kept under a name; empty when there is none. */
export function keptToken(name) {
  try {
    return sessionStorage.getItem(PREFIX + name) ?? ""
  } catch {
    return ""
  }
}

/** Keeps a token under a name, or forgets the one that is there. */
export function keepToken(name, token) {
  try {
    if (token) sessionStorage.setItem(PREFIX + name, token)
    else sessionStorage.removeItem(PREFIX + name)
  } catch {
    // Where nothing may be kept, the sign-in lasts as long as the page.
  }
}

/** Forgets every token that this tab keeps, those of the view with two users too: whoever sits here next is another. */
export function forgetTokens() {
  try {
    for (const key of Object.keys(sessionStorage)) if (key.startsWith(PREFIX)) sessionStorage.removeItem(key)
  } catch {
    // Nothing was kept.
  }
}

/** What the gateway is and how one may sign in: `{version, sign_in_by_name, docs}`. */
export async function about() {
  const response = await fetch(`${BASE}/console/about.json`)
  if (!response.ok)
    throw new CarrelError(`the gateway answers with status ${response.status}`, { advice: "try again shortly" })
  return response.json()
}

/**
 * Whether the view with two users is offered: where a name signs in, or to operators, who show others what a deployment
 * does. Elsewhere hardly anybody has a second token at hand; its address is there for those who have.
 */
export function offersTwo(session, facts) {
  return Boolean(facts.sign_in_by_name) || session.operator
}

/** A development token for a user of this name. */
export async function tokenFor(user, operator = false) {
  const response = await fetch(`${BASE}/console/sign-in`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ user, operator }),
  })
  const body = await response.json().catch(() => ({}))
  if (!response.ok) throw refusal(body.error, response.status)
  return body.token
}

/**
 * Says whether the gateway takes a token from this page. Asked by POST, since only then browsers say which page asks: a
 * page whose address is not allowed is told so here, and not by sockets that fail without a word.
 * @throws {CarrelError} It does not, or cannot be reached.
 */
export async function check(token) {
  await new Rest({ url: BASE, token }).socketToken()
}

function refusal(error, status) {
  return new CarrelError(error?.message ?? `the gateway answers with status ${status}`, {
    code: error?.code,
    advice: error?.advice,
    retryable: error?.retryable,
    details: error?.details,
  })
}
