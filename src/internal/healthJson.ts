/**
 * Health as `application/health+json`: the fields of
 * https://datatracker.ietf.org/doc/html/draft-inadarei-api-health-check-06 for whoever knows them, and our own beside
 * them.
 */
import type { State as BreakerState } from "./breakerView.ts"
import type { State } from "./healthLadder.ts"
import type { Server } from "./vitalSigns.ts"

/** As much of a report as is read here. */
export interface Told {
  readonly name: string
  readonly state: State
  readonly reasons: ReadonlyArray<string>
  readonly pool: { readonly active: number; readonly max: number; readonly waiting: number }
  readonly breaker: BreakerState["_tag"]
  readonly latencyMs?: number | undefined
  readonly retryAfter?: number | undefined
  readonly server?: Server | undefined
  readonly checkedAt: { readonly toJSON: () => unknown }
}

/** What became of one of the program's own checks. */
export interface OwnCheck {
  readonly name: string
  readonly isPassed: boolean
  readonly output: string | undefined
  readonly checkedAt: Told["checkedAt"]
}

type Status = "pass" | "warn" | "fail"

interface Check {
  readonly componentId?: string
  readonly componentType?: "datastore"
  readonly observedValue?: number | string | undefined
  readonly observedUnit?: string | undefined
  readonly status: Status
  readonly output?: string | undefined
  readonly time: unknown
}

const statusOf: Record<State, Status> = { up: "pass", degraded: "warn", down: "fail" }

const breakerStatus: Record<BreakerState["_tag"], Status> = {
  Closed: "pass",
  Disabled: "pass",
  HalfOpen: "warn",
  Open: "fail",
  Isolated: "fail"
}

const states: ReadonlyArray<State> = ["up", "degraded", "down"]

const worstOf = (all: ReadonlyArray<State>): State => states[Math.max(0, ...all.map((state) => states.indexOf(state)))]!

/** The draft wants none where all is well. */
const outputOf = ({ reasons, state }: Told): string | undefined => state === "up" ? undefined : reasons.join(" ")

const checksOf = (reports: ReadonlyArray<Told>): Record<string, ReadonlyArray<Check>> => {
  const each = (
    of: ReadonlyArray<Told>,
    check: (report: Told) => Pick<Check, "observedUnit" | "observedValue" | "output" | "status">
  ) =>
    of.map((report): Check => ({
      componentId: report.name,
      componentType: "datastore",
      ...check(report),
      time: report.checkedAt
    }))
  const asked = reports.filter(({ latencyMs }) => latencyMs !== undefined)
  return {
    postgresql: each(reports, (report) => ({ status: statusOf[report.state], output: outputOf(report) })),
    "postgresql:connections": each(reports, ({ pool: { active, max, waiting } }) => ({
      observedValue: active,
      observedUnit: "connections",
      status: active >= max && waiting > 0 ? "warn" : "pass"
    })),
    "postgresql:circuitBreaker": each(reports, ({ breaker }) => ({
      observedValue: breaker,
      status: breakerStatus[breaker]
    })),
    ...(asked.length > 0 && {
      "postgresql:responseTime": each(asked, ({ latencyMs, state }) => ({
        observedValue: latencyMs,
        observedUnit: "ms",
        status: statusOf[state]
      }))
    })
  }
}

/** One pool. Without `details` it may be shown to strangers. */
export const ofPool = (report: Told, details: object | undefined): object => ({
  status: statusOf[report.state],
  output: outputOf(report),
  checks: checksOf([report]),
  ...report,
  server: details === undefined && report.server !== undefined ? { role: report.server.role } : report.server,
  details
})

const stateOf = ({ isPassed }: OwnCheck): State => isPassed ? "up" : "down"

/** Several pools, and the program's own checks. */
export const ofAll = (reports: ReadonlyArray<Told>, own: ReadonlyArray<OwnCheck>): object => {
  const state = worstOf([...reports.map((report) => report.state), ...own.map(stateOf)])
  const outputs = [
    ...reports.flatMap((report) => report.state === "up" ? [] : [`${report.name}: ${outputOf(report)}`]),
    ...own.flatMap(({ isPassed, name, output }) => isPassed ? [] : [`${name}: ${output ?? "failed"}`])
  ]
  return {
    status: statusOf[state],
    output: outputs.length === 0 ? undefined : outputs.join(" "),
    checks: own.reduce(
      (checks, check) => ({
        ...checks,
        // Beside ours, where it has the name of one.
        [check.name]: [...(Object.hasOwn(checks, check.name) ? checks[check.name]! : []), {
          status: statusOf[stateOf(check)],
          output: check.output,
          time: check.checkedAt
        }]
      }),
      checksOf(reports)
    ),
    state
  }
}
