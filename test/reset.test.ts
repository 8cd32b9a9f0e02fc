import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { SqlClient } from "effect/sql/SqlClient"
import * as fc from "fast-check"
import { type Duplex, duplexPair } from "node:stream"
import * as Pg from "../src/index.ts"
import * as Reset from "../src/internal/reset.ts"
import { message as encode } from "../src/testing/backendEncoder.ts"

const message = (type: string, body: Uint8Array | string): Buffer => encode(type, Buffer.from(body))

const ready = (status: string) => message("Z", status)
const refusal = (severity: string, code: string) => message("E", `S${severity}\0V${severity}\0C${code}\0Mno\0\0`)

const clean = Buffer.concat([
  message("C", "BEGIN\0"),
  message("S", "TimeZone\0UTC\0"),
  message("T", "\0\0"),
  // What looks like an end inside of a row is none.
  message("D", Buffer.concat([Buffer.from([0, 1, 0, 0, 0, 6]), ready("I")])),
  message("N", "SWARNING\0VWARNING\0C01000\0Mmind\0\0"),
  message("C", "COMMIT\0"),
  ready("I")
])

const pieces = (bytes: Buffer, lengths: ReadonlyArray<number>): ReadonlyArray<Buffer> => {
  const all: Array<Buffer> = []
  for (let offset = 0, index = 0; offset < bytes.length; index++) {
    const end = Math.min(bytes.length, offset + lengths[index % lengths.length]!)
    all.push(bytes.subarray(offset, end))
    offset = end
  }
  return all
}

const lengths = fc.array(fc.integer({ min: 1, max: 50 }), { minLength: 1, maxLength: 8 })

describe("the answer to a reset", () => {
  const read = (chunks: ReadonlyArray<Buffer>) => {
    const reported: Array<string> = []
    const answer = Reset.makeAnswer((name, value) => reported.push(`${name} ${value}`))
    const rest = chunks.map((chunk) => Buffer.from(answer.take(chunk)))
    return { answer, rest: Buffer.concat(rest), reported }
  }

  it("is kept from the driver, and nothing else, wherever chunks cut the stream", () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 40 }), lengths, (behind, cuts) => {
        const { answer, reported, rest } = read(pieces(Buffer.concat([clean, behind]), cuts))
        assert.isTrue(answer.isDone())
        assert.isUndefined(answer.refusal())
        assert.isTrue(rest.equals(Buffer.from(behind)))
        assert.deepStrictEqual(reported, ["TimeZone UTC"])
      }),
      { numRuns: 5000 }
    )
  })

  it("may be a refusal, which seals the session only when the transaction stays failed", () => {
    for (const [status, isSealed] of [["E", true], ["I", false]] as const) {
      const { answer } = read([Buffer.concat([message("C", "BEGIN\0"), refusal("ERROR", "55P03"), ready(status)])])
      assert.strictEqual(answer.refusal()?.fields?.code, "55P03")
      assert.strictEqual(answer.refusal()?.isSealed, isSealed)
    }
  })

  it("is none when the session ends: that is for the driver to hear, wherever chunks cut it", () => {
    const end = refusal("FATAL", "57P01")
    fc.assert(fc.property(lengths, (cuts) => {
      const { answer, rest } = read(pieces(Buffer.concat([message("C", "BEGIN\0"), end]), cuts))
      assert.isTrue(answer.isDone())
      assert.isUndefined(answer.refusal())
      assert.isTrue(rest.equals(end))
    }))
  })
})

const cancelRequestCode = 80_877_102

interface Script {
  /** What becomes of the n-th reset of a session, from 0 on. */
  readonly reset: (session: number, index: number) => Buffer
  /** Whether it is answered only together with the statement behind it. */
  readonly isLate: (index: number) => boolean
  /** The sizes of the chunks in which the server speaks. */
  readonly cuts: ReadonlyArray<number>
  /** What is said to a statement instead of its answer. */
  readonly behind?: ((session: number, resets: number) => Buffer | undefined) | undefined
}

/** A server that answers `SELECT n` with n, and everything in pieces. */
const makeServer = (script: Script) => {
  const seen: Array<readonly [session: number, what: string]> = []
  let sessions = 0
  const answer = (sql: string): Buffer => {
    const command = /^\w+/.exec(sql)?.[0] ?? ""
    const head = [message("1", ""), message("2", "")]
    if (command !== "SELECT") {
      return Buffer.concat([...head, message("n", ""), message("C", `${command}\0`), ready("I")])
    }
    const value = Buffer.from(sql.slice("SELECT ".length))
    const field = Buffer.from([0, 1, 110, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 25, 255, 255, 255, 255, 255, 255, 0, 1])
    const row = Buffer.concat([Buffer.from([0, 1, 0, 0, 0, value.length]), value])
    return Buffer.concat([...head, message("T", field), message("D", row), message("C", "SELECT 1\0"), ready("I")])
  }
  const connect = (): Duplex => {
    const [client, server] = duplexPair()
    let session = -1
    let input = Buffer.alloc(0)
    let hasStarted = false
    let resets = 0
    let sql = ""
    let late: Array<Buffer> = []
    const say = (...bytes: ReadonlyArray<Buffer>) => {
      const all = Buffer.concat([...late, ...bytes])
      late = []
      for (const piece of pieces(all, script.cuts)) server.write(piece)
    }
    const take = (type: string, body: Buffer): void => {
      if (type === "Q") {
        seen.push([session, "reset"])
        late.push(script.reset(session, resets))
        if (!script.isLate(resets++)) say()
      } else if (type === "P") sql = body.toString("latin1").split("\0")[1]!
      else if (type === "S") {
        seen.push([session, sql])
        say(script.behind?.(session, resets) ?? answer(sql))
      } else if (type === "X") server.end()
    }
    server.on("error", () => {})
    server.on("end", () => server.end())
    server.on("data", (chunk: Buffer) => {
      input = Buffer.concat([input, chunk])
      for (;;) {
        const header = hasStarted ? 1 : 0
        if (input.length < header + 4) return
        const length = header + input.readInt32BE(header)
        if (input.length < length) return
        const whole = input.subarray(0, length)
        input = input.subarray(length)
        if (hasStarted) take(String.fromCharCode(whole[0]!), whole.subarray(5))
        else {
          hasStarted = true
          if (whole.readUInt32BE(4) === cancelRequestCode) return void server.end()
          session = sessions++
          say(message("R", "\0\0\0\0"), message("K", "\0\0\0\0\0\0\0\0"), ready("I"))
        }
      }
    })
    return client
  }
  return { connect, seen, sessions: () => sessions }
}

const layerOn = (server: ReturnType<typeof makeServer>) =>
  Pg.layer({ stream: server.connect, username: "me", max: 1, reset: "clean", prepare: false })

describe("a statement behind a reset", () => {
  it.live("gets its own answer, whenever the reset's comes and wherever chunks cut both", () =>
    Effect.promise(() =>
      fc.assert(
        fc.asyncProperty(
          lengths,
          fc.array(fc.boolean(), { minLength: 1, maxLength: 5 }),
          fc.array(fc.nat(99_999), { minLength: 1, maxLength: 6 }),
          async (cuts, lateness, values) => {
            const server = makeServer({
              cuts,
              isLate: (index) => lateness[index % lateness.length]!,
              reset: () => clean
            })
            const answers = await Effect.runPromise(
              Effect.gen(function*() {
                const pool = yield* Pg.Pool.Pool
                return yield* Effect.forEach(
                  values,
                  (value) =>
                    pool.use(({ connection }) =>
                      Effect.map(connection.queryValues(`SELECT ${value}`), (rows) => rows[0]?.[0])
                    )
                )
              }).pipe(Effect.provide(layerOn(server)))
            )
            assert.deepStrictEqual(answers, values.map(String))
            assert.deepStrictEqual(
              server.seen.slice(0, values.length * 2 - 1),
              values.flatMap((value) => [[0, `SELECT ${value}`], [0, "reset"]] as const).slice(0, -1)
            )
          }
        ),
        { numRuns: 300 }
      )
    ))

  const done = Buffer.concat([
    message("1", ""),
    message("2", ""),
    message("n", ""),
    message("C", "INSERT 0 1\0"),
    ready("I")
  ])

  /** The first session refuses its first reset, and says that to the statement behind. */
  const failing = (refused: Buffer, behind: Buffer) =>
    makeServer({
      cuts: [7],
      isLate: () => true,
      reset: (session) => session === 0 ? refused : clean,
      behind: (session, resets) => session === 0 && resets > 0 ? behind : undefined
    })

  const insertBehind = Effect.gen(function*() {
    const sql = yield* SqlClient
    yield* sql`SELECT 1`
    return yield* Effect.exit(sql`INSERT INTO t VALUES (1)`)
  })

  const insertsOf = ({ seen }: ReturnType<typeof makeServer>) =>
    seen.filter(([, what]) => what.startsWith("INSERT")).map(([session]) => session)

  it.live("that has failed is run on another session, when the server has refused it", () =>
    Effect.gen(function*() {
      const refused = Buffer.concat([message("C", "BEGIN\0"), refusal("ERROR", "55P03"), ready("E")])
      const server = failing(refused, Buffer.concat([refusal("ERROR", "25P02"), ready("E")]))
      const exit = yield* Effect.provide(insertBehind, layerOn(server))
      assert.isTrue(Exit.isSuccess(exit))
      assert.deepStrictEqual(insertsOf(server), [0, 1])
    }))

  it.live("that has failed is not run again when it may have run, and its answer is not believed", () =>
    Effect.gen(function*() {
      const server = failing(Buffer.concat([refusal("ERROR", "57014"), ready("I")]), done)
      const exit = yield* Effect.provide(insertBehind, layerOn(server))
      const error = yield* Effect.flip(exit)
      assert.strictEqual(Pg.Errors.fromSqlError(error)?._tag, "OutcomeUnknown")
      assert.deepStrictEqual(insertsOf(server), [0])
    }))
})
