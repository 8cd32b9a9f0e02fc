/**
 * A tiny PostgreSQL server without tables: a script says what it answers. For what a real one cannot be made to say, or
 * not now: an SQLSTATE, a refusal at the start, half a message, nothing at all.
 *
 * ```ts run
 * import { Effect } from "effect"
 * import * as Pg from "effect-pg-pool"
 * import { ScriptedServer } from "effect-pg-pool/testing"
 * import { SqlClient } from "effect/sql"
 * import assert from "node:assert/strict"
 *
 * const test = Effect.gen(function*() {
 *   let failures = 2
 *   const server = yield* ScriptedServer.make({
 *     onQuery: (sql) =>
 *       sql.startsWith("SELECT") && failures-- > 0
 *         ? ScriptedServer.error("40001", "could not serialize access due to concurrent update")
 *         : ScriptedServer.rows([{ one: 1 }])
 *   })
 *   yield* Effect.gen(function*() {
 *     const sql = yield* SqlClient.SqlClient
 *     assert.deepEqual(yield* sql`SELECT 1 AS one`, [{ one: 1 }])
 *   }).pipe(Effect.provide(Pg.layer({ url: server.url })))
 *   assert.equal((yield* server.statements).length, 3)
 * })
 * await Effect.runPromise(Effect.scoped(test))
 * ```
 *
 * It speaks the simple and the extended protocol, keeps prepared statements, follows BEGIN, COMMIT and ROLLBACK, and
 * obeys CancelRequests. It does not enforce what a real server does (a failed transaction takes statements), has no COPY
 * and no TLS; every user may come in, unless the script asks for a password.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Listener from "./listener.ts"
import type { Answer, Conversation, Session } from "./scriptedSession.ts"
import { converse } from "./scriptedSession.ts"

export * from "./reply.ts"
export type { Answer, Session } from "./scriptedSession.ts"

/**
 * The server could not be made.
 *
 * @category errors
 * @since 0.1.0
 */
export class ScriptedServerFailed
  extends Schema.TaggedError<ScriptedServerFailed>("effect-pg-pool/testing/ScriptedServerFailed")(
    "ScriptedServerFailed",
    { detail: Schema.String }
  )
{
  override get message(): string {
    return `The scripted server could not listen on a port of ${Listener.host}: ${this.detail}`
  }
  get isRetryable(): boolean {
    return false
  }
}

/**
 * What the server says to what. Whatever a script throws is told to the client as XX000.
 *
 * @category options
 * @since 0.1.0
 */
export interface Script<R = never> {
  /**
   * The answer to a statement; `parameters` are the bytes that came with it, in the client's format. An answer that is an
   * error ends the transaction as it would on a real server. Default, and for `undefined`: its command tag, without rows.
   */
  readonly onQuery?:
    | ((sql: string, session: Session, parameters: ReadonlyArray<Uint8Array | null>) => Answer<R>)
    | undefined
  /**
   * What is said to a client that has just introduced itself; an error turns it away. Default: nothing. Then comes the
   * question for the password, if the script has an answer to it, and the welcome.
   */
  readonly onStartup?: ((session: Session) => Answer<R>) | undefined
  /** Has clients asked for their password, in plain text. An error (28P01, say) turns the client away. */
  readonly onPassword?: ((password: string, session: Session) => Answer<R>) | undefined
  /** The answer to a client that would like to speak TLS. Default: `raw(Buffer.from("N"))`, which is no. */
  readonly onSslRequest?: (() => Answer<R>) | undefined
  /** What the welcome tells of the server, on top of the usual ones (`server_version` is 18.0, ...). */
  readonly parameters?: Readonly<Record<string, string>> | undefined
}

/**
 * What clients have done so far.
 *
 * @category models
 * @since 0.1.0
 */
export interface Counts {
  /** Connections that were accepted, those of CancelRequests included. */
  readonly accepted: number
  /** Connections that are open now. */
  readonly open: number
  readonly cancelRequests: number
}

/**
 * A server that runs.
 *
 * @category models
 * @since 0.1.0
 */
export interface ScriptedServer {
  /** `postgres://scripted:scripted@127.0.0.1:port/scripted`. */
  readonly url: Redacted.Redacted
  readonly host: string
  readonly port: number
  readonly counts: Effect.Effect<Counts>
  /** Every statement that the script was asked about, in order. */
  readonly statements: Effect.Effect<ReadonlyArray<string>>
  /** The connections that are open now, oldest first: to say something unasked, or to end them. */
  readonly sessions: Effect.Effect<ReadonlyArray<Session>>
}

const usualParameters = {
  server_version: "18.0",
  server_encoding: "UTF8",
  client_encoding: "UTF8",
  DateStyle: "ISO, MDY",
  TimeZone: "UTC",
  integer_datetimes: "on",
  standard_conforming_strings: "on",
  is_superuser: "off",
  in_hot_standby: "off",
  default_transaction_read_only: "off"
}

/**
 * A server that follows a script for as long as the scope is open, on a free port of 127.0.0.1. The services that the
 * script's Effects need are those of this call. When the scope closes, all connections are gone.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = <R = never>(
  script: Script<R> = {}
): Effect.Effect<ScriptedServer, ScriptedServerFailed, Scope.Scope | R> =>
  Effect.gen(function*() {
    const context = yield* Effect.context<R>()
    const fork = Effect.runForkWith(context)
    const conversations = new Set<Conversation>()
    const statements: Array<string> = []
    let accepted = 0
    let cancelRequests = 0
    const director = {
      onQuery: script.onQuery ?? (() => undefined),
      onStartup: script.onStartup ?? (() => undefined),
      onPassword: script.onPassword,
      onSslRequest: script.onSslRequest ?? (() => undefined),
      parameters: { ...usualParameters, ...script.parameters },
      runFork: fork,
      onStatement: (sql: string) => void statements.push(sql),
      onCancelRequest: (processId: number, secret: number) => {
        cancelRequests++
        for (const conversation of conversations) {
          if (conversation.isCancelledBy(processId, secret)) conversation.cancel()
        }
      }
    }
    const listener = yield* Listener.make((socket) => {
      const conversation = converse(++accepted, socket, director)
      conversations.add(conversation)
      socket.once("close", () => conversations.delete(conversation))
    }).pipe(Effect.mapError(({ message }) => new ScriptedServerFailed({ detail: message })))
    return {
      url: Redacted.make(`postgres://scripted:scripted@${Listener.host}:${listener.port}/scripted`),
      host: Listener.host,
      port: listener.port,
      counts: Effect.sync(() => ({ accepted, open: conversations.size, cancelRequests })),
      statements: Effect.sync(() => [...statements]),
      sessions: Effect.sync(() => [...conversations].map(({ session }) => session))
    }
  })
