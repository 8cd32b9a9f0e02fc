import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as References from "effect/References"
import { ConnectionError, SqlError, UniqueViolation } from "effect/sql/SqlError"
import * as Stream from "effect/Stream"
import { TestClock } from "effect/testing"
import { AsyncLocalStorage } from "node:async_hooks"
import * as Pg from "../src/index.ts"

const { Errors, Serverless } = Pg

const url = "https://orders.example/orders?id=7"

const environment = Serverless.environment(Layer.empty)

const settle = Effect.promise(() => new Promise((resolve) => setImmediate(resolve)))
const asked = (answer: () => Promise<Response>) => Effect.promise(answer)
const text = (response: Response) => Effect.promise(() => response.text())
const textOrError = (response: Response) =>
  Effect.promise(() => response.text().then((body) => body, (error: Error) => error.name))

/** Chunks as a database has them: each takes a while. */
const body = <E>(stream: Stream.Stream<string, E>) =>
  Stream.toReadableStream(Stream.encodeText(Stream.rechunk(stream, 1)))

const slowly = (...chunks: ReadonlyArray<string>) => Stream.tap(Stream.fromIterable(chunks), () => settle)

/** What a scope is told of its end, if it has ended. */
const witness = () => {
  const ends: Array<Exit.Exit<unknown, unknown>> = []
  return {
    ends,
    opened: Effect.addFinalizer((exit) => Effect.sync(() => ends.push(exit))),
    /** Takes a while to close. */
    openedSlowly: Effect.addFinalizer((exit) => Effect.andThen(settle, Effect.sync(() => ends.push(exit))))
  }
}

describe("Serverless.web", () => {
  it.effect("answers after the scope of the request was closed", () =>
    Effect.gen(function*() {
      for (
        const response of [
          () => new Response("whole", { status: 201, headers: { "x-a": "b" } }),
          () => Response.json("whole", { status: 201, headers: { "x-a": "b" } }),
          () => new Response(null, { status: 204 }),
          () => new Response("", { status: 200 })
        ]
      ) {
        const scope = witness()
        const handler = Serverless.web(() => Effect.as(scope.opened, response()), { layer: yield* environment })
        const answer = yield* asked(() => handler(new Request(url)))
        assert.strictEqual(scope.ends.length, 1)
        const wanted = response()
        assert.strictEqual(answer.status, wanted.status)
        assert.deepStrictEqual([...answer.headers], [...wanted.headers])
        assert.strictEqual(yield* text(answer), yield* text(wanted))
      }
    }))

  it.effect("keeps every cookie", () =>
    Effect.gen(function*() {
      const headers = new Headers([["set-cookie", "a=1"], ["set-cookie", "b=2"]])
      const handler = Serverless.web(() => Effect.succeed(new Response("x", { headers })), {
        layer: yield* environment
      })
      const answer = yield* asked(() => handler(new Request(url)))
      assert.deepStrictEqual(answer.headers.getSetCookie(), ["a=1", "b=2"])
    }))

  it.effect("keeps the scope open until a body that goes on was read, and asks for that time", () =>
    Effect.gen(function*() {
      const scope = witness()
      const waited: Array<Promise<unknown>> = []
      const handler = Serverless.web(
        () => Effect.as(scope.openedSlowly, new Response(body(slowly("a", "b", "c")), { status: 202 })),
        { layer: yield* environment }
      )
      const answer = yield* asked(() => handler(new Request(url), { waitUntil: (promise) => waited.push(promise) }))
      assert.strictEqual(answer.status, 202)
      assert.deepStrictEqual(scope.ends, [])
      assert.strictEqual(waited.length, 1)
      const reader = answer.body!.getReader()
      const read = Effect.map(Effect.promise(() => reader.read()), ({ value }) => new TextDecoder().decode(value))
      assert.deepStrictEqual(yield* Effect.all([read, read, read]), ["a", "b", "c"])
      assert.deepStrictEqual(scope.ends, [])
      // The end is told when everything has been closed.
      assert.isTrue((yield* Effect.promise(() => reader.read())).done)
      assert.deepStrictEqual(scope.ends, [Exit.void])
      yield* Effect.promise(() => waited[0]!)
    }))

  it.effect("asks nobody to wait for what is over", () =>
    Effect.gen(function*() {
      const waited: Array<Promise<unknown>> = []
      const handler = Serverless.web(() => Effect.succeed(new Response("whole")), {
        layer: yield* environment,
        waitUntil: (promise) => waited.push(promise)
      })
      yield* asked(() => handler(new Request(url)))
      assert.strictEqual(waited.length, 0)
    }))

  it.live("asks in the asynchronous context of the request that it is about, whoever has woken its fiber", () =>
    Effect.gen(function*() {
      const requests = new AsyncLocalStorage<string>()
      const waits: Array<string | undefined> = []
      const gate = yield* Deferred.make<void>()
      const handler = Serverless.web(
        () => Effect.as(Deferred.await(gate), new Response(body(slowly("a", "b")))),
        { layer: yield* environment, waitUntil: () => waits.push(requests.getStore()) }
      )
      const answers = ["first", "second"].map((name) => requests.run(name, () => handler(new Request(url))))
      yield* settle
      requests.run("somebody else", () => Deferred.doneUnsafe(gate, Exit.void))
      for (const answer of answers) assert.strictEqual(yield* text(yield* asked(() => answer)), "ab")
      assert.deepStrictEqual(waits.sort(), ["first", "second"])
    }))

  it.effect("interrupts what reads from the database when the client leaves its answer", () =>
    Effect.gen(function*() {
      const scope = witness()
      const source = witness()
      const handler = Serverless.web(
        () =>
          Effect.as(
            scope.opened,
            new Response(body(Stream.scoped(Stream.concat(
              Stream.concat(Stream.fromEffectDrain(source.opened), slowly("a")),
              Stream.never
            ))))
          ),
        { layer: yield* environment }
      )
      const answer = yield* asked(() => handler(new Request(url)))
      const reader = answer.body!.getReader()
      yield* Effect.promise(() => reader.read())
      yield* Effect.promise(() => reader.cancel())
      assert.strictEqual(source.ends.length, 1)
      assert.isTrue(Exit.hasInterrupts(scope.ends[0]!))
    }))

  for (
    const [name, answer] of [
      ["before the answer", Effect.never],
      ["before the first chunk", Effect.sync(() => new Response(body(Stream.never)))]
    ] as const
  ) {
    it.effect(`interrupts the work when the request is aborted ${name}`, () =>
      Effect.gen(function*() {
        const scope = witness()
        const client = new AbortController()
        const handler = Serverless.web(() => Effect.andThen(scope.opened, answer), { layer: yield* environment })
        const fiber = yield* Effect.forkChild(
          asked(() => handler(new Request(url, { signal: client.signal })))
        )
        yield* settle
        client.abort()
        assert.strictEqual((yield* Fiber.join(fiber)).status, 499)
        assert.isTrue(Exit.hasInterrupts(scope.ends[0]!))
      }))
  }

  it.live("leaves no timer behind that waits for the deadline of a request that was aborted", () =>
    Effect.gen(function*() {
      const timers = () => process.getActiveResourcesInfo().filter((kind) => kind === "Timeout").length
      const handler = Serverless.web(() => Effect.never, { layer: yield* environment, deadline: "1 hour" })
      const before = timers()
      const statuses = yield* Effect.forEach(Array.from({ length: 50 }), () => {
        const client = new AbortController()
        const answer = handler(new Request(url, { signal: client.signal }))
        client.abort()
        return Effect.map(asked(() => answer), ({ status }) => status)
      })
      assert.deepStrictEqual(new Set(statuses), new Set([499]))
      // The runner of the tests has timers, too.
      assert.isBelow(timers() - before, 25)
    }))

  it.effect("interrupts a body when the request is aborted, though nobody reads it any more", () =>
    Effect.gen(function*() {
      const source = witness()
      const client = new AbortController()
      const handler = Serverless.web(
        () =>
          Effect.sync(() =>
            new Response(body(Stream.scoped(
              Stream.concat(Stream.concat(Stream.fromEffectDrain(source.opened), slowly("a")), Stream.never)
            )))
          ),
        { layer: yield* environment }
      )
      const answer = yield* asked(() => handler(new Request(url, { signal: client.signal })))
      client.abort()
      yield* settle
      assert.strictEqual(source.ends.length, 1)
      assert.notStrictEqual(yield* textOrError(answer), "a")
    }))

  it.effect("sends the head of an event stream before there is an event", () =>
    Effect.gen(function*() {
      const event = yield* Deferred.make<string>()
      const handler = Serverless.web(
        () =>
          Effect.sync(() =>
            new Response(body(Stream.fromEffect(Deferred.await(event))), {
              headers: { "content-type": "text/event-stream; charset=utf-8" }
            })
          ),
        { layer: yield* environment }
      )
      const answer = yield* asked(() => handler(new Request(url)))
      yield* Deferred.succeed(event, "data: 1\n\n")
      assert.strictEqual(yield* text(answer), "data: 1\n\n")
    }))

  it.effect("answers HEAD without a body, which it gives up unread", () =>
    Effect.gen(function*() {
      const happened: Array<string> = []
      const unread = new ReadableStream({
        pull: () => void happened.push("read"),
        cancel: () => void happened.push("given up")
      }, { highWaterMark: 0 })
      const handler = Serverless.web(
        () => Effect.succeed(new Response(unread, { status: 206, headers: { "content-length": "12" } })),
        { layer: yield* environment }
      )
      const answer = yield* asked(() => handler(new Request(url, { method: "HEAD" })))
      assert.deepStrictEqual([answer.status, answer.body, answer.headers.get("content-length")], [206, null, "12"])
      assert.deepStrictEqual(happened, ["given up"])
    }))

  it.effect("ends what is not done at the deadline: 504 before the first chunk, a broken body after it", () =>
    Effect.gen(function*() {
      const layer = yield* environment
      const slow = Serverless.web(() => Effect.never, { layer, deadline: "10 seconds" })
      const fiber = yield* Effect.forkChild(asked(() => slow(new Request(url))))
      yield* settle
      yield* TestClock.adjust("9749 millis")
      assert.isUndefined(fiber.pollUnsafe())
      yield* TestClock.adjust("1 millis")
      const late = yield* Fiber.join(fiber)
      assert.strictEqual(late.status, 504)
      assert.deepStrictEqual(JSON.parse(yield* text(late)), { error: "InvocationTimeout" })

      const endless = Serverless.web(
        () => Effect.sync(() => new Response(body(Stream.concat(slowly("a"), Stream.never)))),
        { layer, deadline: ({ method }) => method === "GET" ? "1 seconds" : undefined }
      )
      const answer = yield* asked(() => endless(new Request(url)))
      yield* TestClock.adjust("1 seconds")
      assert.strictEqual(yield* textOrError(answer), "InvocationTimeout")
    }))
})

const stats = { max: 2, min: 0, total: 2, idle: 0, active: 2, waiting: 0, connecting: 0, oldestLease: 0 }
const secret = "postgres://admin:hunter2@db.internal/orders"
const reply = Object.assign(new Error(`duplicate key (email)=(${secret})`), { code: "23505", severity: "ERROR" })

const failures: ReadonlyArray<readonly [unknown, number, object, string | null]> = [
  [new Errors.CircuitOpen({ key: "default", retryAfter: 2500, lastFailure: null }), 503, { error: "CircuitOpen" }, "3"],
  [new Errors.CircuitHalfOpen({ key: "default", retryAfter: 10 }), 503, { error: "CircuitHalfOpen" }, "1"],
  [new Errors.CircuitIsolated({ key: "default", reason: secret }), 503, { error: "CircuitIsolated" }, null],
  [new Errors.PoolClosed(), 503, { error: "PoolClosed" }, null],
  [
    new Errors.AcquireTimeout({ phase: "Queue", waited: 1, stats, lastConnectFailure: null }),
    503,
    { error: "AcquireTimeout" },
    null
  ],
  [
    Errors.toSqlError(new Errors.CircuitOpen({ key: "default", retryAfter: 9000, lastFailure: null })),
    503,
    { error: "CircuitOpen" },
    "9"
  ],
  [
    new SqlError({ reason: new ConnectionError({ cause: new Error(secret) }) }),
    503,
    { error: "SqlError" },
    null
  ],
  [
    new Errors.OutcomeUnknown({ operation: "commit", failure: { code: "ECONNRESET" }, cause: new Error(secret) }),
    500,
    { error: "OutcomeUnknown" },
    null
  ],
  [
    new SqlError({ reason: new UniqueViolation({ cause: reply, constraint: secret }) }),
    500,
    { error: "SqlError", sqlState: "23505" },
    null
  ],
  [new RangeError(secret), 500, { error: "RangeError" }, null],
  [new Error(secret), 500, { error: "Error" }, null],
  [secret, 500, { error: "Error" }, null],
  [{ _tag: "CircuitOpen", retryAfter: 5000 }, 500, { error: "CircuitOpen" }, null]
]

describe("a request that fails", () => {
  for (const [error, status, said, retryAfter] of failures) {
    const name = `${JSON.stringify(said)}${Errors.isPoolError(error) ? "" : ` of ${Object(error).constructor.name}`}`
    it.effect(`is answered with ${status} for ${name}, and no word of what was said`, () =>
      Effect.gen(function*() {
        const layer = yield* environment
        for (
          const handler of [
            Serverless.web(() => Effect.fail(error), { layer }),
            Serverless.web(() => Effect.sync(() => new Response(body(Stream.fail(error)))), { layer })
          ]
        ) {
          const answer = yield* asked(() => handler(new Request(url)))
          const written = yield* text(answer)
          assert.strictEqual(answer.status, status)
          assert.deepStrictEqual(JSON.parse(written), said)
          assert.strictEqual(answer.headers.get("retry-after"), retryAfter)
          assert.notInclude(written, "hunter2")
        }
      }))
  }

  it.effect("is answered with what encodeError makes of it", () =>
    Effect.gen(function*() {
      const handler = Serverless.web(() => Effect.fail("no such order"), {
        layer: yield* environment,
        encodeError: (cause) => new Response(String(Cause.squash(cause)), { status: 404 })
      })
      const answer = yield* asked(() => handler(new Request(url)))
      assert.deepStrictEqual([answer.status, yield* text(answer)], [404, "no such order"])
    }))

  it.effect("is logged by the loggers of the layer, unless the client has left or encodeError was given", () =>
    Effect.gen(function*() {
      const lines: Array<string> = []
      const layer = Logger.layer([Logger.make(({ message }) => lines.push(String(message)))])
      const home = yield* Serverless.environment(layer)
      const handler = Serverless.web(
        ({ method }) => method === "GET" ? Effect.die(new RangeError("a bug")) : Effect.fail(new Errors.PoolClosed()),
        { layer: home }
      )
      yield* asked(() => handler(new Request(url)))
      assert.deepStrictEqual(lines.splice(0), ["An invocation has failed: RangeError: a bug"])
      yield* asked(() => handler(new Request(url, { method: "POST" })))
      assert.match(lines.splice(0).join(), /^An invocation has failed: PoolClosed: /)
      const encoding = Serverless.web(({ method }) =>
        method === "GET"
          ? Effect.fail("no")
          : Effect.succeed(new Response(body(Stream.concat(slowly("a"), Stream.fail(new RangeError("broken")))))), {
        layer: home,
        encodeError: () => new Response(null, { status: 404 })
      })
      yield* asked(() => encoding(new Request(url)))
      assert.deepStrictEqual(lines, [])
      yield* textOrError(yield* asked(() => encoding(new Request(url, { method: "POST" }))))
      assert.deepStrictEqual(lines, ["An invocation has failed: RangeError: broken"])
    }))

  it.effect("writes a few lines of each kind, and not one for each of a thousand that an outage fails", () =>
    Effect.gen(function*() {
      const lines: Array<unknown> = []
      const layer = Logger.layer([
        Logger.make(({ fiber }) => lines.push(fiber.getRef(References.CurrentLogAnnotations)["suppressed"]))
      ])
      const handler = Serverless.web(
        ({ method }) => Effect.fail(method === "GET" ? new Errors.PoolClosed() : new RangeError("a bug")),
        { layer: yield* Serverless.environment(layer) }
      )
      yield* Effect.promise(() => Promise.all(Array.from({ length: 1000 }, () => handler(new Request(url)))))
      assert.deepStrictEqual(lines.splice(0), [undefined, undefined, undefined, undefined, undefined])
      yield* asked(() => handler(new Request(url, { method: "POST" })))
      assert.deepStrictEqual(lines.splice(0), [undefined])
      yield* TestClock.adjust("5 seconds")
      yield* asked(() => handler(new Request(url)))
      assert.deepStrictEqual(lines, [995])
    }))

  it.effect("is one that answers with anything but a Response", () =>
    Effect.gen(function*() {
      const layer = yield* environment
      for (
        const handler of [
          () => Effect.succeed("hello"),
          () => Effect.succeed({ status: 200, headers: {}, body: "hello" }),
          () => Promise.reject(new Error("nobody waits for it"))
        ]
      ) {
        const answer = yield* asked(() => Serverless.web(handler as never, { layer })(new Request(url)))
        assert.deepStrictEqual([answer.status, yield* text(answer)], [500, "{\"error\":\"InvalidOption\"}"])
      }
    }))

  it.effect("rejects when encodeError itself fails: the host is told, and nobody waits for ever", () =>
    Effect.gen(function*() {
      const handler = Serverless.web(() => Effect.fail("no"), {
        layer: yield* environment,
        encodeError: () => {
          throw new RangeError("a bug")
        }
      })
      const error = yield* Effect.flip(Effect.tryPromise(() => handler(new Request(url))))
      assert.instanceOf(error.cause, RangeError)
    }))

  it.effect("has a body that breaks where the failure came after its beginning, and says there what it was", () =>
    Effect.gen(function*() {
      const handler = Serverless.web(
        () => Effect.sync(() => new Response(body(Stream.concat(slowly("a"), Stream.fail(new RangeError("no")))))),
        { layer: yield* environment }
      )
      const answer = yield* asked(() => handler(new Request(url)))
      assert.strictEqual(answer.status, 200)
      assert.strictEqual(yield* textOrError(answer), "RangeError")
    }))

  it.effect("is logged, and does not poison the next one, when the layer could not be built", () =>
    Effect.gen(function*() {
      let builds = 0
      const lines: Array<string> = []
      const layer = Layer.effectDiscard(Effect.suspend(() => ++builds === 1 ? Effect.fail("not yet") : Effect.void))
      const handler = Serverless.web(() => Effect.succeed(new Response("fine")), {
        layer: yield* Effect.provide(
          Serverless.environment(layer),
          Logger.layer([Logger.make(({ message }) => lines.push(String(message)))])
        )
      })
      const ask = Effect.map(asked(() => handler(new Request(url))), ({ status }) => status)
      assert.deepStrictEqual(yield* Effect.all([ask, ask]), [500, 200])
      assert.strictEqual(builds, 2)
      assert.strictEqual(lines.length, 1)
      assert.match(lines[0]!, /not yet/)
    }))
})
