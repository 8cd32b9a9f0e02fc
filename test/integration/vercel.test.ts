import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { readFileSync } from "node:fs"
import { launch } from "./child.ts"
import { freshDatabase } from "./database.ts"
import { eventually, makeWitness } from "./witness.ts"

/** The state of a process, as Linux has it: T is stopped. */
const stateOf = (pid: number | undefined): string | undefined =>
  /\) (\w) /.exec(readFileSync(`/proc/${pid}/stat`, "utf8"))?.[1]

describe("an instance that Vercel suspends as soon as nothing keeps it awake", () => {
  for (const [how, promises, left] of [["attached", 1, 0], ["unknown", 0, 3]] as const) {
    it.live(`has ${left === 0 ? "no session" : "its sessions"} left when its pool was ${how}`, () =>
      Effect.gen(function*() {
        const url = yield* freshDatabase
        const witness = yield* makeWitness(url)
        const { child, says } = yield* launch("suspended", url, [how])
        yield* says(`200 3 sessions, ${promises} to wait for`)
        yield* eventually("the suspension", Effect.sync(() => stateOf(child.pid) === "T"))
        yield* eventually("what is left", Effect.map(witness.count, (count) => count === left))
        assert.strictEqual(stateOf(child.pid), "T")
      }))
  }
})
