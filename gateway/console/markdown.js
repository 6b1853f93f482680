/**
 * A part of Markdown as elements: headings, paragraphs, lists, tables, code, quotes, rules, emphasis, links, images that
 * the caller knows. What agents write is not trusted: there is no HTML in it, only text; links lead to http, https and
 * mailto and open apart. What is no Markdown of this kind stays text.
 */

import { classes, h, html, memo } from "./dom.js"

const MOST = 400_000
const NEST = 6
// A heading of so few characters stands on one line: a table that is too wide can be moved.
const SHORT = 26

/**
 * Text as elements. Text that grows at its end is cheap to draw again: blocks that are the same as before are not.
 * @param {{text: string, image?: (address: string, alt: string) => any}} props `image` draws an image whose address it
 *   knows, and returns nothing for others, which are then shown as their description.
 */
export function Markdown({ text, image }) {
  const shown = text.length > MOST ? `${text.slice(0, MOST)}\n\n… the rest is not shown` : text
  return html`<div class="markdown">
    ${blocksOf(shown).map((block, index) => h(Block, { key: index, source: block, image }))}
  </div>`
}

const Block = memo(({ source, image }) => drawBlocks(source.split("\n"), { image, depth: 0 }))

/** The text cut at blank lines that are outside of code; each piece stands alone. */
export function blocksOf(text) {
  const blocks = []
  let lines = []
  let fence = ""
  let item = false
  const end = () => {
    if (lines.length) blocks.push(lines.join("\n"))
    lines = []
  }
  const put = (line) => {
    if (!lines.length) item = isItem(line)
    lines.push(line)
  }
  // Every sign that ends a line for a regular expression ends one here, too.
  for (const line of text.split(/\r\n|[\n\r\u2028\u2029]/)) {
    const mark = /^ {0,3}(`{3,}|~{3,})/.exec(line)?.[1]
    if (fence) {
      lines.push(line)
      if (mark && mark[0] === fence[0] && mark.length >= fence.length && line.trim() === mark) {
        fence = ""
        end()
      }
    } else if (mark) {
      fence = mark
      put(line)
    } else if (!line.trim()) {
      // A blank line between items of a list does not end it.
      if (!lines.length || !item) end()
      else lines.push("")
    } else {
      if (lines.length && lines.at(-1) === "" && !isItem(line) && !/^\s{2,}/.test(line)) end()
      put(line)
    }
  }
  end()
  return blocks
}

const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/
const isItem = (line) => ITEM.test(line)
const RULE = /^ {0,3}([-*_])( *\1){2,} *$/
const HEADING = /^ {0,3}(#{1,6})\s+(.*)$/
const isDelimiter = (line) =>
  line !== undefined && line.includes("-") && cells(line).every((cell) => /^:?-+:?$/.test(cell))

function drawBlocks(lines, how) {
  const drawn = []
  let at = 0
  while (at < lines.length) {
    const line = lines[at]
    const fence = /^ {0,3}(`{3,}|~{3,})\s*([\w+-]*)/.exec(line)
    const heading = HEADING.exec(line)
    if (!line.trim()) {
      at += 1
    } else if (fence) {
      const stop = until(lines, at + 1, (other) => other.trim().startsWith(fence[1]))
      // A region that scrolls is reached by the keyboard, too.
      drawn.push(html`<pre tabindex="0"><code>${lines.slice(at + 1, stop).join("\n")}</code></pre>`)
      at = stop + 1
    } else if (heading) {
      // The page has its own h1 and h2 above.
      drawn.push(
        h(
          `h${Math.min(heading[1].length + 2, 6)}`,
          { class: `md-h${heading[1].length}` },
          inline(withoutMarks(heading[2]), how),
        ),
      )
      at += 1
    } else if (RULE.test(line)) {
      drawn.push(html`<hr />`)
      at += 1
    } else if (line.includes("|") && isDelimiter(lines[at + 1])) {
      const stop = until(lines, at + 2, (other) => !other.includes("|"))
      drawn.push(table(lines.slice(at, stop), how))
      at = stop
    } else if (/^ {0,3}>/.test(line) && how.depth < NEST) {
      const stop = until(lines, at, (other) => !/^ {0,3}>/.test(other))
      const inner = lines.slice(at, stop).map((other) => other.replace(/^ {0,3}> ?/, ""))
      drawn.push(html`<blockquote>${drawBlocks(inner, { ...how, depth: how.depth + 1 })}</blockquote>`)
      at = stop
    } else if (isItem(line) && how.depth < NEST) {
      const stop = until(lines, at + 1, (other, index) => !continuesList(lines, index))
      drawn.push(list(lines.slice(at, stop), how))
      at = stop
    } else {
      const stop = until(
        lines,
        at + 1,
        (other) => !other.trim() || HEADING.test(other) || isItem(other) || /^ {0,3}(`{3}|~{3}|>)/.test(other),
      )
      drawn.push(html`<p>${inline(lines.slice(at, stop).join("\n"), how)}</p>`)
      at = stop
    }
  }
  return drawn
}

/** A heading may be closed by the signs that it was opened with. */
function withoutMarks(text) {
  let end = text.trimEnd().length
  const whole = end
  while (end > 0 && text[end - 1] === "#") end -= 1
  return end < whole && (end === 0 || text[end - 1] === " ") ? text.slice(0, end).trimEnd() : text.slice(0, whole)
}

function until(lines, from, stops) {
  let at = from
  while (at < lines.length && !stops(lines[at], at)) at += 1
  return at
}

function continuesList(lines, index) {
  const line = lines[index]
  return !line.trim() || isItem(line) || /^\s{2,}/.test(line) || lines[index - 1].trim() !== ""
}

function list(lines, how) {
  const [, indent, mark] = ITEM.exec(lines[0])
  const items = []
  for (const line of lines) {
    const item = ITEM.exec(line)
    if (item && item[1].length <= indent.length + 1) items.push([item[3]])
    else items.at(-1).push(line.replace(/^\s{1,4}/, ""))
  }
  const ordered = /\d/.test(mark)
  const drawn = items.map((item) => {
    const [first, ...rest] = item
    const task = /^\[([ xX])\]\s+(.*)$/.exec(first)
    const head = task ? [task[1] === " " ? "☐ " : "☑ ", inline(task[2], how)] : inline(first, how)
    return html`<li>${head}${rest.length ? drawBlocks(rest, { ...how, depth: how.depth + 1 }) : null}</li>`
  })
  return ordered ? html`<ol start=${Number.parseInt(mark, 10)}>${drawn}</ol>` : html`<ul>${drawn}</ul>`
}

function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/\|$/, "")
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"))
}

function table(lines, how) {
  const sides = cells(lines[1]).map((cell) => (/^:-+:$/.test(cell) ? "centre" : /-:$/.test(cell) ? "right" : ""))
  const head = (cell, at) =>
    h("th", { class: classes(sides[at], cell.length <= SHORT && "short"), scope: "col" }, inline(cell, how))
  const body = (cell, at) => h("td", { class: sides[at] }, inline(cell, how))
  const row = (line, draw) => cells(line).slice(0, 40).map(draw)
  return html`<div class="table" tabindex="0" role="region" aria-label="Table">
    <table>
      <thead><tr>${row(lines[0], head)}</tr></thead>
      <tbody>${lines.slice(2).map((line) => html`<tr>${row(line, body)}</tr>`)}</tbody>
    </table>
  </div>`
}

// In this order: code first, since nothing in it is anything else. Every part ends at the character that it begins with,
// or has a bound: nobody can write a line that takes longer than its length allows.
const INLINE = new RegExp(
  [
    String.raw`(?<!${"`"})(${"`"}{1,3})(?!${"`"})([^${"`"}]{1,4000})\1(?!${"`"})`,
    String.raw`!\[([^[\]\n]{0,500})\]\(([^()\s]{1,2000})\)`,
    String.raw`\[([^[\]\n]{1,500})\]\(([^()\s]{1,2000})\)`,
    String.raw`(https?:\/\/[^\s<>()]{1,2000})`,
    String.raw`\*\*([^*\n]{1,4000})\*\*`,
    String.raw`\*([^*\s][^*\n]{0,4000})\*`,
    String.raw`(?<!\w)_([^_\n]{1,4000})_(?!\w)`,
    String.raw`~~([^~\n]{1,4000})~~`,
    String.raw`\\([\\${"`"}*_{}[\]()#+.!|~-])`,
  ].join("|"),
  "g",
)

function inline(text, how, nested = 0) {
  if (nested > NEST) return text
  const drawn = []
  let at = 0
  for (const found of text.matchAll(INLINE)) {
    if (found.index > at) drawn.push(text.slice(at, found.index))
    at = found.index + found[0].length
    const [, , code, alt, source, label, target, address, strong, emphasis, low, gone, escaped] = found
    // A full stop after an address ends the sentence.
    const bare = address?.replace(/[.,;:!?'"]{1,9}$/, "")
    if (bare) at -= address.length - bare.length
    if (code !== undefined) drawn.push(html`<code>${code}</code>`)
    else if (source !== undefined) drawn.push(how.image?.(source, alt) ?? html`<em>${alt || "image"}</em>`)
    else if (target !== undefined) drawn.push(link(target, inline(label, how, nested + 1)))
    else if (bare !== undefined) drawn.push(link(bare, bare))
    else if (strong !== undefined) drawn.push(html`<strong>${inline(strong, how, nested + 1)}</strong>`)
    else if (emphasis ?? low) drawn.push(html`<em>${inline(emphasis ?? low, how, nested + 1)}</em>`)
    else if (gone !== undefined) drawn.push(html`<del>${gone}</del>`)
    else drawn.push(escaped)
  }
  if (at < text.length) drawn.push(text.slice(at))
  return drawn
}

/** A link, if it leads where links of strangers may lead; otherwise its text. */
function link(target, label) {
  let address
  try {
    address = new URL(target)
  } catch {
    return label
  }
  if (!["http:", "https:", "mailto:"].includes(address.protocol)) return label
  return html`<a href=${address.href} target="_blank" rel="noopener noreferrer nofollow">${label}</a>`
}
