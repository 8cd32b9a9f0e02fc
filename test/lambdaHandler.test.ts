import { assert, describe, it } from "@effect/vitest"
import type { Context as AwsContext, Handler, SQSEvent, SQSHandler } from "aws-lambda"
import * as Cause from "effect/Cause"
import * as Config from "effect/Config"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import { SqlError, UnknownError } from "effect/sql/SqlError"
import * as Stream from "effect/Stream"
import * as Http from "node:http"
import type { AddressInfo } from "node:net"
import { inspect } from "node:util"
import * as Errors from "../src/Errors.ts"
import * as LambdaAnswer from "../src/internal/lambdaAnswer.ts"
import { fromEnvironment } from "../src/Layer.ts"
import * as Serverless from "../src/Serverless.ts"

class Db extends Context.Service<Db, { readonly name: string }>()("test/Db") {}

const layer = Layer.succeed(Db, { name: "orders" })

const contextOf = (left: number) => ({ awsRequestId: "8476a536", getRemainingTimeInMillis: () => left })

// What @types/aws-lambda asks of handlers, and gives them.
const ofQueue = Serverless.lambda(
  (event: SQSEvent, context: AwsContext) =>
    Effect.map(Db, ({ name }) => ({
      batchItemFailures: event.Records.map(({ messageId }) => ({
        itemIdentifier: `${name} ${messageId} ${context.functionName}`
      }))
    })),
  { layer }
)
ofQueue satisfies SQSHandler
ofQueue satisfies Handler<SQSEvent>
Serverless.lambda((_: unknown) => Effect.succeed("ok"), { layer: Layer.empty }) satisfies Handler<unknown, string>

describe("a handler for Lambda", () => {
  it("takes an event and a context, and declares no third parameter", async () => {
    const handler = Serverless.lambda(
      (event: { readonly id: number }, context) =>
        Effect.gen(function*() {
          const { name } = yield* Db
          const invocation = yield* Serverless.Invocation
          assert.strictEqual(invocation.context, context)
          assert.strictEqual(invocation.event, event)
          return `${name} ${event.id} of ${invocation.id}`
        }),
      { layer }
    )
    assert.strictEqual(handler.length, 2)
    assert.strictEqual(await handler({ id: 7 }, contextOf(3000)), "orders 7 of 8476a536")
  })

  it("has what the context says for a deadline", async () => {
    const handler = Serverless.lambda((_: unknown) => Effect.never, { layer: Layer.empty })
    const error = await handler({}, contextOf(80)).then(() => assert.fail("it has succeeded"), (error: Error) => error)
    assert.strictEqual(error.name, "InvocationTimeout")
    assert.match(error.message, /^The invocation was not done within the 60 ms/)
  })

  it("answers without waiting for sessions that idle, where that is a question", async () => {
    const context = { ...contextOf(3000), callbackWaitsForEmptyEventLoop: true }
    const handler = Serverless.lambda((_: unknown) => Effect.void, { layer: Layer.empty })
    await handler({}, context)
    assert.isFalse(context.callbackWaitsForEmptyEventLoop)
    const newer = contextOf(3000)
    await handler({}, newer)
    assert.notProperty(newer, "callbackWaitsForEmptyEventLoop")
  })

  it("can be called by a test that has no context", async () => {
    const handler = Serverless.lambda((event: string) => Effect.succeed(event), { layer: Layer.empty }) as unknown as (
      event: string
    ) => Promise<string>
    assert.strictEqual(await handler("hello"), "hello")
  })

  it("shares an environment with others", async () => {
    let builds = 0
    const environment = Serverless.make(Layer.effect(Db, Effect.sync(() => ({ name: `build ${++builds}` }))))
    const first = Serverless.lambda((_: unknown) => Db, { layer: environment })
    const second = Serverless.lambda((_: unknown) => Effect.map(Db, ({ name }) => name), { layer: environment })
    assert.deepStrictEqual(await first({}, contextOf(3000)), { name: "build 1" })
    assert.strictEqual(await second({}, contextOf(3000)), "build 1")
    await environment.dispose()
    await first({}, contextOf(3000)).then(
      () => assert.fail("it has succeeded"),
      (error: Error) => assert.strictEqual(error.name, "PoolClosed")
    )
  })

  it("rejects when the effect fails, when it dies, and when it cannot even be made", async () => {
    class NotFound extends Data.TaggedError("NotFound")<{ readonly id: number }> {
      override get message() {
        return `There is no order ${this.id}.`
      }
    }
    const rejected = async (handler: () => Effect.Effect<unknown, unknown>) => {
      const lambda = Serverless.lambda(handler, { layer: Layer.empty })
      try {
        await lambda({}, contextOf(3000))
      } catch (error) {
        assert.instanceOf(error, Error)
        return [error.name, error.message]
      }
      return assert.fail("it has succeeded")
    }
    assert.deepStrictEqual(await rejected(() => Effect.fail(new NotFound({ id: 7 }))), [
      "NotFound",
      "There is no order 7."
    ])
    assert.deepStrictEqual(await rejected(() => Effect.die(new RangeError("boom"))), ["RangeError", "boom"])
    assert.deepStrictEqual(
      await rejected(() => {
        throw new TypeError("not made")
      }),
      ["TypeError", "not made"]
    )
    assert.strictEqual((await rejected(() => Effect.interrupt))[0], "Interrupted")
  })

  it("answers what encodeError says", async () => {
    const handler = Serverless.lambda((_: unknown) => Effect.fail("no"), {
      layer: Layer.empty,
      encodeError: (cause) => new Error(`[404] ${String(Cause.squash(cause))}`)
    })
    await handler({}, contextOf(3000)).then(
      () => assert.fail("it has succeeded"),
      (error: Error) => assert.strictEqual(error.message, "[404] no")
    )
  })

  it("refuses a handler that returns no Effect, whose rejection nobody hears of", async () => {
    const unheard: Array<unknown> = []
    const onUnheard = (error: unknown) => unheard.push(error)
    process.on("unhandledRejection", onUnheard)
    const returned: ReadonlyArray<readonly [unknown, string]> = [
      [Promise.reject(new Error("hunter2")), "\"a Promise\""],
      [(function*() {})(), "\"a generator\""],
      [{ statusCode: 200 }, "\"an object\""],
      ["hunter2", "\"a string\""],
      [undefined, "undefined"]
    ]
    for (const [value, kind] of returned) {
      const handler = Serverless.lambda((() => value) as never, { layer: Layer.empty })
      const error = await handler({}, contextOf(3000)).then(() => assert.fail("it has succeeded"), (error) => error)
      assert.strictEqual(error.name, "InvalidOption")
      assert.strictEqual(
        error.message,
        `handler is ${kind}, but must be a function that returns an Effect: Effect.tryPromise(() => ...).`
      )
    }
    const exit = await Serverless.make(Layer.empty).runExit(Promise.reject(new Error("no")) as never)
    assert.include(String(exit), "effect is \"a Promise\", but must be an Effect.")
    await new Promise((resolve) => setImmediate(resolve))
    process.off("unhandledRejection", onUnheard)
    assert.deepStrictEqual(unheard, [])
  })

  it("refuses what is no layer, wherever one is asked for", () => {
    const work = () => Effect.void
    const refused = (act: (layer: never) => unknown, given: unknown, says: string) => {
      try {
        act(given as never)
      } catch (error) {
        assert.instanceOf(error, Errors.InvalidOption)
        return assert.strictEqual(error.message, says)
      }
      assert.fail(`${says} was not said`)
    }
    const nothing = "layer is undefined, but must be a Layer, or what Serverless.make returns."
    refused((options) => Serverless.lambda(work, options), undefined, nothing)
    refused((options) => Serverless.lambda(work, options), {}, nothing)
    refused((options) => Serverless.lambda(work, options), layer, nothing)
    refused((options) => Serverless.lambdaStream(work as never, options), undefined, nothing)
    refused((options) => Serverless.web(work as never, options), undefined, nothing)
    refused((options) => Serverless.process(Effect.void, options), undefined, nothing)
    const object = nothing.replace("undefined", "\"an object\"")
    refused((options) => Serverless.lambda(work, options), { layer: { max: 2 } }, object)
    refused(Serverless.make, undefined, "layer is undefined, but must be a Layer.")
    refused(Serverless.make, Serverless.make(layer), "layer is \"an Environment\", but must be a Layer.")
  })

  it("refuses options that belong to the environment that it was given", () => {
    const environment = Serverless.make(layer)
    const strays = {
      margin: "1 second",
      release: "close",
      staleAfter: 5,
      warm: true,
      shutdown: { within: "1 second" }
    }
    for (const [option, value] of Object.entries(strays)) {
      const options = { layer: environment, [option]: value } as never
      const made: ReadonlyArray<() => unknown> = [
        () => Serverless.lambda(() => Effect.void, options),
        () => Serverless.lambdaStream(() => Effect.succeed(Stream.empty), options),
        () => Serverless.web(() => Effect.succeed(new Response()), options),
        () => Serverless.process(Effect.void, options)
      ]
      for (const make of made) assert.throws(make, /belongs to Serverless\.make/, option)
    }
    // @ts-expect-error: it would not count
    assert.throws(() => Serverless.lambda(() => Effect.void, { layer: environment, margin: "1 second" }))
  })

  it("is logged by the loggers of the layer when it fails, unless encodeError was given", async () => {
    const lines: Array<string> = []
    const layer = Logger.layer([Logger.make(({ message }) => lines.push(String(message)))])
    const denied = Object.assign(new Error("hunter2"), { name: "AccessDeniedException" })
    const building = Layer.merge(
      layer,
      Layer.effectDiscard(Effect.tryPromise(() => Promise.reject(denied))).pipe(Layer.provide(layer))
    )
    const work = (_: unknown) => Effect.fail(new (class extends Data.TaggedError("SecretsDown") {})())
    const call = (handler: Serverless.LambdaHandler<unknown, Serverless.LambdaContext, unknown>) =>
      handler({}, contextOf(3000)).then(() => assert.fail("it has succeeded"), (error: Error) => error.message)
    assert.strictEqual(await call(Serverless.lambda(work, { layer })), "SecretsDown")
    assert.deepStrictEqual(lines.splice(0), ["The invocation 8476a536 has failed: SecretsDown"])
    await call(Serverless.lambda(work, { layer, encodeError: () => new Error("mine") }))
    assert.deepStrictEqual(lines, [])
    assert.strictEqual(
      await call(Serverless.lambda(work, { layer: building })),
      "UnknownError: caused by AccessDeniedException"
    )
  })

  it("registers an extension that waits for nothing, once, and is ready then", async () => {
    const asked: Array<string> = []
    const server = Http.createServer((request, response) => {
      let body = ""
      request.on("data", (chunk) => body += chunk)
      request.on("end", () => {
        const { headers, method, url } = request
        asked.push(
          `${method} ${url} ${headers["lambda-extension-name"] ?? headers["lambda-extension-identifier"]} ${body}`
        )
        if (url?.endsWith("/register")) response.setHeader("Lambda-Extension-Identifier", "e1").end("{}")
      })
    })
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
    process.env["AWS_LAMBDA_RUNTIME_API"] = `127.0.0.1:${(server.address() as AddressInfo).port}`
    try {
      const options = { layer: Layer.empty, shutdown: { internalExtension: true } }
      const [first, second] = [
        Serverless.lambda((_: unknown) => Effect.void, options),
        Serverless.lambda((_: unknown) => Effect.void, options)
      ]
      await Promise.all([first.ready, second.ready])
      while (asked.length < 2) await new Promise(setImmediate)
      assert.deepStrictEqual(asked, [
        `POST /2020-01-01/extension/register effect-pg-pool {"events":[]}`,
        "GET /2020-01-01/extension/event/next e1 "
      ])
    } finally {
      delete process.env["AWS_LAMBDA_RUNTIME_API"]
      server.closeAllConnections()
      server.close()
    }
  })
})

describe("the answer to a failure", () => {
  const secret = "hunter2"
  const url = `postgres://app:${secret}@db.internal:5432/orders`

  const causeOf = (effect: Effect.Effect<unknown, unknown>): Cause.Cause<unknown> => {
    const exit = Effect.runSyncExit(effect)
    return Exit.isFailure(exit) ? exit.cause : assert.fail("it has succeeded")
  }

  const unique = new SqlError({
    reason: new UnknownError({
      message: "PgConnection: Query failed",
      cause: Object.assign(new Error(`duplicate key (email)=(${secret})`), {
        code: "23505",
        severity: "ERROR",
        constraint: "users_email_key",
        table: "users",
        detail: `Key (email)=(${secret}) already exists.`
      })
    })
  })

  it("has the SQLSTATE of the server, however deep it is", () => {
    const direct = LambdaAnswer.encode(Cause.fail(unique))
    assert.propertyVal(direct, "sqlState", "23505")
    assert.strictEqual(direct.name, "SqlError")
    assert.include(direct.message, "23505 unique_violation")
    const deep = LambdaAnswer.encode(Cause.die(new Error("the order could not be saved", { cause: unique })))
    assert.propertyVal(deep, "sqlState", "23505")
    assert.strictEqual(deep.message, "the order could not be saved")
    assert.notProperty(LambdaAnswer.encode(Cause.fail(new Error("no server"))), "sqlState")
  })

  it("comes, too, where the error throws when it is read", () => {
    const thrower = () => {
      throw new Error("never read")
    }
    for (const key of ["message", "stack", "name", "cause"]) {
      const hostile = Object.defineProperty(new RangeError("boom"), key, { get: thrower })
      assert.instanceOf(LambdaAnswer.encode(Cause.fail(hostile)), Error)
    }
    const stack = Object.defineProperty(new RangeError("boom"), "stack", { get: thrower })
    assert.strictEqual(LambdaAnswer.encode(Cause.fail(stack)).message, "boom")
    const { proxy, revoke } = Proxy.revocable({}, {})
    revoke()
    assert.deepInclude(LambdaAnswer.encode(Cause.fail(proxy)), { name: "Error", message: "Error" })
    assert.strictEqual(LambdaAnswer.encode(Cause.fail(new Error("around", { cause: proxy }))).message, "around")
  })

  it("is that of the typed error inside of a SqlError", () => {
    const answer = LambdaAnswer.encode(Cause.fail(Errors.toSqlError(new Errors.PoolClosed())))
    assert.strictEqual(answer.name, "PoolClosed")
    assert.strictEqual(answer.message, new Errors.PoolClosed().message)
  })

  it("says where it happened, and keeps a name like any error's", () => {
    const error = new RangeError("boom")
    const answer = LambdaAnswer.encode(Cause.die(error))
    assert.strictEqual(answer.stack, error.stack)
    assert.deepStrictEqual(Object.keys(answer), [])
  })

  const hiding: Record<string, Cause.Cause<unknown>> = {
    "a connection string in a defect": Cause.die(new Error(`connect to ${url} failed`)),
    "a connection string in words": Cause.die(new Error(`no: host=db.internal user=app password=${secret} dbname=x`)),
    "a connection string that is all there is": Cause.fail(url),
    "the cause of an error": Cause.die(new Error("failed", { cause: new Error(url) })),
    "a chain of causes": Cause.fail(new Error("failed", { cause: { cause: { cause: new Error(url) } } })),
    "the properties of an error": Cause.fail(Object.assign(new Error("failed"), { config: { password: secret } })),
    "an object that is no error": Cause.fail({ _tag: "Refused", password: secret, url }),
    "a redacted value": Cause.fail(Redacted.make(secret)),
    "the second of two failures": Cause.combine(Cause.fail(new Error("failed")), Cause.die(new Error(url))),
    "the row of a violation": Cause.fail(unique),
    "the row of a violation below a defect": Cause.die(new Error("failed", { cause: unique })),
    "a password that is no number": causeOf(Effect.provideService(
      Config.Number("PORT"),
      ConfigProvider.ConfigProvider,
      ConfigProvider.fromEnv({ env: { PORT: secret } })
    )),
    "a password in a variable of a source": Cause.fail(
      new Config.ConfigError(new ConfigProvider.SourceError({ message: `DB_POOL_MAX is "${secret}", but must not` }))
    ),
    "a value that is not what its schema says": causeOf(
      Schema.decodeUnknownEffect(Schema.Struct({ token: Schema.Number }))({ token: secret })
    ),
    "JSON that cannot be parsed": causeOf(Effect.sync(() => JSON.parse(secret))),
    "longer JSON that cannot be parsed": causeOf(Effect.sync(() => JSON.parse(`{"a": "${secret}", }`))),
    "a token in a header": Cause.die(new Error(`401 for Authorization: Bearer ${secret}`)),
    "a stack that repeats the message": (() => {
      const error = new Error(`first\n    at ${url}\nlast`)
      return Cause.die(error)
    })(),
    "the address of a server that cannot be reached": Cause.fail(
      new Error("PgConnection: Failed to connect (connect ECONNREFUSED db.internal:5432). Check host and port.")
    ),
    "a name that nobody knows": Cause.fail(new Error("getaddrinfo ENOTFOUND db.internal")),
    "the socket of a server": Cause.fail(new Error("connect ENOENT /run/db.internal/.s.PGSQL.5432")),
    "a certificate of somebody else's": Cause.fail(
      new Error(
        "Hostname/IP does not match certificate's altnames: Host: db.internal. is not in the cert's altnames: x"
      )
    ),
    "the hosts of a cluster": Cause.fail(
      new Errors.NoSuitableHost({
        targetSessionAttrs: "read-write",
        hosts: [{ host: "db.internal:5432", role: "standby", failure: null }]
      })
    ),
    "a name": Cause.die(Object.assign(new Error("failed"), { name: url }))
  }

  it("is never empty: where an error says nothing, it is what that and its causes are called", () => {
    const messageOf = (error: unknown) => LambdaAnswer.encode(Cause.fail(error)).message
    const tagged = (fields: object) => Object.assign(new (class extends Data.TaggedError("SecretsDown") {})(), fields)
    assert.strictEqual(messageOf(tagged({})), "SecretsDown")
    const denied = Object.assign(new Error(secret), { name: "AccessDeniedException" })
    assert.strictEqual(
      messageOf(tagged({ cause: new Error(secret, { cause: denied }) })),
      "SecretsDown: caused by AccessDeniedException"
    )
    assert.strictEqual(
      messageOf(tagged({ cause: Redacted.make(unique) })),
      "SecretsDown: caused by SqlError: caused by 23505"
    )
    assert.strictEqual(messageOf(new Error("")), "Error")
    assert.strictEqual(messageOf(new Error("", { cause: denied })), "Error: caused by AccessDeniedException")
    assert.strictEqual(messageOf(undefined), "Error")
    const endless = tagged({})
    assert.match(messageOf(Object.assign(endless, { cause: endless })), /^SecretsDown: caused by SecretsDown/)
  })

  it("says what is wrong with a variable as this library says it, and with a URL", () => {
    const messageOf = (env: Record<string, string>) =>
      LambdaAnswer.encode(causeOf(Effect.provideService(
        fromEnvironment,
        ConfigProvider.ConfigProvider,
        ConfigProvider.fromEnv({ env })
      ))).message
    assert.strictEqual(
      messageOf({ DB_POOL_MAX: "ten" }),
      "DB_POOL_MAX is \"ten\", but must be a whole number, 1 or more."
    )
    assert.strictEqual(
      messageOf({ DATABASE_URL: `mysql://app:${secret}@db.internal/orders` }),
      "DATABASE_URL is mysql://<redacted>, but must be postgres://user:password@host:port/database."
    )
  })

  it("says what a server has said to a password", () => {
    const refused = Object.assign(new Error("password authentication failed for user \"app\""), {
      code: "28P01",
      severity: "FATAL"
    })
    assert.strictEqual(
      LambdaAnswer.encode(Cause.fail(new SqlError({ reason: new UnknownError({ cause: refused }) }))).message,
      "28P01 invalid_password: password authentication failed for user \"app\""
    )
    assert.strictEqual(LambdaAnswer.encode(Cause.fail(`invalid_password: ${secret}`)).message, "invalid_password: ***")
  })

  it("is not cut where it is this library's own", () => {
    const fleet = {
      environments: 200_000,
      workers: 8,
      overlap: 2,
      share: 0.8,
      bound: "server",
      limit: 200,
      others: 20,
      safeEnvironments: 6
    } as const
    const error = new Errors.FleetTooLarge(fleet)
    assert.isAbove(error.message.length, 300)
    assert.strictEqual(LambdaAnswer.encode(Cause.fail(error)).message, error.message)
    assert.match(error.message, /^No pool size is safe: limit the concurrency to 6 environments, put a transaction /)
  })

  it("says what has happened to a connect, and what to look at", () => {
    const messageOf = (where: string) => LambdaAnswer.encode(hiding[where]!).message
    assert.strictEqual(
      messageOf("the address of a server that cannot be reached"),
      "PgConnection: Failed to connect (connect ECONNREFUSED). Check host and port."
    )
    assert.match(messageOf("the hosts of a cluster"), /^No host takes writes .*"read-write"\)\. Look at the servers/)
  })

  for (const [where, cause] of Object.entries(hiding)) {
    it(`does not give away ${where}`, () => {
      const answer = LambdaAnswer.encode(cause)
      const printed = [
        inspect(answer, { showHidden: true, depth: 10 }),
        JSON.stringify(answer),
        answer.stack,
        String(answer),
        answer.name,
        answer.message
      ].join("\n")
      assert.notInclude(printed, secret)
      assert.notInclude(printed, "db.internal")
      assert.isNotEmpty(answer.name)
    })
  }
})
