// A thousand serverless environments, each with a pool of its own, on a PostgreSQL server with room for a hundred
// sessions: all at once, at a steady load, frozen, thawed, and through a crash of the server, directly and behind
// PgBouncer, with this library, with the driver's own pool and with `pg`. Exit code 1: a claim of docs/fleet.md does not hold.
//   npm run bench:fleet                        some four minutes
//   npm run bench:fleet -- --write             writes docs/fleet.md and the charts in docs/fleet
//   npm run bench:fleet -- --smoke             a small fleet, this library only; less than half a minute
//   npm run bench:fleet -- --environments 60 --seconds 2 --seed 7 --only direct --client "pg, 1"
import * as Effect from "effect/Effect"
import * as Logger from "effect/Logger"
import * as Redacted from "effect/Redacted"
import { mkdirSync, writeFileSync } from "node:fs"
import { fileURLToPath } from "node:url"
import { parseArgs } from "node:util"
import { makePgBouncer } from "../test/integration/pgbouncer.ts"
import { draw } from "./fleet/chart.ts"
import { check, type Measured } from "./fleet/claims.ts"
import { type Contestant, type Setting, settings } from "./fleet/contestants.ts"
import { figuresOf } from "./fleet/figures.ts"
import * as Life from "./fleet/life.ts"
import { type Chapter, write } from "./fleet/page.ts"
import * as Server from "./fleet/server.ts"

const { values: given } = parseArgs({
  options: {
    smoke: { type: "boolean", default: false },
    write: { type: "boolean", default: false },
    environments: { type: "string" },
    seconds: { type: "string" },
    rate: { type: "string" },
    seed: { type: "string", default: "20261123" },
    only: { type: "string" },
    client: { type: "string" }
  }
})
const environments = Number(given.environments ?? (given.smoke ? 120 : 1000))
const seconds = Number(given.seconds ?? (given.smoke ? 0.8 : 3))
const plan: Life.Plan = {
  seed: Number(given.seed),
  processes: given.smoke ? 2 : 4,
  deadline: 10_000,
  rate: Number(given.rate ?? (given.smoke ? 40 : 80)),
  steady: seconds,
  freeze: given.smoke ? 0.3 : 1,
  crash: given.smoke ? { at: 0.3, lasts: 0.4, watched: 1.5 } : { at: 1, lasts: 1, watched: seconds }
}
if (![environments, seconds, plan.rate].every((each) => each > 0) || !Number.isInteger(plan.seed)) {
  console.error("Usage: npm run bench:fleet -- [--smoke] [--write] [--environments 1000] [--seconds 3] [--seed 1]")
  process.exit(2)
}

const isAsked = (setting: Setting): boolean => given.only === undefined || setting.id === given.only
const asked = ({ contestants }: Setting): ReadonlyArray<Contestant> => {
  if (given.smoke) return contestants.slice(0, 1)
  return contestants.filter(({ client }) => given.client === undefined || client === given.client)
}

const ms = (value: number | undefined): string => (value === undefined ? "-" : value.toFixed(0))

const report = ({ figures: { phases, recovery }, life }: Measured): void => {
  console.log(`  ${life.contestant.title}`)
  for (const { connects, failed, failures, full, max, mostSessions, name, p50, p99, refused, requests } of phases) {
    console.log(
      `    ${name.padEnd(10)} ${requests} requests, ${failed} failed (${full} full), ${ms(p50)}/${ms(p99)}/${
        ms(max)
      } ms, ${mostSessions} sessions, ${connects} connects (${refused} refused)`
        + failures.slice(0, 3).map(([failure, times]) => `\n               ${times} × ${failure}`).join("")
    )
  }
  console.log(
    `    after the crash: first success ${ms(recovery.firstSuccess)} ms, normal ${
      ms(recovery.normal)
    } ms, ${recovery.connectsInASecond} connects in the busiest second`
  )
}

/** One client in one setting. */
const measure = (
  server: Server.Server,
  setting: Setting,
  contestant: Contestant,
  fleet: number,
  arrivals: Life.Arrivals
) =>
  Effect.scoped(Effect.gen(function*() {
    const pooler = setting.isPooled
      ? yield* makePgBouncer({ server: server.urlOfPooler, settings: { max_client_conn: 5000 } })
      : undefined
    const url = Redacted.value(pooler?.through(server.url) ?? server.url)
    const life = yield* Life.live({ plan, setting, contestant, environments: fleet, arrivals, server, url })
    return { life, figures: figuresOf(life) }
  })).pipe(
    Effect.tap((measured) => Effect.sync(() => report(measured))),
    Effect.ensuring(Effect.ignore(server.clear))
  )

const bench = Effect.gen(function*() {
  const began = performance.now()
  const server = yield* Server.make(2 * environments + 2)
  const chapters: Array<Chapter> = []
  for (const setting of settings.filter(isAsked)) {
    const fleet = setting.environments(environments)
    const arrivals = yield* Life.arrivals(plan, fleet)
    console.log(`${setting.title}: ${fleet} environments`)
    const measured = yield* Effect.forEach(
      asked(setting),
      (contestant) => measure(server, setting, contestant, fleet, arrivals)
    )
    chapters.push({ setting, environments: fleet, measured, findings: check(setting, measured) })
  }
  if (server.lost() > 0) {
    console.log(`${server.lost()} times the server wrote more than could be read: connects are missing`)
  }
  console.log(`${((performance.now() - began) / 1000).toFixed(0)} s, seed ${plan.seed}`)
  return chapters
})

const publish = (chapters: ReadonlyArray<Chapter>): void => {
  const docs = fileURLToPath(new URL("../docs/", import.meta.url))
  mkdirSync(`${docs}fleet`, { recursive: true })
  for (const { measured, setting } of chapters) {
    writeFileSync(`${docs}fleet/${setting.id}.svg`, draw(setting, measured.map(({ life }) => life)))
  }
  writeFileSync(`${docs}fleet.md`, write(plan, chapters, new Date().toISOString().slice(0, 10)))
}

Effect.runPromise(Effect.provide(Effect.scoped(bench), Logger.layer([]))).then(
  (chapters) => {
    if (given.write) publish(chapters)
    const findings = chapters.flatMap((chapter) => chapter.findings)
    for (const { claim, found, holds } of findings) console.log(`${holds ? "✔" : "✘"} ${claim} (${found})`)
    process.exit(findings.every(({ holds }) => holds) ? 0 : 1)
  },
  (error) => {
    console.error(error)
    process.exit(1)
  }
)
