import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Stream from "effect/Stream"
import { TestClock } from "effect/testing"
import * as Http from "node:http"
import type { AddressInfo } from "node:net"
import { PassThrough } from "node:stream"
import * as Pg from "../src/index.ts"

const { Serverless } = Pg

const context = (remaining = 60_000) => ({ awsRequestId: "request-1", getRemainingTimeInMillis: () => remaining })

/** An environment that goes by the clock of the test. */
const environment = Serverless.environment(Layer.empty)

/** What a handler's promise comes to. */
const call = (promise: () => Promise<void>): Effect.Effect<Exit.Exit<void, unknown>> =>
  Effect.exit(Effect.tryPromise({ try: promise, catch: (error) => error }))

const errorOf = (exit: Exit.Exit<unknown, unknown>): Error => {
  if (Exit.isSuccess(exit)) return assert.fail("it has succeeded")
  const reason = exit.cause.reasons[0]
  return reason?._tag === "Fail" && reason.error instanceof Error ? reason.error : assert.fail("it has not rejected")
}

/** A stream, what was written to it, and what happens there in what order. */
const makeSink = (options: { readonly highWaterMark?: number } = {}) => {
  const stream = new PassThrough(options)
  const chunks: Array<Buffer> = []
  const happened: Array<string> = []
  stream.on("finish", () => happened.push("end"))
  return {
    stream,
    happened,
    read: () => {
      stream.on("data", (chunk: Buffer) => chunks.push(chunk))
    },
    written: () => Buffer.concat(chunks).toString("latin1")
  }
}

const prelude = (metadata: string) => `${metadata}${"\0".repeat(8)}`

const settle = Effect.promise(() => new Promise((resolve) => setImmediate(resolve)))

/** The global of AWS's runtime while a handler is made. */
const withAwsLambda = <A>(awslambda: object, make: () => A): A => {
  Object.assign(globalThis, { awslambda })
  try {
    return make()
  } finally {
    Reflect.deleteProperty(globalThis, "awslambda")
  }
}

describe("Serverless.lambdaStream", () => {
  it("declares three parameters, by which Node 24's runtime knows it", () => {
    assert.strictEqual(Serverless.lambdaStream(() => Effect.succeed(Stream.empty), { layer: Layer.empty }).length, 3)
  })

  it("is marked by AWS's runtime where that is there", () => {
    const marked: Array<unknown> = []
    const handler = withAwsLambda(
      {
        streamifyResponse: (handler: object) => {
          marked.push(handler)
          return handler
        }
      },
      () => Serverless.lambdaStream(() => Effect.succeed(Stream.empty), { layer: Layer.empty })
    )
    assert.deepStrictEqual(marked, [handler])
  })

  it.effect("sends each chunk when it is there, text and bytes", () =>
    Effect.gen(function*() {
      const sink = makeSink()
      sink.read()
      const more = yield* Deferred.make<void>()
      const handler = Serverless.lambdaStream(
        (event: { readonly name: string }) =>
          Effect.succeed(Stream.concat(
            Stream.make<ReadonlyArray<string | Uint8Array>>(`Hello, ${event.name}`),
            Stream.fromEffect(Effect.as(Deferred.await(more), new TextEncoder().encode("!")))
          )),
        { layer: yield* environment }
      )
      const fiber = yield* Effect.forkChild(call(() => handler({ name: "world" }, sink.stream, context())))
      yield* settle
      assert.strictEqual(sink.written(), "Hello, world")
      yield* Deferred.succeed(more, undefined)
      assert.deepStrictEqual(yield* Fiber.join(fiber), Exit.void)
      assert.strictEqual(sink.written(), "Hello, world!")
    }))

  it.effect("gives the handler its event, the context and what the platform calls the invocation", () =>
    Effect.gen(function*() {
      const sink = makeSink()
      sink.read()
      const handler = Serverless.lambdaStream(
        (event: number, { awsRequestId }) =>
          Effect.map(
            Serverless.Invocation,
            (invocation) => Stream.make(JSON.stringify([event, awsRequestId, invocation.event, invocation.id]))
          ),
        { layer: yield* environment }
      )
      yield* call(() => handler(7, sink.stream, context()))
      assert.deepStrictEqual(JSON.parse(sink.written()), [7, "request-1", 7, "request-1"])
    }))

  it.effect("sends the metadata before the body in the format of Lambda's HTTP integrations", () =>
    Effect.gen(function*() {
      const sink = makeSink()
      sink.read()
      const handler = Serverless.lambdaStream(
        () => Effect.succeed({ metadata: { statusCode: 201, headers: { a: "b" } }, body: Stream.make("body") }),
        { layer: yield* environment }
      )
      yield* call(() => handler(undefined, sink.stream, context()))
      assert.strictEqual(sink.written(), prelude("{\"statusCode\":201,\"headers\":{\"a\":\"b\"}}") + "body")
    }))

  it.effect("leaves the metadata to AWS's helper, which waits for a write, also when there is no body", () =>
    Effect.gen(function*() {
      const sink = makeSink()
      sink.read()
      // As AWS's helper does: nothing is sent before the first write.
      const from = (stream: PassThrough, metadata: object) => {
        const write = stream.write.bind(stream)
        let isFirst = true
        return Object.assign(stream, {
          write: (chunk: string) => {
            if (isFirst) write(`<${JSON.stringify(metadata)}>`)
            isFirst = false
            return write(chunk)
          }
        })
      }
      const layer = yield* environment
      const handler = withAwsLambda(
        { HttpResponseStream: { from } },
        () =>
          Serverless.lambdaStream(
            () => Effect.succeed({ metadata: { statusCode: 204 }, body: Stream.empty }),
            { layer }
          )
      )
      assert.deepStrictEqual(yield* call(() => handler(undefined, sink.stream, context())), Exit.void)
      assert.strictEqual(sink.written(), "<{\"statusCode\":204}>")
    }))

  it.live("is over in time, and broken off, when the client does not take the end of it", () =>
    Effect.gen(function*() {
      const sink = makeSink({ highWaterMark: 1000 })
      // A PassThrough has finished when its writable side has: this one never has.
      sink.stream._final = () => {}
      const handler = Serverless.lambdaStream(() => Effect.succeed(Stream.make("all of it")), { layer: Layer.empty })
      const error = errorOf(yield* call(() => handler(undefined, sink.stream, context(100))))
      assert.match(error.message, /had not taken the whole answer/)
      assert.isTrue(sink.stream.destroyed)
    }))

  it.effect("reads the body no faster than the client takes it", () =>
    Effect.gen(function*() {
      const sink = makeSink({ highWaterMark: 2 })
      let made = 0
      const handler = Serverless.lambdaStream(
        () =>
          Effect.succeed(Stream.mapEffect(
            Stream.rechunk(Stream.range(1, 100), 1),
            () =>
              Effect.sync(() => {
                made++
                return "x"
              })
          )),
        { layer: yield* environment }
      )
      const fiber = yield* Effect.forkChild(call(() => handler(undefined, sink.stream, context())))
      for (let turn = 0; turn < 20; turn++) yield* settle
      assert.isAtMost(made, 10)
      assert.isUndefined(fiber.pollUnsafe())
      sink.read()
      assert.deepStrictEqual(yield* Fiber.join(fiber), Exit.void)
      assert.strictEqual(made, 100)
      assert.strictEqual(sink.written(), "x".repeat(100))
    }))

  it.effect("closes the scope of the invocation before the answer ends", () =>
    Effect.gen(function*() {
      const sink = makeSink()
      sink.read()
      const note = (what: string) => Effect.sync(() => sink.happened.push(what))
      const handler = Serverless.lambdaStream(
        () =>
          Effect.as(
            Effect.addFinalizer(() => Effect.andThen(Effect.yieldNow, note("handler's scope closed"))),
            Stream.ensuring(Stream.make("body"), note("body closed"))
          ),
        { layer: yield* environment }
      )
      yield* call(() => handler(undefined, sink.stream, context()))
      assert.deepStrictEqual(sink.happened, ["body closed", "handler's scope closed", "end"])
    }))

  for (
    const [name, answer] of [
      ["of the handler", Effect.fail(new Error("no"))],
      ["of the body, before its first chunk", Effect.succeed({ metadata: {}, body: Stream.fail(new Error("no")) })]
    ] as const
  ) {
    it.effect(`leaves no trace of an error ${name}, and rejects`, () =>
      Effect.gen(function*() {
        const sink = makeSink()
        sink.read()
        const handler = Serverless.lambdaStream(() => answer, { layer: yield* environment })
        const exit = yield* call(() => handler(undefined, sink.stream, context()))
        assert.strictEqual(errorOf(exit).message, "no")
        assert.strictEqual(sink.written(), "")
        // Whoever has called may still answer something.
        assert.isTrue(sink.stream.writable)
      }))
  }

  it.effect("refuses an answer that is no stream and has none for a body", () =>
    Effect.gen(function*() {
      const layer = yield* Serverless.environment(Layer.empty)
      for (const answer of [{ metadata: { statusCode: 200 } }, "hello", undefined]) {
        const handler = Serverless.lambdaStream((() => Effect.succeed(answer)) as never, { layer })
        const sink = makeSink()
        sink.read()
        const exit = yield* call(() => handler({}, sink.stream, context()))
        assert.match(
          errorOf(exit).message,
          /^handler is .*, but must be a function whose Effect succeeds with a Stream/
        )
        assert.strictEqual(sink.written(), "")
      }
    }))

  it.effect("says of an error what encodeError makes of it", () =>
    Effect.gen(function*() {
      const handler = Serverless.lambdaStream(() => Effect.fail("secret"), {
        layer: yield* environment,
        encodeError: () => new Error("encoded")
      })
      const exit = yield* call(() => handler(undefined, makeSink().stream, context()))
      assert.strictEqual(errorOf(exit).message, "encoded")
    }))

  it.effect("interrupts the work and rejects when the client leaves, waiting for it or not", () =>
    Effect.gen(function*() {
      for (const body of [Stream.never, Stream.concat(Stream.make("begun"), Stream.never)]) {
        const sink = makeSink()
        sink.read()
        let end: Exit.Exit<unknown, unknown> | undefined
        const handler = Serverless.lambdaStream(
          () =>
            Effect.as(
              Effect.addFinalizer((exit) =>
                Effect.sync(() => {
                  end = exit
                })
              ),
              body
            ),
          { layer: yield* environment }
        )
        const fiber = yield* Effect.forkChild(call(() => handler(undefined, sink.stream, context())))
        yield* settle
        sink.stream.destroy()
        assert.match(errorOf(yield* Fiber.join(fiber)).message, /client has left/)
        assert.isTrue(end !== undefined && Exit.hasInterrupts(end))
      }
    }))

  it.effect("ends a body at the deadline with InvocationTimeout, and what it has opened with it", () =>
    Effect.gen(function*() {
      const sink = makeSink()
      sink.read()
      sink.stream.on("error", () => sink.happened.push("destroyed"))
      const handler = Serverless.lambdaStream(
        () =>
          Effect.succeed(Stream.ensuring(
            Stream.concat(Stream.make("begun"), Stream.never),
            Effect.sync(() => sink.happened.push("body closed"))
          )),
        { layer: yield* environment }
      )
      const fiber = yield* Effect.forkChild(call(() => handler(undefined, sink.stream, context(3000))))
      yield* settle
      assert.strictEqual(sink.written(), "begun")
      yield* TestClock.adjust(2749)
      assert.isUndefined(fiber.pollUnsafe())
      yield* TestClock.adjust(1)
      assert.strictEqual(errorOf(yield* Fiber.join(fiber)).name, "InvocationTimeout")
      yield* settle
      assert.deepStrictEqual(sink.happened, ["body closed", "destroyed"])
    }))
})

/** A server whose every answer is what `answer` does with it. */
const listen = (answer: (response: Http.ServerResponse, request: Http.IncomingMessage) => void) =>
  Effect.acquireRelease(
    Effect.callback<Http.Server>((resume) => {
      const server = Http.createServer((request, response) => answer(response, request))
      server.listen(0, "127.0.0.1", () => resume(Effect.succeed(server)))
    }),
    (server) =>
      Effect.callback<void>((resume) => {
        server.closeAllConnections()
        server.close(() => resume(Effect.void))
      })
  ).pipe(Effect.map((server) => (server.address() as AddressInfo).port))

const broken = Stream.concat(Stream.make("the beginning"), Stream.fail(new RangeError("the middle")))

describe("an answer that fails in the middle", () => {
  it.live("breaks off for the client of an HTTP server, and is told of to whoever has called", () =>
    Effect.gen(function*() {
      const handler = Serverless.lambdaStream(() => Effect.succeed(broken), { layer: yield* environment })
      const told = yield* Deferred.make<Exit.Exit<void, unknown>>()
      const port = yield* listen((response) => {
        const answered = call(() => handler(undefined, response, context()))
        Effect.runFork(Effect.flatMap(answered, (exit) => Deferred.succeed(told, exit)))
      })
      const heard = yield* Effect.promise(async () => {
        const response = await fetch(`http://127.0.0.1:${port}`)
        return response.text().then(() => "the whole answer", (error: Error) => error.message)
      })
      assert.strictEqual(heard, "terminated")
      assert.strictEqual(errorOf(yield* Deferred.await(told)).name, "RangeError")
    }))

  it.live("is ended by AWS's runtime, with the error in its trailers", () =>
    Effect.gen(function*() {
      const layer = yield* environment
      const handler = withAwsLambda(
        { streamifyResponse: (handler: object) => handler },
        () => Serverless.lambdaStream(() => Effect.succeed(broken), { layer })
      )
      const received = yield* Deferred.make<object>()
      const port = yield* listen((response, request) => {
        let body = ""
        request.setEncoding("utf8").on("data", (text) => body += text).on("end", () => {
          const type = request.trailers["lambda-runtime-function-error-type"]
          Deferred.doneUnsafe(received, Exit.succeed({ body, type }))
          response.end()
        })
      })
      // The stream of AWS's runtime is a request to its API; it is the runtime that ends one whose handler has rejected.
      const stream = Http.request({
        port,
        host: "127.0.0.1",
        method: "POST",
        headers: { "transfer-encoding": "chunked", trailer: "Lambda-Runtime-Function-Error-Type" }
      })
      const exit = yield* call(() => handler(undefined, stream, context()))
      stream.addTrailers({ "Lambda-Runtime-Function-Error-Type": errorOf(exit).name })
      stream.end()
      assert.deepStrictEqual(yield* Deferred.await(received), {
        body: "the beginning",
        type: "RangeError"
      })
    }))
})
