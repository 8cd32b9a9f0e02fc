/**
 * Transactions as `effect/sql` has them (`SqlClient.makeWithTransaction`), and with what it promises: savepoints for those
 * inside of others, one at a time; COMMIT, ROLLBACK and release that cannot be interrupted; callbacks after the commit. It is
 * written anew since most transactions need neither a span nor what nesting needs, and should not pay for either.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as Reactivity from "effect/reactivity/Reactivity"
import * as Semaphore from "effect/Semaphore"
import type { SqlError } from "effect/sql/SqlError"
import * as Tracer from "effect/Tracer"
import type { Restore } from "./held.ts"
import * as UnitOfWork from "./unitOfWork.ts"

/** A connection in a transaction of its own, or one that begins with the first statement. */
export interface Lease<C> {
  readonly connection: C
  readonly release: (exit: Exit.Exit<unknown, unknown>) => Effect.Effect<void> | undefined
}

/** How the transactions of a client are done. */
export interface Means<C> {
  readonly service: Context.Key<any, any>
  readonly spanAttributes: ReadonlyArray<readonly [string, unknown]>
  /** Runs where nothing can be interrupted but what it restores. */
  readonly acquire: (restore: Restore) => Effect.Effect<Lease<C>, SqlError>
  readonly commit: (connection: C) => Effect.Effect<void, SqlError>
  readonly rollback: (connection: C) => Effect.Effect<void>
  readonly savepoint: (connection: C, id: number) => Effect.Effect<void, SqlError>
  readonly releaseSavepoint: (connection: C, id: number) => Effect.Effect<void>
  readonly rollbackSavepoint: (connection: C, id: number) => Effect.Effect<void>
}

/** What is known of one transaction or savepoint, beside what `effect/sql` hands on. */
interface State {
  readonly parent: State | undefined
  /** What is to be run when the outermost one has been committed. */
  callbacks: Array<Effect.Effect<void>> | undefined
  isOpen: boolean
  /** Savepoints of one transaction take turns. */
  turn: Semaphore.Semaphore | undefined
}

type Level<C> = readonly [connection: C, depth: number, state: State]

/** The key under which `SqlResolver` looks for the transaction that a request belongs to. */
const CurrentTransactionService = Context.Reference<Context.Key<any, object> | undefined>(
  "effect/sql/CurrentTransactionService",
  { defaultValue: () => undefined }
)

const runCallback = (effect: Effect.Effect<void>): Effect.Effect<void> =>
  Effect.ignoreCause(effect, { log: "Unhandled", message: "Unhandled error in SqlClient.afterCommit callback" })

/** After whatever it is that ends the transaction, even if that has failed. */
const callBack = (callbacks: ReadonlyArray<Effect.Effect<void>>) =>
  Effect.forEach(callbacks, runCallback, { discard: true })

const start = (parent: State | undefined): State => ({ parent, callbacks: undefined, isOpen: true, turn: undefined })

export const make = <C>(means: Means<C>) => {
  const { service } = means
  const levelOf = (context: Context.Context<never>): Level<C> | undefined => Context.getOrUndefined(context, service)

  const afterCommit = <R>(effect: Effect.Effect<void, never, R>): Effect.Effect<void, never, R> =>
    Effect.withFiber((fiber: Fiber.Fiber<unknown, unknown>) => {
      const state = levelOf(fiber.context)?.[2]
      if (state === undefined) return runCallback(effect as Effect.Effect<void>)
      for (let each: State | undefined = state; each !== undefined; each = each.parent) {
        if (!each.isOpen) return Effect.die(new Error("SqlClient.afterCommit: the transaction has already ended"))
      }
      // It runs later, with what is in scope now but for the transaction.
      const later = Effect.provideContext(effect, Context.omit(service)(fiber.context) as Context.Context<R>)
      ;(state.callbacks ??= []).push(later)
      return Effect.void
    })

  const deferring = (reactivity: Reactivity.Reactivity): Reactivity.Reactivity => {
    const invalidate: Reactivity.Reactivity["invalidate"] = (keys) =>
      afterCommit(Effect.sync(() => reactivity.invalidateUnsafe(keys)))
    return { ...reactivity, invalidate, mutation: (keys, effect) => Effect.tap(effect, invalidate(keys)) }
  }

  const inside = <A, E, R>(
    self: Effect.Effect<A, E, R>,
    restore: Restore,
    level: Level<C>,
    context: Context.Context<never>,
    span: Tracer.Span | undefined
  ): Effect.Effect<A, E, R> => {
    const services = new Map<string, unknown>([
      [service.key, level],
      [CurrentTransactionService.key, service],
      [UnitOfWork.InTransaction.key, true]
    ])
    const reactivity = Context.getOrUndefined(context, Reactivity.Reactivity)
    if (reactivity !== undefined) services.set(Reactivity.Reactivity.key, deferring(reactivity))
    if (span !== undefined) services.set(Tracer.ParentSpan.key, span)
    return Effect.provideContext(restore(self), Context.makeUnsafe(services)) as Effect.Effect<A, E, R>
  }

  const note = (span: Tracer.Span | undefined, what: string, fiber: Fiber.Fiber<unknown, unknown>): void =>
    span?.event(`effect.sql.transaction.${what}`, fiber.getRef(Clock.Clock).currentTimeNanosUnsafe())

  const outermost = <A, E, R>(
    self: Effect.Effect<A, E, R>,
    restore: Restore,
    fiber: Fiber.Fiber<unknown, unknown>,
    span: Tracer.Span | undefined
  ): Effect.Effect<A, E | SqlError, R> => {
    const { context } = fiber
    return Effect.flatMap(means.acquire(restore), ({ connection, release }) => {
      const state = start(undefined)
      let isCommitted = false
      let failure: Exit.Exit<unknown, unknown> | undefined
      const ended = (exit: Exit.Exit<unknown, unknown>): Effect.Effect<unknown, unknown> | undefined => {
        state.isOpen = false
        // A body that was interrupted says nothing of the server, however well it was rolled back.
        const released = release(failure ?? exit)
        if (!isCommitted || state.callbacks === undefined) return released
        const calledBack = callBack(state.callbacks)
        // Whether or not the release has succeeded.
        return released === undefined ? calledBack : Effect.onExitPrimitive(released, () => calledBack, true)
      }
      return Effect.onExitPrimitive(inside(self, restore, [connection, 0, state], context, span), (exit) => {
        const isSuccess = exit._tag === "Success"
        if (!isSuccess) failure = exit
        note(span, isSuccess ? "commit" : "rollback", fiber)
        return Effect.onExitPrimitive(
          Effect.map(isSuccess ? means.commit(connection) : means.rollback(connection), () => {
            isCommitted = isSuccess
          }),
          ended as (exit: Exit.Exit<unknown, unknown>) => Effect.Effect<void> | undefined,
          true
        )
      }, true)
    })
  }

  const nested = <A, E, R>(
    self: Effect.Effect<A, E, R>,
    restore: Restore,
    [connection, depth, parent]: Level<C>,
    fiber: Fiber.Fiber<unknown, unknown>,
    span: Tracer.Span | undefined
  ): Effect.Effect<A, E | SqlError, R> => {
    const { context } = fiber
    const id = depth + 1
    const state = start(parent)
    let isKept = false
    const savepoint = Effect.flatMap(
      means.savepoint(connection, id),
      () =>
        Effect.onExitPrimitive(inside(self, restore, [connection, id, state], context, span), (exit) => {
          const isSuccess = exit._tag === "Success"
          note(span, isSuccess ? "savepoint" : "rollback", fiber)
          const undone = isSuccess ? Effect.void : means.rollbackSavepoint(connection, id)
          return Effect.map(Effect.andThen(undone, means.releaseSavepoint(connection, id)), () => {
            isKept = isSuccess
          })
        }, true)
    )
    const settled = Effect.onExitPrimitive(savepoint, () => {
      state.isOpen = false
      if (isKept && state.callbacks !== undefined) (parent.callbacks ??= []).push(...state.callbacks)
      return undefined
    }, true)
    parent.turn ??= Semaphore.makeUnsafe(1)
    return parent.turn.withPermit(settled)
  }

  const withTransaction = <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E | SqlError, R> =>
    Effect.uninterruptibleMask((restore) =>
      Effect.withFiber((fiber: Fiber.Fiber<unknown, unknown>) => {
        const level = levelOf(fiber.context)
        const begun = (span: Tracer.Span | undefined): Effect.Effect<A, E | SqlError, R> =>
          level === undefined
            ? outermost(self, restore, fiber, span)
            : nested(self, restore, level, fiber, span)
        // Without a tracer nobody would see it.
        if (fiber.cache.tracer === undefined) return begun(undefined)
        return Effect.useSpan("sql.transaction", { kind: "internal" }, (span) => {
          for (const [key, value] of means.spanAttributes) span.attribute(key, value)
          return begun(span)
        })
      })
    )

  return { withTransaction, afterCommit }
}
