// What one healthy statement costs beyond the plain driver, what of that each part of the layer costs, and what the same
// protection costs from elsewhere. Both clients talk to a stub that answers at once or in the next turn of the event loop,
// each in a process of its own, in turns, so that what is left is the layer's own work. What is measured is CPU time.
//   npm run bench -- --only layer-cost            about two minutes
//   npm run bench -- --only layer-cost --quick    shows that it runs, and that all answers and counts are right
import type { Answers } from "../test/stubServer.ts"
import { type Effort, type Heat, measure, type Row } from "./layerCost/measure.ts"
import type { Name } from "./layerCost/subjects.ts"

const clients = (
  multiplex: boolean,
  answers: Answers,
  callers: number,
  others: ReadonlyArray<Name> = ["effect-pg-pool"]
): Heat => {
  const mode = multiplex ? "multiplexed" : "plain"
  const who = callers === 1 ? "one caller" : `${callers} callers`
  return {
    title: `A statement, ${mode}, ${who}, answers ${answers === "at once" ? answers : "in the next turn"}`,
    setting: { multiplex, answers },
    callers,
    base: "PgClient",
    others,
    calls: 1_500,
    isOfClients: true
  }
}

const lessOnePart: ReadonlyArray<Name> = [
  "effect-pg-pool",
  "effect-pg-pool without breaker",
  "effect-pg-pool without retry",
  "effect-pg-pool without metrics",
  "effect-pg-pool without all three",
  "PgClient, Effect.retry, CircuitBreaker, Metric"
]

const promised: ReadonlyArray<Name> = [
  "effect-pg-pool, a promise each",
  "PgClient, cockatiel, prom-client",
  "PgClient, cockatiel with timeout, prom-client",
  "PgClient, p-retry, opossum, prom-client",
  "PgClient, p-retry, opossum with timeout, prom-client"
]

const setting = { multiplex: false, answers: "next turn" } as const

const heats: ReadonlyArray<Heat> = [
  clients(false, "at once", 1, lessOnePart),
  clients(false, "next turn", 1),
  clients(false, "next turn", 10, lessOnePart),
  clients(false, "next turn", 100),
  clients(true, "next turn", 1),
  clients(true, "next turn", 10),
  clients(true, "next turn", 100),
  {
    title: "The way of a statement through the layer, step by step, 10 callers",
    setting,
    callers: 10,
    base: "PgPool, no client",
    others: [
      "our checkout",
      "our checkout, breaker, retry, deadline",
      "our checkout, breaker, retry, deadline, watching"
    ],
    calls: 1_500,
    isOfClients: true
  },
  {
    title: "The same protection bought elsewhere, a statement by a promise, 10 callers",
    setting,
    callers: 10,
    base: "PgClient, a promise each",
    others: promised,
    calls: 1_000,
    isOfClients: true
  },
  ...[1, 10, 100].map((callers): Heat => ({
    title: `A checkout without a statement, ${callers === 1 ? "one caller" : `${callers} callers`}`,
    setting,
    callers,
    base: "effect/Pool.use",
    others: ["Pool.use"],
    calls: 8_000,
    isOfClients: false
  })),
  {
    title: "The code of a part, alone in a loop",
    setting,
    callers: 1,
    base: undefined,
    others: [
      "counting: two histograms of the pool, one of the statement",
      "breaker: the permit, and whether a success matters",
      "retry budget: a success",
      "clocks: two looks at each"
    ],
    calls: 300_000,
    isOfClients: false
  },
  {
    title: "A guard around an async function that answers at once",
    setting,
    callers: 1,
    base: "async function",
    others: [
      "cockatiel, retry",
      "cockatiel, breaker",
      "cockatiel, retry and breaker",
      "cockatiel, retry, breaker, timeout",
      "opossum at its cheapest",
      "opossum",
      "p-retry",
      "prom-client, counter and histogram",
      "prom-client, cockatiel (retry, breaker)",
      "prom-client, cockatiel (retry, breaker, timeout)",
      "prom-client, p-retry, opossum at its cheapest",
      "prom-client, p-retry, opossum"
    ],
    calls: 2_000,
    isOfClients: false
  },
  {
    title: "A guard around an effect that answers at once",
    setting,
    callers: 1,
    base: "effect",
    others: [
      "Effect.retry",
      "CircuitBreaker.execute",
      "Effect.trackDuration, trackSuccesses",
      "Metric, Effect.retry, CircuitBreaker",
      "our Breaker.protect"
    ],
    calls: 2_000,
    isOfClients: false
  }
]

const full: Effort = { rounds: 31, warmUp: 15, share: 1, isApart: true }
// Most of it is the start of processes.
const quick: Effort = { rounds: 7, warmUp: 5, share: 0.4, isApart: false }

const signed = (nanos: number): string => `${nanos < 0 ? "" : "+"}${nanos.toFixed(0)}`

const lineOf = ({ beyond, clientCpuUs, contender, nanos, quietNanos, ratioToPgClient, spread }: Row): string =>
  [
    `  ${contender.padEnd(60)}`,
    (1000 * clientCpuUs).toFixed(0).padStart(8),
    (beyond === null ? "" : signed(nanos)).padStart(8),
    spread.toFixed(0).padStart(7),
    (beyond === null ? "" : signed(quietNanos)).padStart(8),
    (ratioToPgClient === null ? "" : ratioToPgClient.toFixed(3)).padStart(7)
  ].join(" ")

/** Runs all of it, or the heats whose title has `only` in it, and prints a table. Rejects when any of it was wrong. */
export const run = async (options: { readonly quick: boolean; readonly only?: string }): Promise<Array<Row>> => {
  const rows: Array<Row> = []
  console.log(`${"nanoseconds of CPU a call".padEnd(62)} ${"in all".padStart(8)}   beyond  spread    quiet x driver`)
  for (const heat of heats) {
    if (options.only !== undefined && !heat.title.includes(options.only)) continue
    console.log(heat.title)
    for (const row of await measure(heat, options.quick ? quick : full)) {
      rows.push(row)
      console.log(lineOf(row))
    }
  }
  const wrong = rows.filter(({ errors }) => errors > 0)
  if (wrong.length > 0) {
    throw new Error(
      wrong.map(({ contender, faults, heat }) => `${heat}: ${contender}: ${faults.join(", ")}`).join("\n")
    )
  }
  for (const row of rows) {
    for (const [field, value] of Object.entries(row)) {
      if (typeof value === "number" && !Number.isFinite(value)) {
        throw new Error(`${row.contender}: ${field} is ${value}`)
      }
    }
  }
  console.log("ok: every answer was right, and whatever was counted was counted once")
  return rows
}
