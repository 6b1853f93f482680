/** scenarios.js in Node, several at once: `FAULTS_URL=http://… node --test tests/js/faults.test.js`. */

import { readFileSync } from "node:fs"
import { describe, test } from "node:test"

import { scenarios } from "./scenarios.js"
import { play, sample } from "./stage.js"

const recorded = JSON.parse(readFileSync(new URL("recorded_run.json", import.meta.url), "utf8"))
const chosen = sample(scenarios(recorded), Number(process.env.FAULTS_CUTS ?? 0), 20261)

describe("faults", { concurrency: 8 }, () => {
  for (const [name, scenario] of chosen) test(name, { timeout: 30_000 }, () => play(process.env.FAULTS_URL, scenario))
})
