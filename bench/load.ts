// Throughput, latency, CPU and memory of clients side by side, at some numbers of callers: any cells of the load suite.
//   node bench/load.ts --suite read,transaction --callers 1,100,1000 --rounds 3 --lasts 800 --contender PgClient
import * as Effect from "effect/Effect"
import { parseArgs } from "node:util"
import { type Name, names } from "./load/contender.ts"
import { measure } from "./load/measure.ts"
import * as Server from "./load/server.ts"
import { head, show } from "./load/table.ts"
import { type Suite, suites, usualSize } from "./load/workload.ts"
import { choices, understood, wholes } from "./performance/arguments.ts"

const given = understood(() =>
  parseArgs({
    options: {
      suite: { type: "string", default: suites.join(",") },
      callers: { type: "string", default: "1,10,100,1000,10000" },
      contender: { type: "string", multiple: true, default: [...names] },
      rounds: { type: "string", default: "5" },
      prime: { type: "string", default: "500" },
      lasts: { type: "string", default: "800" },
      size: { type: "string", default: String(usualSize) },
      max: { type: "string", default: "10" }
    }
  }).values
)

const chosen = choices<Suite>("--suite", given.suite.split(","), [...suites, "payload"])
const callers = wholes("--callers", given.callers)
const contenders = choices<Name>("--contender", given.contender, names)
const [rounds, prime, lasts, size, max] = (["rounds", "prime", "lasts", "size", "max"] as const).map((name) =>
  wholes(`--${name}`, given[name])[0]!
) as [number, number, number, number, number]

const program = Effect.gen(function*() {
  const server = yield* Server.make
  console.log(head)
  for (const suite of chosen) {
    for (const count of callers) {
      const rows = yield* Effect.promise(() =>
        measure(
          {
            suite,
            size,
            callers: count,
            max,
            contenders,
            rounds,
            prime: { atLeast: prime, atMost: 2 * prime, answers: 6000 },
            warmUp: { atLeast: 300, atMost: 2000, answers: count },
            lasts: { atLeast: lasts, atMost: 3 * lasts, answers: count }
          },
          server
        )
      )
      for (const row of rows) console.log(show(row))
    }
  }
})

await Effect.runPromise(Effect.scoped(program))
