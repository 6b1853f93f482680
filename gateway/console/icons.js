/** Small pictures, drawn with the text's colour. They say nothing that words beside them do not: screen readers pass them by. */

import { html } from "./dom.js"

const PATHS = {
  agent:
    "M8 1.8v2M3.5 4.500h9a1.5 1.5 0 0 1 1.5 1.500v5.500a1.5 1.5 0 0 1-1.5 1.500h-9A1.5 1.5 0 0 1 2 11.500V6a1.5 1.5 0 0 1 1.5-1.500zM5.7 8v1.200M10.3 8v1.2",
  tool: "M9.8 6.2 13.5 2.500M10.2 2.300a3.4 3.4 0 0 0-4.3 4.300L2.3 10.200a1.6 1.6 0 0 0 0 2.300l1.2 1.200a1.6 1.6 0 0 0 2.3 0l3.6-3.600a3.4 3.4 0 0 0 4.3-4.300L11.6 7.9 8.9 7.1 8.1 4.400z",
  child: "M3.5 2.500v6a2 2 0 0 0 2 2h6.500M9.5 7.800l2.7 2.7-2.7 2.7",
  thought:
    "M8 2.200c3.3 0 6 2.1 6 4.800s-2.7 4.8-6 4.800c-.7 0-1.3-.1-1.9-.2L3 13.500l.7-2.800C2.6 9.8 2 8.5 2 7c0-2.7 2.7-4.8 6-4.800z",
  question:
    "M5.8 5.900A2.250 2.250 0 0 1 10.2 6.500c0 1.5-2.2 2-2.2 3.200M8 12.300v.1M14.2 8A6.2 6.2 0 1 1 1.8 8a6.2 6.2 0 0 1 12.4 0z",
  note: "M8 7.300v3.700M8 5v.1M14.2 8A6.2 6.2 0 1 1 1.8 8a6.2 6.2 0 0 1 12.4 0z",
  check: "M3 8.5 6.3 12 13 4.5",
  cross: "M4 4l8 8M12 4l-8 8",
  warn: "M8 6v3.500M8 11.600v.1M7.1 2.3 1.6 12a1 1 0 0 0 .9 1.500h11a1 1 0 0 0 .9-1.500L8.9 2.300a1 1 0 0 0-1.8 0z",
  stop: "M4.5 4.500h7v7h-7z",
  send: "M8 13V3M3.8 7.2 8 3l4.2 4.2",
  plus: "M8 3v10M3 8h10",
  chevron: "M6 3.5 10.5 8 6 12.5",
  menu: "M2.5 4.500h11M2.5 8h11M2.5 11.500h11",
  chat: "M3.5 2.800h9A1.5 1.5 0 0 1 14 4.300v5.400a1.5 1.5 0 0 1-1.5 1.500H7.300L4 13.700v-2.500h-.5A1.5 1.5 0 0 1 2 9.700V4.300a1.5 1.5 0 0 1 1.5-1.500z",
  history: "M2 8a6 6 0 1 0 1.9-4.400M2 2.500v3h3M8 4.800V8l2.3 1.5",
  people:
    "M5.7 7.500a2.3 2.3 0 1 0 0-4.6 2.3 2.3 0 0 0 0 4.600zM1.5 13.200c0-2.3 1.9-3.7 4.2-3.700s4.2 1.4 4.2 3.700M10.6 3.100a2.3 2.3 0 0 1 0 4.300M12 9.900c1.5.5 2.5 1.7 2.5 3.3",
  gauge: "M2.3 12a6.2 6.2 0 1 1 11.4 0M8 9.5 10.8 6M8 9.500v.1",
  trash:
    "M2.8 4.200h10.400M6 4.200V2.800h4v1.400M4.2 4.200l.6 8.300a1 1 0 0 0 1 .9h4.400a1 1 0 0 0 1-.9l.6-8.300M6.7 7v3.700M9.3 7v3.7",
  user: "M8 7.800a2.7 2.7 0 1 0 0-5.4 2.7 2.7 0 0 0 0 5.400zM2.8 13.700c0-2.7 2.3-4.2 5.2-4.200s5.2 1.5 5.2 4.2",
  out: "M6.5 2.500H3.500a1 1 0 0 0-1 1v9a1 1 0 0 0 1 1h3M10.5 11 13.5 8l-3-3M13.2 8H6",
  file: "M4 1.800h5L12.5 5.300v8.200a.8.8 0 0 1-.8.8H4a.8.8 0 0 1-.8-.8V2.600a.8.8 0 0 1 .8-.8zM8.8 2v3.500h3.5",
  down: "M8 2.500v8M4.5 7.2 8 10.700l3.5-3.500M2.8 13.500h10.4",
  braces:
    "M6 2.500c-1.5 0-2 .7-2 2v1.700c0 1-.5 1.6-1.5 1.8 1 .2 1.5.8 1.5 1.800v1.700c0 1.3.5 2 2 2M10 2.500c1.5 0 2 .7 2 2v1.700c0 1 .5 1.6 1.5 1.8-1 .2-1.5.8-1.5 1.800v1.700c0 1.3-.5 2-2 2",
  keys: "M2.3 4h11.400a.8.8 0 0 1 .8.8v6.400a.8.8 0 0 1-.8.8H2.300a.8.8 0 0 1-.8-.8V4.800a.8.8 0 0 1 .8-.8zM4 6.500h.1M6.7 6.500h.1M9.3 6.500h.1M12 6.500h.1M5 9.500h6",
  again: "M13.5 8a5.5 5.5 0 1 1-1.7-4M13.5 2v2.800h-2.8",
}

export function Icon({ name }) {
  return html`<svg class="icon" viewBox="0 0 16 16" aria-hidden="true" focusable="false">
    <path d=${PATHS[name]} fill="none" stroke="currentColor" stroke-width="1.4" stroke-linecap="round" stroke-linejoin="round" />
  </svg>`
}

/** The product's sign. */
export function Mark() {
  return html`<svg class="mark" viewBox="0 0 32 32" aria-hidden="true" focusable="false">
    <rect class="mark-back" width="32" height="32" rx="8" />
    <path class="mark-desk" d="M8 25V10.500A3.5 3.5 0 0 1 11.5 7H24v3.200H12.200a1 1 0 0 0-1 1V17H24v3.200H11.200V25z" />
    <circle class="mark-lamp" cx="21.5" cy="13.6" r="1.9" />
  </svg>`
}

/** A dot that turns while something goes on. */
export function Spinner() {
  return html`<span class="spinner" aria-hidden="true"></span>`
}
