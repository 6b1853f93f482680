/** The page of docs/proto.json, which is made of the protos. */

import { html } from "./dom.js"
import { Part, Table, Text } from "./parts.js"

const PAGE = "protos"

/** @param {any} document What tools/proto_reference.py writes. */
export function protoPage(document) {
  const known = new Set(document.files.flatMap((file) => [...file.messages, ...file.enums].map((one) => one.name)))
  const services = document.files.flatMap((file) => file.services)
  const groups = [{ title: "Services", items: services.map(({ name }) => ({ id: name, label: name })) }]
  for (const file of document.files) {
    const names = [...file.messages, ...file.enums].map(({ name }) => ({ id: name, label: name }))
    if (names.length) groups.push({ title: file.name.split("/").at(-1), items: names })
  }
  const content = html`
    <h1>Carrel: gRPC</h1>
    <p class="lead">Services inside a deployment speak gRPC, package <code>${document.package}</code>. They take <a href="#/rest/createTicket">tickets</a>, not login tokens.</p>
    ${document.files.map(
      (file) => html`
      <h2>${file.name.split("/").at(-1)}</h2>
      <p class="quiet"><${Text}>${file.comment}</${Text}></p>
      ${file.services.map(
        (service) => html`
        <${Part} key=${service.name} id=${`${PAGE}/${service.name}`} title=${service.name}>
          <p><${Text}>${service.comment}</${Text}></p>
          <${Table} label=${`Calls of ${service.name}`} heads=${["call", "takes", "gives", ""]} rows=${service.methods.map(
            (method) => [
              html`<code>${method.name}</code>`,
              html`${method.client_streaming && "stream of "}<${Kind} name=${method.request} known=${known} />`,
              html`${method.server_streaming && "stream of "}<${Kind} name=${method.response} known=${known} />`,
              html`<${Text}>${method.comment}</${Text}>`,
            ],
          )} />
        </${Part}>
      `,
      )}
      ${file.messages.map(
        (message) => html`
        <${Part} key=${message.name} id=${`${PAGE}/${message.name}`} title=${message.name}>
          <p><${Text}>${message.comment}</${Text}></p>
          ${
            message.fields.length > 0 &&
            html`<${Table} label=${`Fields of ${message.name}`} heads=${["field", "type", ""]} rows=${message.fields.map(
              (field) => [
                html`<code>${field.name}</code><span class="quiet"> = ${field.number}</span>`,
                html`<${Kind} name=${field.type} known=${known} />${field.oneof && html`<span class="quiet"> one of ${field.oneof}</span>`}`,
                html`<${Text}>${field.comment}</${Text}>`,
              ],
            )} />`
          }
        </${Part}>
      `,
      )}
      ${file.enums.map(
        (one) => html`
        <${Part} key=${one.name} id=${`${PAGE}/${one.name}`} title=${one.name}>
          <p><${Text}>${one.comment}</${Text}></p>
          <${Table} label=${`Values of ${one.name}`} heads=${["value", "number", ""]} rows=${one.values.map((value) => [
            html`<code>${value.name}</code>`,
            value.number,
            html`<${Text}>${value.comment}</${Text}>`,
          ])} />
        </${Part}>
      `,
      )}
    `,
    )}
  `
  return { groups, content }
}

/** A type, of which the messages and enums of ours lead to where they are told. */
function Kind({ name, known }) {
  return name
    .split(/([\w.]+)/)
    .map((word) => (known.has(word) ? html`<a href=${`#/${PAGE}/${word}`}>${word}</a>` : word))
}
