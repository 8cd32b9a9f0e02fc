/**
 * The statements of a client. Where somebody would see their spans, those are found from below; where nobody would, and
 * nothing else is to be done to a statement on its way, it is sent straight off.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Effectable from "effect/Effectable"
import type { Fiber } from "effect/Fiber"
import type { SqlClient } from "effect/sql/SqlClient"
import type { SqlError } from "effect/sql/SqlError"
import * as Statement from "effect/sql/Statement"
import * as Stream from "effect/Stream"
import type * as Flight from "./flight.ts"
import * as Spans from "./spans.ts"
import * as Forms from "./statementForms.ts"
import * as StatementSpan from "./statementSpan.ts"

/** What the statements of a client have in common. */
interface Home {
  readonly plain: SqlClient
  readonly pool: string
  readonly send: Flight.Send
  readonly forms: Forms.Forms
  /** The texts of templates into which nothing but values was put: they are the same whatever the values are. */
  readonly texts: WeakMap<TemplateStringsArray, string>
}

const witnessOf = (fiber: Fiber<unknown, unknown>, pool: string): StatementSpan.Witness =>
  StatementSpan.witness(fiber, pool, (span) => Spans.watchTime(fiber, span))

type Rows<A> = Effect.Effect<ReadonlyArray<A>, SqlError>

/** Fragments and helpers are objects with a tag. */
const isValue = (argument: unknown): boolean =>
  typeof argument !== "object" && typeof argument !== "function" || argument === null ||
  !("_tag" in argument || Statement.isFragment(argument))

const Base = function() {} as unknown as new<A>() => Rows<A> & Pick<Statement.Statement<A>, keyof Statement.Fragment>
Base.prototype = Object.assign(
  Effectable.Prototype<Traced<unknown>>({
    label: "Statement",
    evaluate(fiber: Fiber<unknown, unknown>) {
      return this.inForm(this.home.forms.rows, fiber) ?? this.witnessed(this.statement, fiber)
    }
  }),
  Statement.fragment([])
)

class Traced<A> extends Base<A> implements Statement.Statement<A> {
  readonly home: Home
  private readonly text: TemplateStringsArray | string
  private readonly params: ReadonlyArray<unknown>
  private made: Statement.Statement<A> | undefined = undefined

  constructor(home: Home, text: TemplateStringsArray | string, params: ReadonlyArray<unknown>) {
    super()
    this.home = home
    this.text = text
    this.params = params
  }

  /** Effect's own. */
  get statement(): Statement.Statement<A> {
    const { home: { plain }, params, text } = this
    return this.made ??= typeof text === "string"
      ? plain.unsafe(text, params) as Statement.Statement<A>
      : plain(text, ...params) as Statement.Statement<A>
  }

  override get segments() {
    return this.statement.segments
  }

  /** Straight off, if nobody has anything to do with the statement but the server. */
  inForm(form: Forms.Form, fiber: Fiber<unknown, unknown>): Effect.Effect<any, SqlError> | undefined {
    if (fiber.cache.tracer !== undefined || fiber.getRef(Statement.CurrentTransformer) !== undefined) return undefined
    const { home, params, text } = this
    const transaction = Context.getOrUndefined(fiber.context, home.plain.transactionService)
    if (typeof text === "string") {
      return transaction === undefined ? home.send(fiber, text, params, form) : form.askOn(transaction[0], text, params)
    }
    const isOfValues = params.every(isValue)
    let compiled = isOfValues ? home.texts.get(text) : undefined
    let values = params
    if (compiled === undefined) {
      const whole = this.statement.compile(form === home.forms.untransformed || form === home.forms.raw)
      compiled = whole[0]
      values = whole[1]
      if (isOfValues) home.texts.set(text, compiled)
    }
    return transaction === undefined
      ? home.send(fiber, compiled, values, form)
      : form.askOn(transaction[0], compiled, values)
  }

  witnessed<B>(effect: Effect.Effect<B, SqlError>, fiber: Fiber<unknown, unknown>): Effect.Effect<B, SqlError> {
    return StatementSpan.isTraced(fiber)
      ? Effect.provideService(effect, Statement.CurrentTransformer, witnessOf(fiber, this.home.pool))
      : effect
  }

  private as<B>(
    form: keyof Forms.Forms,
    whole: (statement: Statement.Statement<A>) => Effect.Effect<B, SqlError>
  ): Effect.Effect<B, SqlError> {
    return Effect.withFiber((fiber: Fiber<unknown, unknown>) =>
      this.inForm(this.home.forms[form], fiber) ?? this.witnessed(whole(this.statement), fiber)
    )
  }

  get raw() {
    return this.as("raw", ({ raw }) => raw)
  }

  get withoutTransform() {
    return this.as("untransformed", ({ withoutTransform }) => withoutTransform)
  }

  get values() {
    return this.as("values", ({ values }) => values)
  }

  get valuesUnprepared() {
    return this.as("valuesUnprepared", ({ valuesUnprepared }) => valuesUnprepared)
  }

  get unprepared() {
    return this.as("unprepared", ({ unprepared }) => unprepared)
  }

  get stream() {
    const { home: { pool }, statement: { stream } } = this
    return Stream.unwrap(Effect.withFiber((fiber) =>
      Effect.succeed(
        StatementSpan.isTraced(fiber)
          ? Stream.provideService(stream, Statement.CurrentTransformer, witnessOf(fiber, pool))
          : stream
      )
    ))
  }

  compile(withoutTransform?: boolean) {
    return this.statement.compile(withoutTransform)
  }

  override toJSON(): unknown {
    return (this.statement as unknown as { readonly toJSON: () => unknown }).toJSON()
  }
}

const isTemplate = (text: unknown): text is TemplateStringsArray => Array.isArray(text) && "raw" in text

const none: ReadonlyArray<unknown> = []

export const client = <C extends SqlClient>(plain: C, options: {
  readonly pool: string
  readonly sendUnsafe: Flight.Send
  readonly transformRows: Forms.TransformRows
}): C => {
  const home: Home = {
    plain,
    pool: options.pool,
    send: options.sendUnsafe,
    forms: Forms.make(options.transformRows),
    texts: new WeakMap()
  }
  const traced = Object.assign(
    function sql(text: unknown, ...args: ReadonlyArray<unknown>) {
      return isTemplate(text) ? new Traced(home, text, args) : plain(text as string)
    },
    plain,
    {
      unsafe: (sql: string, params: ReadonlyArray<unknown> = none) => new Traced(home, sql, params),
      withoutTransforms(this: C): C {
        const without = plain.withoutTransforms.call(this)
        return without === this || without === plain ? this : client(without, { ...options, transformRows: undefined })
      }
    }
  ) as unknown as C
  return Object.assign(traced, { safe: traced })
}
