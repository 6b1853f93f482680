/** A user's conversations: their list, and of those that were opened what was said in them. */

import { shorten } from "./format.js"
import { Store } from "./stores.js"

const PAGE = 40
const TITLES_AT_ONCE = 3
// Of a conversation the newest so many messages and runs are kept; beyond so many pages it is not read to its end.
const MESSAGES_MOST = 5000
const PAGES_MOST = 100
const TITLE = 64

export class Threads extends Store {
  constructor(session) {
    super()
    this._session = session
    /** Newest first. */
    this.list = []
    this.byId = new Map()
    this.loaded = false
    this.error = null
    this.next = ""
    this._untitled = []
    this._titling = 0
  }

  /** The list anew, from the beginning. */
  async load() {
    await this._page("")
  }

  /** Older ones. */
  async more() {
    if (this.next) await this._page(this.next)
  }

  async _page(token) {
    try {
      const page = await this._session.rest.threads({ pageSize: PAGE, pageToken: token || undefined })
      for (const told of page.threads) this._listed(this.thread(told.thread_id)).tell(told)
      this.next = page.next_page_token ?? ""
      this.error = null
      this.loaded = true
      this._sort()
      this._titles()
    } catch (error) {
      this.error = error
    }
    this.changed()
  }

  /** The thread of this id, whether it is known or not. */
  thread(threadId) {
    let thread = this.byId.get(threadId)
    if (!thread) {
      thread = new Thread(threadId, this._session)
      this.byId.set(threadId, thread)
    }
    return thread
  }

  /** Lists a thread that exists: an address may name one that does not. */
  _listed(thread) {
    if (!this.list.includes(thread)) this.list.push(thread)
    return thread
  }

  /** A message is on its way; in a thread that exists it is shown there. */
  begin(draft) {
    if (draft.threadId) {
      const thread = this.thread(draft.threadId)
      thread.drafts.push(draft)
      thread.changed()
    }
  }

  /** It has become a run. */
  accepted(draft, run) {
    const thread = this.thread(run.threadId)
    thread.drafts = thread.drafts.filter((other) => other !== draft)
    // A thread that began here has nothing from before.
    if (!draft.request.threadId) thread.loaded = true
    thread.title ||= shorten(draft.request.message, TITLE)
    thread.add(run)
    this._touch(thread)
  }

  /** A run began, went on or ended, perhaps at another client of the user. */
  moved(run, event) {
    const thread = this.thread(run.threadId)
    const known = this.list.includes(thread)
    thread.add(run)
    thread.active = thread.runs.find((other) => !other.ended)?.runId ?? ""
    if (!run.message && thread.loaded && !run.ended) thread.reload()
    this._touch(thread, Date.parse(event.timestamp))
    if (!known) this._titles()
  }

  /** Deletes a thread with its runs. */
  async remove(thread) {
    await this._session.rest.deleteThread(thread.threadId)
    this.byId.delete(thread.threadId)
    this.list = this.list.filter((other) => other !== thread)
    this.changed()
  }

  _touch(thread, at = Date.now()) {
    this._listed(thread)
    thread.updatedAt = Math.max(thread.updatedAt, at || 0)
    this._sort()
    thread.changed()
    this.changed()
  }

  _sort() {
    this.list = [...this.list].sort((one, other) => other.updatedAt - one.updatedAt)
  }

  /** A thread has no title of its own: its first message is one. Asked for a few at a time. */
  _titles() {
    this._untitled = this.list.filter((thread) => !thread.title && !thread.asked)
    while (this._titling < TITLES_AT_ONCE && this._untitled.length) {
      const thread = this._untitled.shift()
      thread.asked = true
      this._titling += 1
      this._session.rest
        .messages(thread.threadId, { pageSize: 1 })
        .then(
          ({ messages }) => {
            thread.title ||= shorten(messages[0]?.text, TITLE)
          },
          () => {},
        )
        .finally(() => {
          this._titling -= 1
          thread.changed()
          this.changed()
          this._titles()
        })
    }
  }
}

export class Thread extends Store {
  constructor(threadId, session) {
    super()
    this._session = session
    this.threadId = threadId
    this.title = ""
    this.updatedAt = 0
    this.active = ""
    /** Oldest first. */
    this.runs = []
    this.drafts = []
    this.loaded = false
    this.loading = false
    this.error = null
    this.gone = false
    /** How many of its first messages are left out; whether there are more than are read. */
    this.left = 0
    this.more = false
  }

  tell({ updated_at: updated, unended_run_id: active }) {
    this.updatedAt = Date.parse(updated) || this.updatedAt
    this.active = active ?? ""
    this.changed()
  }

  add(run) {
    if (this.runs.includes(run)) return
    this.runs = [...this.runs, run].sort((one, other) => (one.runId < other.runId ? -1 : 1))
    this.changed()
  }

  /** What was said in it, and how its runs stand; once. */
  async open() {
    if (this.loaded || this.loading) return
    await this.reload()
  }

  async reload() {
    if (this.loading) return
    this.loading = true
    this.error = null
    this.changed()
    try {
      const [messages, runs] = await Promise.all([this._messages(), this._told()])
      for (const told of runs) {
        const run = this._session.run(told.run_id, told.thread_id)
        run.tell(told)
        this.add(run)
      }
      this._said(messages.found)
      this.left = messages.left
      this.more = messages.more
      this.loaded = true
      // What is under way is wanted whole; of the others it is read when somebody looks.
      for (const run of this.runs) if (!run.ended) this._session.history(run).catch(() => {})
    } catch (error) {
      this.error = error
      this.gone = error.code === "UNKNOWN_THREAD"
    }
    this.loading = false
    this.changed()
  }

  _messages() {
    const { rest } = this._session
    return newest((pageToken) => rest.messages(this.threadId, { pageSize: 1000, pageToken }))
  }

  /** Of every run how it stands: one that nobody spoke of would be taken for one that waits. */
  _told() {
    const { rest } = this._session
    return latestRuns((pageToken) => rest.runs({ threadId: this.threadId, pageSize: 200, pageToken }))
  }

  _said(messages) {
    const answers = new Map()
    for (const message of messages) {
      if (!message.run_id) continue
      const run = this._session.run(message.run_id, this.threadId)
      this.add(run)
      const result = message.role === "user" ? null : resultOf(message.text)
      if (message.role === "user") run.message = message.text
      else if (result) run.result ??= result
      else
        answers.set(run, [
          ...(answers.get(run) ?? []),
          { id: `said-${answers.get(run)?.length ?? 0}`, text: message.text },
        ])
    }
    for (const [run, said] of answers) {
      run.said = said
      run.changed()
    }
    this.title ||= shorten(messages.find((message) => message.role === "user")?.text, TITLE)
  }
}

/** A result without words, which a thread keeps as its JSON; null for words. */
function resultOf(text) {
  if (!text.startsWith("{")) return null
  try {
    return JSON.parse(text)
  } catch {
    return null
  }
}

/** The newest messages of pages that begin with the oldest; how many were `left` out, and whether there are `more` to come. */
async function newest(read) {
  let found = []
  let left = 0
  let token
  for (let pages = 0; pages < PAGES_MOST; pages += 1) {
    const page = await read(token)
    found.push(...page.messages)
    const over = found.length - MESSAGES_MOST
    if (over > 0) {
      left += over
      found = found.slice(over)
    }
    token = page.next_page_token || undefined
    if (!token) break
  }
  return { found, left, more: Boolean(token) }
}

/** The newest runs of pages that begin with them. */
async function latestRuns(read) {
  const found = []
  let token
  do {
    const page = await read(token)
    found.push(...page.runs)
    token = page.next_page_token || undefined
  } while (token && found.length < MESSAGES_MOST)
  return found
}
