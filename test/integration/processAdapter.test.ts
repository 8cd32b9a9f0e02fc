import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import { launch } from "./child.ts"
import { freshDatabase } from "./database.ts"
import { eventually, makeTable, makeWitness } from "./witness.ts"

const start = Effect.fnUntraced(function*(what: string, within = 8000) {
  const { rows, url, witness } = yield* makeTable
  const program = yield* launch("container", url, [what, within])
  return { ...program, rows, gone: eventually("no session", Effect.map(witness.count, (count) => count === 0)) }
})

describe("a program in a container", () => {
  it.live("that comes to its end closes its layer, and leaves nothing that keeps the process alive", () =>
    Effect.gen(function*() {
      const { ended, gone, lines } = yield* start("comes to its end")
      assert.deepStrictEqual(yield* ended, { code: 0, signal: null })
      assert.deepStrictEqual(lines, ["succeeded with 1, 0 listeners left"])
      yield* gone
    }))

  it.live("that fails ends with the code 1, after its layer was closed, and says what it failed with", () =>
    Effect.gen(function*() {
      const { ended, gone, lines } = yield* start("fails")
      assert.deepStrictEqual(yield* ended, { code: 1, signal: null })
      assert.include(lines.join("\n"), "RangeError: what it failed with")
      yield* gone
    }))

  for (const [signal, code] of [["SIGTERM", 143], ["SIGINT", 130]] as const) {
    it.live(`is interrupted by ${signal}, runs its finalizers, says goodbye, and ends with the code ${code}`, () =>
      Effect.gen(function*() {
        const { child, ended, gone, lines, says } = yield* start("waits")
        yield* says("waiting")
        child.kill(signal)
        assert.deepStrictEqual(yield* ended, { code, signal: null })
        assert.deepStrictEqual(lines, ["waiting", "closed"])
        yield* gone
      }))
  }

  it.live("that is in a transaction rolls it back, and leaves no statement running", () =>
    Effect.gen(function*() {
      const { child, ended, gone, lines, rows, says } = yield* start("is busy")
      yield* says("busy")
      child.kill("SIGTERM")
      assert.deepStrictEqual(yield* ended, { code: 143, signal: null })
      assert.deepStrictEqual(lines, ["busy", "interrupted", "closed"])
      yield* gone
      assert.strictEqual(yield* rows, 0)
    }))

  for (const what of ["takes its time", "cannot be interrupted"]) {
    it.live(`that ${what} is given that time, and then ends without a goodbye`, () =>
      Effect.gen(function*() {
        const { child, ended, gone, says } = yield* start(what, 500)
        yield* says("waiting")
        const before = yield* Clock.currentTimeMillis
        child.kill("SIGTERM")
        assert.deepStrictEqual(yield* ended, { code: 143, signal: null })
        assert.isAtLeast((yield* Clock.currentTimeMillis) - before, 400)
        yield* gone
      }))
  }

  it.live("ends at once with a second signal", () =>
    Effect.gen(function*() {
      const { child, ended, gone, says } = yield* start("takes its time", 3_600_000)
      yield* says("waiting")
      child.kill("SIGTERM")
      yield* says("interrupted")
      child.kill("SIGINT")
      assert.deepStrictEqual(yield* ended, { code: 130, signal: null })
      yield* gone
    }))

  it.live("that fails while it is closed says so, and ends with the code 1", () =>
    Effect.gen(function*() {
      const { child, ended, gone, lines, says } = yield* start("fails while it is closed")
      yield* says("waiting")
      child.kill("SIGTERM")
      assert.deepStrictEqual(yield* ended, { code: 1, signal: null })
      assert.include(lines.join("\n"), "RangeError: what it died of")
      yield* gone
    }))

  it.live("can be told to end while its layer is still being built", () =>
    Effect.gen(function*() {
      const url = yield* freshDatabase
      const witness = yield* makeWitness(url)
      const { child, ended, says } = yield* launch("container", url, ["is built", 8000])
      yield* says("building")
      child.kill("SIGTERM")
      assert.deepStrictEqual(yield* ended, { code: 143, signal: null })
      assert.strictEqual(yield* witness.count, 0)
    }))
})
