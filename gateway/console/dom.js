/** preact and htm, bound together: `html` makes elements. Text is always text; nothing here takes markup. */

import htm from "./vendor/htm.js"
import { Component, Fragment, h, render } from "./vendor/preact.js"

export { Component, Fragment, h, render }
export {
  useCallback,
  useEffect,
  useErrorBoundary,
  useId,
  useLayoutEffect,
  useMemo,
  useRef,
  useState,
} from "./vendor/preact-hooks.js"

export const html = htm.bind(h)

/** Class names that hold: `classes("row", open && "open")`. */
export function classes(...names) {
  return names.filter(Boolean).join(" ")
}

/** A component that is drawn again only when one of its properties is another one. */
export function memo(draw) {
  return class extends Component {
    shouldComponentUpdate(next) {
      for (const name in next) if (next[name] !== this.props[name]) return true
      for (const name in this.props) if (!(name in next)) return true
      return false
    }

    render() {
      return h(draw, this.props)
    }
  }
}
