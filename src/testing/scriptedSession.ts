import type * as PgProtocol from "@effect/sql-pg/PgProtocol"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import { randomInt } from "node:crypto"
import type * as Net from "node:net"
import * as Encoder from "./backendEncoder.ts"
import type { FrontendMessage } from "./frontendMessages.ts"
import * as FrontendMessages from "./frontendMessages.ts"
import * as Reply from "./reply.ts"

/**
 * One session, from the side of the server.
 *
 * @category models
 * @since 0.1.0
 */
export interface Session {
  /** Counts from 1, in the order in which connections were accepted. */
  readonly id: number
  readonly processId: number
  /** What the client has said about itself: `user`, `database`, `application_name`, ... */
  readonly startup: Readonly<Record<string, string>>
  /** As it will be told with the next answer: idle (`I`), in a transaction (`T`), in a failed one (`E`). */
  readonly transactionStatus: () => PgProtocol.TransactionStatus
  /** Says something unasked: a FATAL, a notice, a notification, a changed parameter, the end of the connection. */
  readonly send: (...replies: ReadonlyArray<Reply.Reply>) => void
}

/**
 * What a script answers: one reply, several in a row, or an Effect of either, which may wait. A CancelRequest of the client
 * interrupts the Effect, and 57014 is the answer. `undefined`: what a server with nothing in it would say.
 *
 * @category models
 * @since 0.1.0
 */
export type Answer<R = never> = Said | Effect.Effect<Said, never, R>

type Said = Reply.Reply | ReadonlyArray<Reply.Reply> | undefined

/** The script, and how its answers are run. */
export interface Director<R> {
  readonly onQuery: (
    sql: string,
    session: Session,
    parameters: ReadonlyArray<Uint8Array | null>
  ) => Answer<R>
  readonly onStartup: (session: Session) => Answer<R>
  readonly onPassword: ((password: string, session: Session) => Answer<R>) | undefined
  readonly onSslRequest: () => Answer<R>
  readonly parameters: Readonly<Record<string, string>>
  readonly runFork: <A>(effect: Effect.Effect<A, never, R>) => Fiber.Fiber<A>
  readonly onStatement: (sql: string) => void
  readonly onCancelRequest: (processId: number, secret: number) => void
}

/** A session and what its server has to do with it. */
export interface Conversation {
  readonly session: Session
  readonly isCancelledBy: (processId: number, secret: number) => boolean
  /** Interrupts the script's answer to the statement that runs, if it is an Effect. */
  readonly cancel: () => void
}

interface Portal {
  readonly sql: string
  readonly parameters: ReadonlyArray<Uint8Array | null>
  readonly formats: Encoder.Formats
  replies?: ReadonlyArray<Reply.Reply>
}

const asList = (said: Said): ReadonlyArray<Reply.Reply> | undefined =>
  said === undefined || Array.isArray(said) ? said : [said as Reply.Reply]

/** The tag of a command on a server without tables. */
const defaultTag = (sql: string, status: PgProtocol.TransactionStatus): string => {
  const word = /^\s*(\w+)/.exec(sql)?.[1]?.toUpperCase() ?? ""
  if (word === "INSERT") return "INSERT 0 0"
  if (["SELECT", "UPDATE", "DELETE", "WITH", "VALUES"].includes(word)) {
    return `${word === "WITH" || word === "VALUES" ? "SELECT" : word} 0`
  }
  if (word === "START") return "START TRANSACTION"
  if (word === "END" || word === "COMMIT") return status === "E" ? "ROLLBACK" : "COMMIT"
  return word === "ABORT" ? "ROLLBACK" : word
}

const statusAfter = (sql: string, tag: string, status: PgProtocol.TransactionStatus): PgProtocol.TransactionStatus => {
  if (tag === "BEGIN" || tag === "START TRANSACTION") return "T"
  if (/^\s*rollback\s+(work\s+|transaction\s+)?to\b/i.test(sql)) return "T"
  return tag === "COMMIT" || tag === "ROLLBACK" ? "I" : status
}

export const converse = <R>(id: number, socket: Net.Socket, director: Director<R>): Conversation => {
  const reader = FrontendMessages.makeReader()
  const queue: Array<FrontendMessage> = []
  const secret = randomInt(2 ** 31)
  const processId = 1000 + id
  const statements = new Map<string, { readonly sql: string; readonly types: ReadonlyArray<number> }>()
  const portals = new Map<string, Portal>()
  const startup: Record<string, string> = {}
  let status: PgProtocol.TransactionStatus = "I"
  let phase: "starting" | "password" | "ready" | "over" = "starting"
  let isBusy = false
  let isSilent = false
  /** After an error, everything is skipped until the client's Sync. */
  let isSkipping = false
  let running: Fiber.Fiber<Said> | undefined

  const write = (bytes: Uint8Array): void => {
    if (socket.writable) socket.write(bytes)
  }

  const stop = (how: "silence" | "close" | "reset"): void => {
    phase = "over"
    isSilent = how === "silence"
    if (how === "close") socket.end()
    if (how === "reset") socket.resetAndDestroy()
  }

  const fail = (fields: PgProtocol.ErrorFields): void => {
    const severity = fields.severity ?? (phase === "ready" ? "ERROR" : "FATAL")
    write(Encoder.error({ ...fields, severity }))
    isSkipping = true
    if (status === "T") status = "E"
    if (severity === "FATAL" || severity === "PANIC") stop("close")
  }

  /** Says one thing; `sql` and `formats` matter where it is an answer to a statement. */
  const say = (reply: Reply.Reply, sql: string, formats: Encoder.Formats, isDescribed: boolean): void => {
    const complete = (tag: string): void => {
      status = statusAfter(sql, tag, status)
      write(tag === "" ? Encoder.emptyQuery : Encoder.commandComplete(tag))
    }
    switch (reply._tag) {
      case "Rows": {
        const columns = Encoder.columnsOf(reply.rows, reply.types)
        const rows = reply.rows.map((row) => Encoder.dataRow(row, columns, formats))
        write(Buffer.concat(isDescribed ? rows : [Encoder.rowDescription(columns, formats), ...rows]))
        return reply.command === undefined ? undefined : complete(reply.command)
      }
      case "Command":
        return complete(reply.command)
      case "Error":
        return fail(reply.fields)
      case "Notice":
        return write(Encoder.notice(reply.fields))
      case "ParameterStatus":
        return write(Encoder.parameterStatus(reply.name, reply.value))
      case "Notification":
        return write(Encoder.notification(processId, reply.channel, reply.payload))
      case "Authentication":
        write(Encoder.authentication(reply.code, reply.data))
        return stop("silence")
      case "Raw":
        return write(reply.bytes)
      case "Silence":
        return stop("silence")
      case "Close":
        return stop("close")
      case "Reset":
        return stop("reset")
    }
  }

  const sayAll = (
    replies: ReadonlyArray<Reply.Reply>,
    sql = "",
    formats: Encoder.Formats = [],
    isDescribed = false
  ): void => {
    for (const reply of replies) {
      if (phase === "over" || isSkipping) return
      try {
        say(reply, sql, formats, isDescribed)
      } catch (error) {
        fail({ code: "XX000", message: `the script's answer cannot be sent: ${String(error)}` })
      }
    }
  }

  const session: Session = {
    id,
    processId,
    startup,
    transactionStatus: () => status,
    send: (...replies) => {
      const wasSkipping = isSkipping
      isSkipping = false
      sayAll(replies)
      isSkipping = wasSkipping
    }
  }

  const scriptFailed = (detail: string): ReadonlyArray<Reply.Reply> => [
    Reply.error("XX000", `the script failed: ${detail}`)
  ]

  /** Asks the script, and goes on when it has answered. */
  const ask = (
    question: () => Answer<R>,
    otherwise: () => ReadonlyArray<Reply.Reply>,
    goOn: (replies: ReadonlyArray<Reply.Reply>) => void
  ): void => {
    let answer: Answer<R>
    try {
      answer = question()
    } catch (error) {
      return goOn(scriptFailed(String(error)))
    }
    if (!Effect.isEffect(answer)) return goOn(asList(answer) ?? otherwise())
    isBusy = true
    running = director.runFork(answer)
    running.addObserver((exit) => {
      running = undefined
      isBusy = false
      if (phase === "over" || socket.destroyed) return
      if (Exit.isSuccess(exit)) goOn(asList(exit.value) ?? otherwise())
      else if (Cause.hasInterruptsOnly(exit.cause)) {
        goOn([Reply.error("57014", "canceling statement due to user request")])
      } else goOn(scriptFailed(Cause.pretty(exit.cause)))
      proceed()
    })
  }

  const askQuery = (
    sql: string,
    parameters: Portal["parameters"],
    goOn: (replies: ReadonlyArray<Reply.Reply>) => void
  ) => {
    director.onStatement(sql)
    ask(() => director.onQuery(sql, session, parameters), () => [Reply.command(defaultTag(sql, status))], goOn)
  }

  const welcome = (): void => {
    if (phase === "over") return
    phase = "ready"
    write(Buffer.concat([
      Encoder.authentication(0),
      ...Object.entries(director.parameters).map(([name, value]) => Encoder.parameterStatus(name, value)),
      Encoder.backendKeyData(processId, secret),
      Encoder.ready("I")
    ]))
  }

  const start = ({ body, type }: FrontendMessage): void => {
    const fields = FrontendMessages.fieldsOf(body)
    if (type === "SSLRequest" || type === "GSSENCRequest") {
      const refuse = [Reply.raw(Buffer.from("N"))]
      return type === "SSLRequest" ? ask(director.onSslRequest, () => refuse, sayAll) : sayAll(refuse)
    }
    fields.int32()
    if (type === "CancelRequest") {
      director.onCancelRequest(fields.int32(), fields.int32())
      return stop("close")
    }
    while (!fields.isAtEnd()) startup[fields.text()] = fields.text()
    ask(() => director.onStartup(session), () => [], (replies) => {
      sayAll(replies)
      if (director.onPassword === undefined) return welcome()
      // A session that is over waits for nothing any more.
      if (phase !== "starting") return
      phase = "password"
      write(Encoder.authentication(3))
    })
  }

  const checkPassword = ({ body }: FrontendMessage): void => {
    const password = FrontendMessages.fieldsOf(body).text()
    ask(() => director.onPassword?.(password, session), () => [], (replies) => {
      sayAll(replies)
      welcome()
    })
  }

  const describe = (portal: Portal, replies: ReadonlyArray<Reply.Reply>): void => {
    portal.replies = replies
    const rows = replies.find((reply) => reply._tag === "Rows")
    if (rows !== undefined) {
      write(Encoder.rowDescription(Encoder.columnsOf(rows.rows, rows.types), portal.formats))
    } else if (replies.some((reply) => reply._tag === "Command")) write(Encoder.noData)
  }

  /** Runs `goOn` with the script's answer, which is asked for once, by whichever message comes first. */
  const withReplies = (portal: Portal, goOn: (replies: ReadonlyArray<Reply.Reply>) => void): void => {
    if (portal.replies !== undefined) return goOn(portal.replies)
    askQuery(portal.sql, portal.parameters, goOn)
  }

  const missing = (what: "prepared statement" | "portal", name: string): void =>
    fail({ code: what === "portal" ? "34000" : "26000", message: `${what} "${name}" does not exist` })

  const handlers: Readonly<Record<string, (fields: FrontendMessages.Fields) => void>> = {
    P: ({ int32, list, text }) => {
      const name = text()
      statements.set(name, { sql: text(), types: list(int32) })
      write(Encoder.parseComplete)
    },
    B: ({ bytes, int16, list, text }) => {
      const name = text()
      const statement = text()
      const prepared = statements.get(statement)
      if (prepared === undefined) return missing("prepared statement", statement)
      list(int16)
      portals.set(name, { sql: prepared.sql, parameters: list(bytes), formats: list(int16) })
      write(Encoder.bindComplete)
    },
    D: ({ letter, text }) => {
      const isPortal = letter() === "P"
      const name = text()
      if (isPortal) {
        const portal = portals.get(name)
        if (portal === undefined) return missing("portal", name)
        return withReplies(portal, (replies) => describe(portal, replies))
      }
      const prepared = statements.get(name)
      if (prepared === undefined) return missing("prepared statement", name)
      write(Encoder.parameterDescription(prepared.types))
      // Only the script knows what it returns; it is asked again when the statement is executed.
      ask(
        () => director.onQuery(prepared.sql, session, []),
        () => [Reply.command(defaultTag(prepared.sql, status))],
        (replies) => describe({ sql: prepared.sql, parameters: [], formats: [] }, replies)
      )
    },
    E: ({ text }) => {
      const name = text()
      const portal = portals.get(name)
      if (portal === undefined) return missing("portal", name)
      withReplies(portal, (replies) => {
        portals.delete(name)
        sayAll(replies, portal.sql, portal.formats, true)
      })
    },
    C: ({ letter, text }) => {
      const isPortal = letter() === "P"
      const name = text()
      if (isPortal) portals.delete(name)
      else statements.delete(name)
      write(Encoder.closeComplete)
    },
    H: () => {},
    Q: ({ text }) => {
      const sql = text()
      askQuery(sql, [], (replies) => {
        sayAll(replies, sql)
        sync()
      })
    }
  }

  const sync = (): void => {
    isSkipping = false
    if (phase === "ready") write(Encoder.ready(status))
  }

  const handle = (message: FrontendMessage): void => {
    if (phase === "starting") return start(message)
    if (phase === "password") return checkPassword(message)
    if (message.type === "S") return sync()
    if (message.type === "X") return stop("close")
    if (isSkipping) return
    const handler = handlers[message.type]
    if (handler === undefined) {
      return fail({ code: "0A000", message: `the scripted server knows no message of type "${message.type}"` })
    }
    handler(FrontendMessages.fieldsOf(message.body))
  }

  const mayProceed = (): boolean => !isBusy && phase !== "over"

  const proceed = (): void => {
    while (mayProceed()) {
      const message = queue.shift()
      if (message === undefined) return
      try {
        handle(message)
      } catch (error) {
        // An offset beyond the end of the message, mostly.
        fail({ code: "08P01", message: `the message cannot be read: ${String(error)}`, severity: "FATAL" })
      }
    }
  }

  socket.on("data", (chunk: Buffer) => {
    queue.push(...reader.push(chunk))
    proceed()
  })
  socket.once("end", () => {
    if (!isSilent) socket.end()
  })
  socket.once("close", () => {
    phase = "over"
    running?.interruptUnsafe()
  })

  return {
    session,
    isCancelledBy: (theirProcessId, theirSecret) => theirProcessId === processId && theirSecret === secret,
    cancel: () => running?.interruptUnsafe()
  }
}
