/** The page of docs/asyncapi.json. */

import { html } from "./dom.js"
import { Code, Fields, Part, Table, Text, Type } from "./parts.js"

const PAGE = "socket"
const nameOf = (reference) => reference.$ref.split("/").at(-1)

/** @param {any} document AsyncAPI 3.0, written from the gateway's side. */
export function socketPage(document) {
  const { messages, schemas } = document.components
  const sent = (action) => [
    ...new Set(
      Object.values(document.operations)
        .filter((operation) => operation.action === action)
        .flatMap((operation) => operation.messages.map(nameOf)),
    ),
  ]
  const fromGateway = sent("send")
  const lists = [
    { title: "From the client", names: sent("receive") },
    {
      title: "From the gateway",
      names: fromGateway.filter((name) => !name.startsWith("event_") || name === "event_batch"),
    },
    { title: "Events", names: fromGateway.filter((name) => name.startsWith("event_") && name !== "event_batch") },
  ]
  const replies = new Map(
    Object.values(document.operations)
      .filter((operation) => operation.reply)
      .flatMap((operation) =>
        operation.messages.map((message) => [nameOf(message), operation.reply.messages.map(nameOf)]),
      ),
  )
  const others = Object.keys(schemas).filter((name) => !(name in messages))
  const groups = lists.map(({ title, names }) => ({
    title,
    items: names.map((name) => ({ id: name, label: messages[name].name })),
  }))
  groups.push({ title: "Parts", items: others.map((name) => ({ id: `schema/${name}`, label: name })) })
  groups.push({ title: "Ends", items: [{ id: "close-codes", label: "Close codes" }] })
  const content = html`
    <h1>${document.info.title}</h1>
    <p class="lead"><${Text}>${document.info.description}</${Text}></p>
    ${Object.values(document.channels).map((channel) => html`<p><code class="path">${channel.address}</code> <${Text}>${channel.description ?? ""}</${Text}></p>`)}
    ${lists.map(
      ({ title, names }) => html`
      <h2>${title}</h2>
      ${names.map((name) => html`<${Message} key=${name} id=${name} message=${messages[name]} schema=${schemas[name]} replies=${replies.get(name)} />`)}
    `,
    )}
    <h2>Parts</h2>
    ${others.map(
      (name) => html`
      <${Part} key=${name} id=${`${PAGE}/schema/${name}`} title=${name}>
        ${schemas[name].description && html`<p><${Text}>${schemas[name].description}</${Text}></p>`}
        ${!schemas[name].properties && html`<p><${Type} schema=${schemas[name]} page=${PAGE} /></p>`}
        <${Fields} schema=${schemas[name]} page=${PAGE} label=${`Fields of ${name}`} />
      </${Part}>
    `,
    )}
    <h2>Ends</h2>
    <${Part} id=${`${PAGE}/close-codes`} title="Close codes">
      <p>4000 to 4499: come back, with your position. 4500 to 4999: coming back changes nothing.</p>
      <${Table} label="Close codes" heads=${["code", "reason", "come back"]} rows=${document["x-close-codes"].map(
        ({ code, reason, reconnect }) => [
          html`<code>${code}</code>`,
          html`<code>${reason}</code>`,
          reconnect ? "yes" : "no",
        ],
      )} />
    </${Part}>
  `
  return { groups, content }
}

function Message({ id, message, schema, replies }) {
  // An event is the envelope that all have, and data of its own.
  const own = schema.allOf ? schema.allOf.at(-1).properties.data : null
  return html`
    <${Part} id=${`${PAGE}/${id}`} title=${html`<code class="path">${message.name}</code>`}>
      <p class="summary"><${Text}>${message.title}</${Text}></p>
      ${message.summary && html`<p><${Text}>${message.summary}</${Text}></p>`}
      ${schema.description && html`<p><${Text}>${schema.description}</${Text}></p>`}
      ${
        own
          ? html`<p class="hint">An <a href=${`#/${PAGE}/schema/Event`}>Event</a> whose <code>data</code> has:</p><${Fields} schema=${own} page=${PAGE} label=${`Data of ${message.name}`} />`
          : html`<${Fields} schema=${schema} page=${PAGE} label=${`Fields of ${message.name}`} />`
      }
      ${replies && html`<p class="hint">Answered by ${replies.map((name, n) => html`${n > 0 && ", or "}<a href=${`#/${PAGE}/${name}`}>${name}</a>`)}.</p>`}
      ${(message.examples ?? []).map((example) => html`<${Code}>${example.payload}</${Code}>`)}
    </${Part}>
  `
}
