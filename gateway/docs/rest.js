/** The page of docs/openapi.json. */

import { html, useState } from "./dom.js"
import { Code, Fields, Part, Table, Text, Type } from "./parts.js"

const PAGE = "rest"

/** @param {any} document OpenAPI 3.1. */
export function restPage(document) {
  const at = (part) =>
    part.$ref
      ? part.$ref
          .slice(2)
          .split("/")
          .reduce((inner, name) => inner[name], document)
      : part
  const operations = Object.entries(document.paths).flatMap(([path, item]) =>
    Object.entries(item).map(([method, operation]) => ({ path, method: method.toUpperCase(), operation })),
  )
  const byTag = document.tags.map((tag) => ({
    tag,
    inside: operations.filter(({ operation }) => operation.tags[0] === tag.name),
  }))
  const schemas = Object.entries(document.components.schemas)
  const groups = byTag.map(({ tag, inside }) => ({
    title: tag.name,
    items: inside.map(({ path, method, operation }) => ({ id: operation.operationId, label: path, mark: method })),
  }))
  groups.push({ title: "Objects", items: schemas.map(([name]) => ({ id: `schema/${name}`, label: name })) })
  const content = html`
    <h1>${document.info.title}</h1>
    <p class="lead"><${Text}>${document.info.description}</${Text}></p>
    ${byTag.map(
      ({ tag, inside }) => html`
      <h2>${tag.name}</h2>
      <p class="quiet"><${Text}>${tag.description}</${Text}></p>
      ${inside.map((one) => html`<${Operation} key=${one.operation.operationId} ...${one} at=${at} />`)}
    `,
    )}
    <h2>Objects</h2>
    ${schemas.map(
      ([name, schema]) => html`
      <${Part} key=${name} id=${`${PAGE}/schema/${name}`} title=${name}>
        ${schema.description && html`<p><${Text}>${schema.description}</${Text}></p>`}
        ${schema.enum && html`<p><${Type} schema=${schema} page=${PAGE} /></p>`}
        <${Fields} schema=${schema} page=${PAGE} label=${`Fields of ${name}`} />
      </${Part}>
    `,
    )}
  `
  return { groups, content }
}

function Operation({ path, method, operation, at }) {
  const title = html`<span class=${`mark-word ${method.toLowerCase()}`}>${method}</span> <code class="path">${path}</code>`
  const parameters = (operation.parameters ?? []).map(at)
  const open = operation.security.length === 0 || operation.security.some((way) => !Object.keys(way).length)
  const once = operation.security.some((way) => way.socketToken)
  return html`
    <${Part} id=${`${PAGE}/${operation.operationId}`} title=${title} kind="part operation">
      <p class="summary">${operation.summary}</p>
      ${operation.description && html`<p><${Text}>${operation.description}</${Text}></p>`}
      <p class="hint">${open ? "No login is needed." : once ? html`Login: the header <code>Authorization: Bearer …</code>, or <code>?socket_token=</code>.` : html`Login: the header <code>Authorization: Bearer …</code>.`}</p>
      ${
        parameters.length > 0 &&
        html`
        <h4>Parameters</h4>
        <${Table} label=${`Parameters of ${method} ${path}`} heads=${["name", "type", ""]} rows=${parameters.map(
          (one) => [
            html`<code>${one.name}</code><span class="quiet"> ${one.in}</span>${one.required && html`<span class="required">required</span>`}`,
            html`<${Type} schema=${one.schema} page=${PAGE} />`,
            html`<${Text}>${one.description ?? ""}</${Text}>`,
          ],
        )} />
      `
      }
      ${operation.requestBody && html`<h4>Body</h4><${Body} body=${operation.requestBody} />`}
      <h4>Answers</h4>
      <${Table} label=${`Answers of ${method} ${path}`} heads=${["status", "body", ""]} rows=${Object.entries(
        operation.responses,
      ).map(([status, answer]) => {
        const told = at(answer)
        return [
          html`<code>${status}</code>`,
          html`<${Content} content=${told.content} />`,
          html`<${Text}>${told.description}</${Text}>`,
        ]
      })} />
      <${Samples} samples=${operation["x-codeSamples"]} name=${operation.operationId} />
    </${Part}>
  `
}

function Body({ body }) {
  const { schema, example } = body.content["application/json"]
  return html`
    <p><${Type} schema=${schema} page=${PAGE} />, as <code>application/json</code>${body.required ? "" : "; may be left out"}.</p>
    ${example !== undefined && html`<${Code} label="Example of the body">${example}</${Code}>`}
  `
}

function Content({ content }) {
  const kinds = Object.entries(content ?? {})
  if (!kinds.length) return html`<span class="quiet">none</span>`
  return kinds.map(
    ([kind, { schema }], n) =>
      html`${n > 0 && ", "}${
        kind === "application/json" && schema?.$ref
          ? html`<${Type} schema=${schema} page=${PAGE} />`
          : html`<code>${kind}</code>`
      }`,
  )
}

/** The same in several languages, one at a time. */
function Samples({ samples, name }) {
  const [chosen, setChosen] = useState(0)
  if (!samples?.length) return null
  return html`
    <h4>Example: ${samples[chosen].label}</h4>
    <div class="languages" role="group" aria-label="Language">
      ${samples.map(
        ({ lang }, n) => html`
        <button type="button" class="button small" aria-pressed=${n === chosen} onClick=${() => setChosen(n)}>${lang}</button>
      `,
      )}
    </div>
    <${Code} key=${`${name} ${chosen}`} label=${`Example in ${samples[chosen].lang}`}>${samples[chosen].source}</${Code}>
  `
}
