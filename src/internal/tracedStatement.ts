/** A client whose statements' spans are found from below, where there is a tracer that keeps them. */
import * as Effect from "effect/Effect"
import * as Effectable from "effect/Effectable"
import type { Fiber } from "effect/Fiber"
import type { SqlClient } from "effect/sql/SqlClient"
import type { SqlError } from "effect/sql/SqlError"
import * as Statement from "effect/sql/Statement"
import * as Stream from "effect/Stream"
import * as Spans from "./spans.ts"
import * as StatementSpan from "./statementSpan.ts"

const witnessOf = (fiber: Fiber<unknown, unknown>, pool: string): StatementSpan.Witness =>
  StatementSpan.witness(fiber, pool, (span) => Spans.watchTime(fiber, span))

const witnessed = <A, E>(
  effect: Effect.Effect<A, E>,
  fiber: Fiber<unknown, unknown>,
  pool: string
): Effect.Effect<A, E> =>
  StatementSpan.isTraced(fiber)
    ? Effect.provideService(effect, Statement.CurrentTransformer, witnessOf(fiber, pool))
    : effect

type Rows<A> = Effect.Effect<ReadonlyArray<A>, SqlError>

const Base = function() {} as unknown as new<A>() => Rows<A> & Pick<Statement.Statement<A>, keyof Statement.Fragment>
Base.prototype = Object.assign(
  Effectable.Prototype<Traced<unknown>>({
    label: "Statement",
    evaluate(fiber: Fiber<unknown, unknown>) {
      return witnessed(this.statement, fiber, this.pool)
    }
  }),
  Statement.fragment([])
)

class Traced<A> extends Base<A> implements Statement.Statement<A> {
  readonly statement: Statement.Statement<A>
  readonly pool: string
  override readonly segments: Statement.Statement<A>["segments"]

  constructor(statement: Statement.Statement<A>, pool: string) {
    super()
    this.statement = statement
    this.pool = pool
    this.segments = statement.segments
  }

  private witnessed<B>(effect: Effect.Effect<B, SqlError>): Effect.Effect<B, SqlError> {
    return Effect.withFiber((fiber) => witnessed(effect, fiber, this.pool))
  }

  get raw() {
    return this.witnessed(this.statement.raw)
  }

  get withoutTransform() {
    return this.witnessed(this.statement.withoutTransform)
  }

  get values() {
    return this.witnessed(this.statement.values)
  }

  get valuesUnprepared() {
    return this.witnessed(this.statement.valuesUnprepared)
  }

  get unprepared() {
    return this.witnessed(this.statement.unprepared)
  }

  get stream() {
    const { pool, statement: { stream } } = this
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

export const client = <C extends SqlClient>(plain: C, pool: string): C => {
  const traced = Object.assign(
    function sql(...args: [TemplateStringsArray, ...Array<unknown>] | [string]) {
      const made = (plain as unknown as (...args: ReadonlyArray<unknown>) => unknown)(...args)
      return typeof args[0] === "string" ? made : new Traced(made as Statement.Statement<unknown>, pool)
    },
    plain,
    {
      unsafe: <A extends object>(sql: string, params?: ReadonlyArray<unknown>) =>
        new Traced(plain.unsafe<A>(sql, params), pool),
      withoutTransforms(this: C): C {
        const without = plain.withoutTransforms.call(this)
        return without === this || without === plain ? this : client(without, pool)
      }
    }
  ) as unknown as C
  return Object.assign(traced, { safe: traced })
}
