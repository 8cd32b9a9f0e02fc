import { assert, describe, it } from "@effect/vitest"
import * as Commits from "../src/internal/commits.ts"

describe("a statement", () => {
  it.each([
    "COMMIT",
    "end",
    " \n-- note\ncommit and chain",
    "/**/ /* a * b ** */COMMIT",
    "PREPARE  TRANSACTION 'x'"
  ])("commits by hand: %s", (sql) => assert.isTrue(Commits.isByHand(sql)))

  it.each(["SELECT 'COMMIT'", "-- COMMIT", "/* COMMIT */ SELECT 1", "endless", "ROLLBACK", "COMMITTED"])(
    "does not: %s",
    (sql) => assert.isFalse(Commits.isByHand(sql))
  )

  it.each(["CALL p()", "/* note */ vacuum t", "do $$ begin end $$", "DROP INDEX CONCURRENTLY i"])(
    "may commit on its way: %s",
    (sql) => assert.isTrue(Commits.isOnItsWay(sql))
  )

  it.each(["SELECT vacuum FROM t", "INSERT INTO t VALUES (1)", "document()"])(
    "does not: %s",
    (sql) => assert.isFalse(Commits.isOnItsWay(sql))
  )

  it("is read in one pass, however many comments lead it", () => {
    const sql = `${"/* * **/ --\n".repeat(20_000)}SELECT 1`
    assert.isFalse(Commits.isByHand(sql))
    assert.isFalse(Commits.isRollback(sql))
  })
})
