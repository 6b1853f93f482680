/** A dialog: the browser's own, which keeps the focus inside and gives it back. */

import { html, useEffect, useId, useRef } from "../dom.js"
import { Icon } from "../icons.js"

export function Dialog({ title, close, children }) {
  const box = useRef(null)
  const id = useId()
  useEffect(() => {
    const before = document.activeElement
    box.current.showModal()
    return () => before?.focus?.()
  }, [])
  return html`<dialog class="dialog" ref=${box} aria-labelledby=${id} onClose=${close} onClick=${(event) => event.target === box.current && close()}>
    <div class="dialog-body">
      <header class="dialog-head"><h2 id=${id}>${title}</h2><button type="button" class="icon-button" aria-label="Close" onClick=${close}><${Icon} name="cross" /></button></header>
      ${children}
    </div>
  </dialog>`
}
