/** What pages are made of: text with its code, tables of fields, what a JSON Schema says in a few words. */

import { html } from "./dom.js"

/** Text in which `this` is code. */
export function Text({ children }) {
  const text = String(children ?? "")
  return text
    .split(/(`[^`]+`)/)
    .map((part) => (part.startsWith("`") && part.length > 2 ? html`<code>${part.slice(1, -1)}</code>` : part))
}

/** A part of a page that an address leads to. */
export function Part({ id, title, children, level = 3, kind = "part" }) {
  const Heading = `h${level}`
  return html`<section class=${kind} id=${id}><${Heading}>${title} <a class="anchor" href=${`#/${id}`} aria-label="Link to this part">#</a></${Heading}>${children}</section>`
}

/** An example, as JSON or as it is. */
export function Code({ children, label }) {
  const text = typeof children === "string" ? children : JSON.stringify(children, null, 2)
  return html`<pre tabindex="0" role="region" aria-label=${label ?? "Example"}><code>${text}</code></pre>`
}

/** Rows, under headings for those that see them and for those that hear them. */
export function Table({ label, heads, rows }) {
  return html`
    <div class="table" tabindex="0" role="region" aria-label=${label}>
      <table>
        <thead><tr>${heads.map((head) => html`<th scope="col">${head}</th>`)}</tr></thead>
        <tbody>${rows.map((row) => html`<tr>${row.map((cell, n) => (n ? html`<td>${cell}</td>` : html`<th scope="row">${cell}</th>`))}</tr>`)}</tbody>
      </table>
    </div>
  `
}

const nameOf = (reference) => reference.split("/").at(-1)

/** A schema in a few words; references lead to where they are told. */
export function Type({ schema, page }) {
  if (!schema) return "anything"
  if (schema.$ref) return html`<a href=${`#/${page}/schema/${nameOf(schema.$ref)}`}>${nameOf(schema.$ref)}</a>`
  const several = schema.oneOf ?? schema.anyOf
  if (several && !schema.properties) return joined(several.map((one) => html`<${Type} schema=${one} page=${page} />`))
  if ("const" in schema) return html`<code>${JSON.stringify(schema.const)}</code>`
  if (schema.enum) return joined(schema.enum.map((one) => html`<code>${JSON.stringify(one)}</code>`))
  const types = [schema.type ?? "any JSON"].flat()
  return joined(
    types.map((type) => {
      if (type === "array") return html`array of ${html`<${Type} schema=${schema.items} page=${page} />`}`
      if (type === "object" && schema.additionalProperties?.$ref)
        return html`object of ${html`<${Type} schema=${schema.additionalProperties} page=${page} />`}`
      return type
    }),
  )
}

function joined(parts) {
  return parts.flatMap((part, n) => (n ? [" or ", part] : [part]))
}

/** Bounds of a value, as far as the schema has any. */
function bounds(schema) {
  const told = [
    schema.default !== undefined && `default ${JSON.stringify(schema.default)}`,
    schema.minimum !== undefined && `from ${schema.minimum}`,
    schema.maximum !== undefined && `to ${schema.maximum}`,
    schema.minLength > 1 && `${schema.minLength} characters or more`,
    schema.maxLength && `at most ${schema.maxLength} characters`,
    schema.maxItems && `at most ${schema.maxItems} items`,
  ]
  return told.filter(Boolean).join(", ")
}

/** The fields of an object, each with what it is; those of objects within it below it. */
export function Fields({ schema, page, label = "Fields" }) {
  const rows = [...fieldRows(schema, page, "")]
  return rows.length ? html`<${Table} label=${label} heads=${["field", "type", ""]} rows=${rows} />` : null
}

function* fieldRows(schema, page, before) {
  const required = new Set(schema.required ?? [])
  for (const [name, inner] of Object.entries(schema.properties ?? {})) {
    const more = bounds(inner)
    yield [
      html`<code>${before}${name}</code>${required.has(name) && html`<span class="required">required</span>`}`,
      html`<${Type} schema=${inner} page=${page} />`,
      html`<${Text}>${inner.description ?? ""}</${Text}>${more && html`<span class="quiet"> (${more})</span>`}`,
    ]
    if (inner.properties) yield* fieldRows(inner, page, `${before}${name}.`)
  }
}
