import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import { identity } from "effect/Function"
import * as HttpClient from "effect/http/HttpClient"
import type * as HttpClientError from "effect/http/HttpClientError"
import type * as HttpClientRequest from "effect/http/HttpClientRequest"
import * as HttpClientResponse from "effect/http/HttpClientResponse"
import * as References from "effect/References"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import * as Logbook from "./logbook.ts"

/** How a flush ended. */
export type Outcome = "Sent" | "Failed" | "Late" | "Skipped"

/** Everything that was waiting to be sent, on its way to the collector. */
interface Flight {
  readonly landed: Deferred.Deferred<void>
  readonly givenUp: Deferred.Deferred<void>
  /** Somebody has waited for it for as long as they could. */
  isLate: boolean
  requests: number
  /** What went wrong, by signal. */
  readonly failures: Map<string, string>
}

export interface Flights {
  /** What the exporters register with: all that they have is sent by one `flush`. */
  readonly flusher: {
    readonly flush: Effect.Effect<void>
    readonly register: (run: Effect.Effect<void>) => Effect.Effect<void, never, Scope.Scope>
  }
  /** The client that the exporters send with. */
  readonly client: HttpClient.HttpClient
  /** Sends what there is, and waits for that for so many milliseconds. What is not there by then goes on. */
  readonly flush: (millis: number) => Effect.Effect<Outcome>
  /** The same for the last time. */
  readonly close: (millis: number) => Effect.Effect<void>
}

/** A request that nobody waits for: one that an exporter sends by itself, because it has collected much. */
const unattendedTimeout = "10 seconds"

/** Another attempt now may do better. That is not so for 429, which asks to be left alone. */
const mayPass = (error: HttpClientError.HttpClientError): boolean =>
  HttpClient.isTransientError(error) && error.response?.status !== 429

const codeOf = (cause: unknown): string | undefined => {
  for (let at = cause, depth = 0; typeof at === "object" && at !== null && depth < 5; depth++) {
    if ("code" in at && typeof at.code === "string") return at.code
    at = "cause" in at ? at.cause : undefined
  }
  return undefined
}

/** In few words, and without the address and the headers, which may be secret. */
const describe = ({ reason, response }: HttpClientError.HttpClientError): string =>
  response === undefined ? codeOf(reason.cause) ?? reason._tag : `status ${response.status}`

const signalOf = (request: HttpClientRequest.HttpClientRequest): string =>
  request.url.slice(request.url.lastIndexOf("/") + 1)

const received = (request: HttpClientRequest.HttpClientRequest): HttpClientResponse.HttpClientResponse =>
  HttpClientResponse.fromWeb(request, new Response(null, { status: 204 }))

/**
 * Sends what several exporters have, together and one flight at a time, for callers who cannot wait for long.
 *
 * Two flights at a time would count twice: each takes all that has not been acknowledged yet. So would ending a request
 * that the collector is about to answer. Hence a flight that nobody can wait for any more goes on, and whoever
 * comes next waits for it first, and gives it up when it is not there by then either. Its exporter
 * then rests, like after any failure, so that a collector which is not well costs something once a minute.
 */
export const make = Effect.fnUntraced(function*(
  connect: HttpClient.HttpClient
): Effect.fn.Return<Flights, never, Scope.Scope> {
  const scope = yield* Scope.Scope
  const logbook = yield* Logbook.make(undefined)
  const exporters = new Set<Effect.Effect<void>>()
  let current: Flight | undefined
  let next: Flight | undefined
  let isClosed = false

  const plan = (): Flight => ({
    landed: Deferred.makeUnsafe(),
    givenUp: Deferred.makeUnsafe(),
    isLate: false,
    requests: 0,
    failures: new Map()
  })

  const tell = ({ failures }: Flight): void => {
    if (failures.size === 0) return
    const reasons = Array.from(failures, ([signal, reason]) => `${signal} (${reason})`).join(", ")
    logbook.write("otlpRefused", () => ({ "db.otlp.reasons": reasons }))
  }

  const land = (flight: Flight): Effect.Effect<void> =>
    Effect.suspend(() => {
      current = next
      next = undefined
      // Last, since those who have waited go on at once.
      const begin = current === undefined ? Effect.void : fly(current)
      return Effect.andThen(begin, Effect.sync(() => Deferred.doneUnsafe(flight.landed, Effect.void)))
    })

  const fly = (flight: Flight): Effect.Effect<void> =>
    Effect.suspend(() => Effect.forEach(exporters, identity, { concurrency: "unbounded", discard: true })).pipe(
      // What the exporters have to say of a failure is told below, once for all of them.
      Effect.provideService(References.MinimumLogLevel, "None"),
      Effect.andThen(Effect.sync(() => tell(flight))),
      Effect.ensuring(land(flight)),
      Effect.forkIn(scope, { startImmediately: true }),
      Effect.asVoid
    )

  const flush = (millis: number): Effect.Effect<Outcome> =>
    // Whoever is interrupted must not leave a flight behind that never begins, for which all others would wait.
    Effect.uninterruptibleMask((restore) => {
      if (millis <= 0) return Effect.succeed("Skipped")
      const ahead = current
      const wasLate = ahead?.isLate ?? false
      const mine = ahead === undefined ? plan() : next ?? plan()
      if (ahead === undefined) current = mine
      else next = mine
      return (ahead === undefined ? fly(mine) : Effect.void).pipe(
        Effect.andThen(restore(Effect.timeoutOption(Deferred.await(mine.landed), millis))),
        Effect.flatMap((inTime): Effect.Effect<Outcome> => {
          if (inTime._tag === "Some") {
            return Effect.succeed(mine.requests === 0 ? "Skipped" : mine.failures.size === 0 ? "Sent" : "Failed")
          }
          if (ahead !== undefined && wasLate && ahead === current) {
            Deferred.doneUnsafe(ahead.givenUp, Effect.void)
            return Effect.succeed("Failed")
          }
          // Not that of others which has just begun: it has its time still.
          const awaited = ahead ?? mine
          awaited.isLate = true
          logbook.write("otlpLate", () => ({ "db.otlp.waited_ms": Math.round(millis) }))
          return Effect.succeed("Late")
        })
      )
    })

  return {
    flush,
    flusher: {
      flush: Effect.asVoid(flush(Infinity)),
      register: (run) =>
        Effect.flatMap(Effect.scope, (scope) => {
          exporters.add(run)
          return Scope.addFinalizer(scope, Effect.sync(() => exporters.delete(run)))
        })
    },
    client: HttpClient.transform(connect, (send, request) =>
      Effect.suspend(() => {
        // Each exporter sends once more when it is closed, after the last flush: there is nothing left.
        if (isClosed) return Effect.succeed(received(request))
        const flight = current
        if (flight !== undefined) flight.requests++
        // The answer is read here, since the end of it may be long in coming.
        const attempt = Effect.flatMap(send, HttpClientResponse.filterStatusOk).pipe(
          Effect.tap((response) => response.arrayBuffer)
        )
        const delivery = attempt.pipe(
          Effect.retry({ schedule: Schedule.exponential("25 millis"), times: 3, while: mayPass }),
          Effect.mapError(describe)
        )
        const patience = flight === undefined ? Effect.sleep(unattendedTimeout) : Deferred.await(flight.givenUp)
        return Effect.raceFirst(delivery, Effect.andThen(patience, Effect.fail("no answer"))).pipe(
          Effect.as(received(request)),
          // The exporter would try a failure again on its own, after seconds; a defect it does not.
          Effect.catch((reason) => {
            flight?.failures.set(signalOf(request), reason)
            return Effect.die(reason)
          })
        )
      })),
    close: (millis) =>
      Effect.andThen(
        flush(millis),
        Effect.sync(() => {
          isClosed = true
          if (current !== undefined) Deferred.doneUnsafe(current.givenUp, Effect.void)
        })
      )
  }
})
