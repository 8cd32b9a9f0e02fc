/** What the routes of health answer, whoever serves them. */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as HealthJson from "./healthJson.ts"
import * as Logbook from "./logbook.ts"
import * as LogFields from "./logFields.ts"
import { exitWithin, goodFor, shared } from "./patience.ts"

/** What is to be answered: one pool or all of them, whether the process lives, whether it is ready, its metrics. */
export type Route = "database" | "livez" | "readyz" | "metrics"

/** Where each is; `undefined` for nowhere. */
export type Paths = Readonly<Record<Route, `/${string}` | undefined>>

/** As much of a request as is looked at. */
export interface Inquiry {
  /** The path and query, or all of the URL. */
  readonly url: string
  readonly headers: Headers
}

export interface Answer {
  readonly status: number
  readonly headers: Readonly<Record<string, string>>
  readonly body: string
}

/** One pool, as far as it is looked at here. */
export interface Subject {
  readonly name: string
  readonly check: Effect.Effect<HealthJson.Told>
  readonly ask: Effect.Effect<HealthJson.Told>
  readonly details: Effect.Effect<object>
}

export interface Terms {
  readonly pools: ReadonlyArray<Subject>
  /** The program's own conditions for being ready. */
  readonly checks: Readonly<Record<string, Effect.Effect<unknown, unknown>>>
  readonly isTrusted: (inquiry: Inquiry) => boolean
  readonly metrics: Effect.Effect<{ readonly text: string; readonly contentType: string }, unknown> | undefined
}

export interface Endpoint {
  /** Answers a route; `name` is that of one pool. */
  readonly answer: (route: Route, name: string | undefined, inquiry: Inquiry) => Effect.Effect<Answer>
  /** Notes that somebody asks who can no longer be answered. */
  readonly outlived: () => void
}

/** How long, in milliseconds, one of the program's own checks may take. */
const patience = 1_000

const answerOf = (status: number, contentType: string, body: string, headers?: Record<string, string>): Answer => ({
  status,
  headers: { "content-type": contentType, "cache-control": "no-store", ...headers },
  body
})

/** A microsecond is enough of a millisecond. */
const brief = (_: string, value: unknown): unknown =>
  typeof value === "number" ? Math.round(value * 1_000) / 1_000 : value

const json = (status: number, body: object, headers?: Record<string, string>): Answer =>
  answerOf(status, "application/health+json", JSON.stringify(body, brief), headers)

export const notFound: Answer = answerOf(404, "text/plain; charset=utf-8", "Not found.\n")

export const notAllowed: Answer = answerOf(405, "text/plain; charset=utf-8", "Only GET and HEAD.\n", {
  allow: "GET, HEAD"
})

/** Nothing can be asked: the services that would answer are not there. */
export const unavailable: Answer = json(503, {
  status: "fail",
  state: "down",
  output: "The application has not started, or has ended."
}, {
  "retry-after": "1"
})

/** The process answers: there is no more to it. */
export const alive: Answer = json(200, { status: "pass" })

/** Whole seconds, and not at once: an answer is good for a second. */
const comeBack = (reports: ReadonlyArray<HealthJson.Told>): Record<string, string> => ({
  "retry-after": String(Math.max(1, ...reports.map(({ retryAfter }) => Math.ceil((retryAfter ?? 0) / 1_000))))
})

const ownCheck = (name: string, check: Effect.Effect<unknown, unknown>): Effect.Effect<
  HealthJson.OwnCheck & {
    readonly detail: string | undefined
  }
> =>
  Effect.gen(function*() {
    const exit = yield* exitWithin(check, patience)
    const checkedAt = DateTime.makeUnsafe(yield* Clock.currentTimeMillis)
    const isSilent = Option.isNone(exit)
    const isPassed = !isSilent && Exit.isSuccess(exit.value)
    return {
      name,
      isPassed,
      output: isPassed ? undefined : isSilent ? `no answer within ${patience / 1_000} s` : "failed",
      detail: !isSilent && Exit.isFailure(exit.value) ? textOf(Cause.squash(exit.value.cause)) : undefined,
      checkedAt
    }
  })

const textOf = (error: unknown): string =>
  error instanceof Error ? error.message : typeof error === "string" ? error : "failed"

const searchOf = (url: string): URLSearchParams => {
  const at = url.indexOf("?")
  return new URLSearchParams(at === -1 ? "" : url.slice(at + 1))
}

const wantsProbe = (url: string): boolean => {
  const probe = searchOf(url).get("probe")
  return probe === "1" || probe === "true"
}

export const make = (terms: Terms): Effect.Effect<Endpoint> =>
  Effect.gen(function*() {
    const { isTrusted, metrics, pools } = terms
    const book = yield* Logbook.make(undefined)
    // Shared by all who ask at the same time, like the pools' own: strangers may ask often.
    const ownChecks = yield* shared(
      Effect.forEach(Object.entries(terms.checks), ([name, check]) => ownCheck(name, check), {
        concurrency: "unbounded"
      }),
      goodFor
    )

    /** A mistake in the program's own function must not show anything, nor fail a healthy answer. */
    const trusts = (inquiry: Inquiry): Effect.Effect<boolean> =>
      Effect.catchCause(
        // A promise is truthy, and has not said yes.
        Effect.sync(() => isTrusted(inquiry) === true),
        (cause) =>
          Effect.sync(() => {
            book.write("healthOptionFailed", () => LogFields.ofDefect(Cause.squash(cause)))
            return false
          })
      )

    const ofPool = (subject: Subject, inquiry: Inquiry): Effect.Effect<Answer> =>
      Effect.gen(function*() {
        const report = yield* wantsProbe(inquiry.url) ? subject.ask : subject.check
        const details = (yield* trusts(inquiry)) ? yield* subject.details : undefined
        const isDown = report.state === "down"
        return json(isDown ? 503 : 200, HealthJson.ofPool(report, details), isDown ? comeBack([report]) : undefined)
      })

    const ofAll = (inquiry: Inquiry, withOwn: boolean): Effect.Effect<Answer> =>
      Effect.gen(function*() {
        const probes = wantsProbe(inquiry.url)
        const [reports, own] = yield* Effect.all([
          Effect.forEach(pools, ({ ask, check }) => probes ? ask : check, { concurrency: "unbounded" }),
          withOwn ? ownChecks : Effect.succeed([])
        ], { concurrency: "unbounded" })
        const isShown = yield* trusts(inquiry)
        const shown = own.map(({ detail, output, ...check }) => ({
          ...check,
          output: isShown ? detail ?? output : output
        }))
        const isDown = reports.some(({ state }) => state === "down") || own.some(({ isPassed }) => !isPassed)
        return json(isDown ? 503 : 200, HealthJson.ofAll(reports, shown), isDown ? comeBack(reports) : undefined)
      })

    const ofDatabase = (name: string | undefined, inquiry: Inquiry): Effect.Effect<Answer> => {
      if (name === undefined) return pools.length === 1 ? ofPool(pools[0]!, inquiry) : ofAll(inquiry, false)
      const subject = pools.find((pool) => pool.name === name)
      return subject === undefined ? Effect.succeed(notFound) : ofPool(subject, inquiry)
    }

    const ofMetrics: Effect.Effect<Answer> = metrics === undefined ? Effect.succeed(notFound) : Effect.matchCauseEffect(
      metrics,
      {
        onSuccess: ({ contentType, text }) => Effect.succeed(answerOf(200, contentType, text)),
        // One bad collector of the program's fails a whole registry. The scraper learns that, but not the error's text.
        onFailure: (cause) =>
          Effect.sync(() => {
            book.write("metricsUnreadable", () => LogFields.ofDefect(Cause.squash(cause)))
            return answerOf(500, "text/plain; charset=utf-8", "The metrics could not be read.\n")
          })
      }
    )

    return {
      outlived: () => book.write("healthEnded", () => ({})),
      answer: (route, name, inquiry) => {
        switch (route) {
          case "livez":
            return Effect.succeed(alive)
          case "readyz":
            return ofAll(inquiry, true)
          case "metrics":
            return ofMetrics
          case "database":
            return ofDatabase(name, inquiry)
        }
      }
    }
  })

/** Which route a path is, and whose pool it names. */
export const find = (
  paths: Paths,
  pathname: string
): { readonly route: Route; readonly name: string | undefined } | undefined => {
  const path = pathname.length > 1 && pathname.endsWith("/") ? pathname.slice(0, -1) : pathname
  for (const route of ["livez", "readyz", "metrics", "database"] as const) {
    if (paths[route] === path) return { route, name: undefined }
  }
  const head = paths.database === undefined ? undefined : `${paths.database}/`
  if (head === undefined || !path.startsWith(head)) return undefined
  const name = decode(path.slice(head.length))
  return name === undefined ? undefined : { route: "database", name }
}

const decode = (text: string): string | undefined => {
  try {
    return decodeURIComponent(text)
  } catch {
    return undefined
  }
}
