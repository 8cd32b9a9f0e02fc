import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { type ErrorText, wordsOf } from "../src/internal/discretion.ts"
import { authorOf, textOf } from "../src/internal/showable.ts"

describe("the text of a reply", () => {
  // Messages of PostgreSQL 18, from src/backend/po/postgresql.pot.
  // dprint-ignore
  const rows: ReadonlyArray<readonly [what: string, sqlState: string | undefined, said: string, shown: string | undefined]> = [
    ["about the session", "57P01", "terminating connection due to administrator command", "terminating connection due to administrator command"],
    ["about a user", "28P01", "password authentication failed for user \"app\"", "password authentication failed for user \"app\""],
    ["about a constraint", "23505", "duplicate key value violates unique constraint \"users_email_key\"", "duplicate key value violates unique constraint \"users_email_key\""],
    ["about a name", "42P01", "relation \"nowhere\" does not exist", "relation \"nowhere\" does not exist"],
    ["about types", "42883", "operator does not exist: text = integer", "operator does not exist: text = integer"],
    ["without a value", "22012", "division by zero", "division by zero"],
    ["with a type's length", "22001", "value too long for type character varying(255)", "value too long for type character varying(255)"],
    ["with a type's precision", "22003", "numeric field overflow (10,2)", "numeric field overflow (10,2)"],
    ["that quotes a value", "22P02", "invalid input syntax for type uuid: \"4111\"", undefined],
    ["that quotes a value in French", "22P02", "syntaxe en entrée invalide pour le type uuid : « 4111 »", undefined],
    ["that quotes a value in German", "22P02", "ungültige Eingabesyntax für Typ uuid: »4111«", undefined],
    ["that quotes a value in Japanese", "22P02", "uuid型の入力構文が不正です: 「4111」", undefined],
    ["with a number of its own", "22003", "percentile value 48000 is not between 0 and 1", undefined],
    ["of a function", "P0001", "no seat for bob", undefined],
    ["of nobody knows what", "XX000", "tuple concurrently updated", undefined],
    ["of a pooler", "XX000", "Tenant or user not found", "Tenant or user not found"],
    ["about a keyword", "42601", "syntax error at or near \"FORM\"", "syntax error at or near \"FORM\""],
    ["about a sign", "42601", "syntax error at or near \")\"", "syntax error at or near \")\""],
    ["about a keyword in French", "42601", "erreur de syntaxe sur ou près de « FORM »", "erreur de syntaxe sur ou près de ..."],
    ["about a literal", "42601", "syntax error at or near \"'4111'\"", "syntax error at or near ..."],
    ["about a number", "42601", "syntax error at or near \"4111\"", "syntax error at or near ..."],
    ["about a literal without an end", "42601", "unterminated quoted string at or near \"'bob and all that follows\"", "unterminated quoted string at or near ..."],
    ["about the end", "42601", "syntax error at end of input", "syntax error at end of input"],
    ["of a socket", undefined, "connect ECONNREFUSED 127.0.0.1:5432", "connect ECONNREFUSED 127.0.0.1:5432"],
    ["of a socket, with an address in it", undefined, "getaddrinfo ENOTFOUND postgres://bob:hunter2@db", "getaddrinfo ENOTFOUND postgres://***@db"]
  ]
  for (const [what, sqlState, said, shown] of rows) {
    it(`${what} is ${shown === undefined ? "withheld" : shown === said ? "shown" : "shown in part"}`, () => {
      assert.strictEqual(textOf(sqlState, said), shown)
    })
  }

  it("that a function has worded is withheld under any code", () => {
    for (const sqlState of ["57P01", "40001", "23505", "42P01", "22012", "42601", "XX000"]) {
      assert.isUndefined(textOf(sqlState, "Tenant or user not found", "Function"))
    }
  })

  it("whose author nobody names is shown only where poolers speak as well", () => {
    assert.deepStrictEqual(
      ["08P01", "57P01", "40001", "23505", "42P01", "22012", "42601"].filter((code) => textOf(code, "said", "Unknown")),
      ["08P01", "57P01", "40001"]
    )
  })
})

describe("the author of a reply", () => {
  // dprint-ignore
  const rows: ReadonlyArray<readonly [author: string, file: string | undefined, routine: string | undefined]> = [
    ["Server", "nbtinsert.c", "_bt_check_unique"],
    ["Server", "scan.l", "scanner_yyerror"],
    ["Server", "gram.y", "doNegate"],
    ["Server", "planner.c", "standard_planner"],
    ["Server", "plancache.c", "RevalidateCachedQuery"],
    ["Function", "pl_exec.c", "exec_stmt_raise"],
    ["Function", "plperl.c", "plperl_call_perl_func"],
    ["Function", "plpy_elog.c", "PLy_elog_impl"],
    ["Function", "pltcl.c", "pltcl_elog"],
    ["Function", "plv8.cc", "Throw"],
    ["Function", "connection.c", "pgfdw_report_error"],
    ["Function", "dblink.c", "dblink_res_error"],
    ["Function", "conn_executor_exec.go", "dispatch"],
    ["Unknown", undefined, undefined]
  ]
  for (const [author, file, routine] of rows) {
    it(`of ${file ?? "no file"}, ${routine ?? "no routine"}, is ${author === "Unknown" ? "not known" : `the ${author.toLowerCase()}`}`, () => {
      assert.strictEqual(authorOf(file, routine), author)
    })
  }
})

describe("somebody else's error", () => {
  const denied = Object.assign(new Error("hunter2"), { name: "AccessDeniedException" })
  const told = (mode: ErrorText, promise: () => Promise<unknown>) =>
    Effect.map(Effect.flip(Effect.tryPromise(promise)), (error) => wordsOf(error, mode))

  it.effect("is told by its name, and one that Effect has wrapped by that of what is inside, too", () =>
    Effect.gen(function*() {
      const refuse = () => Promise.reject(denied)
      assert.strictEqual(wordsOf(denied, "discreet"), "AccessDeniedException")
      assert.strictEqual(yield* told("discreet", refuse), "UnknownError: caused by AccessDeniedException")
      assert.strictEqual(yield* told("full", refuse), "UnknownError: caused by AccessDeniedException: hunter2")
      assert.strictEqual(yield* told("discreet", () => Promise.reject(new Error("hunter2"))), "UnknownError")
    }))
})
