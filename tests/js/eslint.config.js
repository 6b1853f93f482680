/**
 * What the linter holds against the console and the pages at /docs. Run by tests/js/test_lint.py, which has its packages;
 * not part of `make check`, which needs no Node.
 */

import js from "@eslint/js"

// What browsers give these pages, and no more: a name that is not here is a slip, or is added here.
const BROWSER =
  "AbortController Blob Intl ResizeObserver TextDecoder URL addEventListener atob clearInterval clearTimeout console crypto " +
  "document fetch history localStorage location matchMedia performance removeEventListener requestAnimationFrame scrollTo " +
  "sessionStorage setInterval setTimeout"

export default [
  js.configs.recommended,
  {
    files: ["**/*.js"],
    linterOptions: { reportUnusedDisableDirectives: "error" },
    languageOptions: {
      ecmaVersion: 2024,
      sourceType: "module",
      globals: Object.fromEntries(BROWSER.split(" ").map((name) => [name, "readonly"])),
    },
    rules: {
      eqeqeq: "error",
      "no-eval": "error",
      "no-implicit-globals": "error",
      "no-self-compare": "error",
      "no-shadow": "error",
      "no-template-curly-in-string": "error",
      "no-unreachable-loop": "error",
      "no-use-before-define": ["error", { functions: false, classes: false, variables: false }],
      "no-var": "error",
      "prefer-const": "error",
    },
  },
]
