/** The console's Markdown: what it draws, that nothing of it is markup of a stranger's, and that no text makes it slow. */

import assert from "node:assert/strict"
import { test } from "node:test"

import { blocksOf, Markdown } from "../../../gateway/console/markdown.js"
import { Fragment } from "../../../gateway/console/vendor/preact.js"

const TAGS = new Set([
  "div", "p", "h3", "h4", "h5", "h6", "ul", "ol", "li", "pre", "code", "table", "thead", "tbody", "tr", "th", "td", "blockquote", "hr",
  "strong", "em", "del", "a",
])

/** What would be in the document: tags, attributes, text. */
function drawn(node) {
  if (node === null || node === undefined || node === false) return ""
  if (typeof node === "string" || typeof node === "number") return String(node).replaceAll("&", "&amp;").replaceAll("<", "&lt;")
  if (Array.isArray(node)) return node.map(drawn).join("")
  const { type, props } = node
  if (type === Fragment) return drawn(props.children)
  if (typeof type === "function") {
    return drawn(type.prototype?.render ? new type(props).render.call({ props }) : type(props))
  }
  assert.ok(TAGS.has(type), `<${type}>`)
  const { children, ...attributes } = props
  for (const name of Object.keys(attributes)) {
    assert.ok(["class", "href", "target", "rel", "start", "tabindex", "role", "aria-label", "scope", "key"].includes(name), name)
  }
  const href = attributes.href ? ` href=${attributes.href}` : ""
  return `<${type}${href}>${drawn(children)}</${type}>`
}

const of = (text) => drawn(Markdown({ text }))

test("headings, lists, tables, code and emphasis", () => {
  assert.equal(of("# Title ##"), "<div><h3>Title</h3></div>")
  assert.equal(of("## C#"), "<div><h4>C#</h4></div>")
  assert.equal(of("- one\n- two\n  - inner"), "<div><ul><li>one</li><li>two<ul><li>inner</li></ul></li></ul></div>")
  assert.equal(of("3. three\n4. four"), "<div><ol><li>three</li><li>four</li></ol></div>")
  assert.match(of("| a | b |\n|---|---:|\n| 1 | 2 |"), /<table><thead><tr><th>a<\/th><th>b<\/th><\/tr><\/thead><tbody><tr><td>1<\/td><td>2<\/td>/)
  assert.equal(of("```js\nlet a = **1**\n```"), "<div><pre><code>let a = **1**</code></pre></div>")
  assert.equal(of("**bold** and *soft* and `code *`"), "<div><p><strong>bold</strong> and <em>soft</em> and <code>code *</code></p></div>")
  assert.equal(of("> said\n> more"), "<div><blockquote><p>said\nmore</p></blockquote></div>")
  assert.equal(of("snake_case_name and 2*3*4"), "<div><p>snake_case_name and 2<em>3</em>4</p></div>")
})

test("links lead to the web and nowhere else", () => {
  assert.equal(of("[a](https://example.com/x)"), "<div><p><a href=https://example.com/x>a</a></p></div>")
  assert.equal(of("see https://example.com/x."), "<div><p>see <a href=https://example.com/x>https://example.com/x</a>.</p></div>")
  for (const bad of ["javascript:alert(1)", "JaVaScRiPt:alert`1`", "data:text/html,x", "vbscript:x", "/api/logout", "//evil.example", "blob:x"]) {
    assert.ok(!of(`[a](${bad})`).includes("<a "), bad)
  }
})

test("markup of an agent's is text", () => {
  for (const text of ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "a <b>b</b>", "| <i> |\n|---|\n| <u> |", "# <h1>", "- <li>"]) {
    assert.ok(!/<(script|img|b|i|u|h1)[ >]/.test(of(text)), text)
    assert.ok(of(text).includes("&lt;"), text)
  }
  assert.equal(of("![alt](https://example.com/a.png)"), "<div><p><em>alt</em></p></div>")
})

test("text that grows keeps its blocks", () => {
  const before = blocksOf("one\n\ntwo\n\n```\na\n\nb")
  assert.deepEqual(before, ["one", "two", "```\na\n\nb"])
  assert.deepEqual(blocksOf("one\n\ntwo\n\n```\na\n\nb\n```\n\nthree").slice(0, 2), before.slice(0, 2))
})

test("no text makes it slow", () => {
  const many = 40_000
  const hard = [
    "`", "*", "**", "_", "[", "![", "![](", "[a](", "~~", "\\", "http://", "http://.", "#", "# #", " ", "\t-", "|", "|-", "> ", "- ", "1. ",
    "```\n", "a\n\n", "- a\n  ", "| a |\n|-|\n", "[a](b ", "*a ", "_a ", "`` ", "=-",
  ].map((piece) => piece.repeat(many / piece.length))
  const wide = 200_000
  hard.push("[".repeat(wide), "![".repeat(wide / 2), `- ${" ".repeat(wide)}x\u2028y`, `# ${" ".repeat(wide)}x\ry`)
  hard.push(`- ${"x".repeat(wide)}${"\n".repeat(wide)}`, "> ```\n".repeat(wide / 6))
  hard.push(`${" ".repeat(many)}-x|`, `a|b\n${" ".repeat(many)}-x`, `# ${"#".repeat(many)}x`, `http://${".".repeat(many)}`)
  for (const text of hard) {
    // Its own time: others may be at work on the machine.
    const began = process.cpuUsage()
    of(text)
    const { user, system } = process.cpuUsage(began)
    assert.ok(user + system < 2_000_000, JSON.stringify(text.slice(0, 12)))
  }
})
