import { assert, describe, it } from "@effect/vitest"
import * as Operation from "../src/internal/operation.ts"

const expected: ReadonlyArray<readonly [sql: string, operation: Operation.Operation]> = [
  ["SELECT 1", "SELECT"],
  ["select 1", "SELECT"],
  ["sElEcT\t1", "SELECT"],
  ["SELECT", "SELECT"],
  ["select*from t", "SELECT"],
  ["select'a'", "SELECT"],
  ["selects", "OTHER"],
  ["select_all()", "OTHER"],
  ["select1", "OTHER"],
  ["selecté", "OTHER"],
  ["selec", "OTHER"],
  ["set x = 1", "OTHER"],
  ["INSERT INTO t VALUES (1)", "INSERT"],
  ["update t set a = 1", "UPDATE"],
  ["Delete from t", "DELETE"],
  ["DECLARE c CURSOR FOR SELECT 1", "OTHER"],
  ["MERGE INTO t USING s ON true", "MERGE"],
  ["WITH a AS (SELECT 1) SELECT * FROM a", "WITH"],
  ["BEGIN ISOLATION LEVEL SERIALIZABLE", "BEGIN"],
  ["COMMIT", "COMMIT"],
  ["commit;", "COMMIT"],
  ["COPY t FROM STDIN", "OTHER"],
  ["ROLLBACK TO SAVEPOINT a", "ROLLBACK"],
  ["RELEASE SAVEPOINT a", "OTHER"],
  ["VACUUM", "OTHER"],
  ["", "OTHER"],
  ["  \r\n\t", "OTHER"],
  ["\n  SELECT 1", "SELECT"],
  ["-- a comment\nSELECT 1", "SELECT"],
  ["--\n--\n  update t set a = 1", "UPDATE"],
  ["-- only a comment", "OTHER"],
  ["/* a */ /* b */select 1", "SELECT"],
  ["/* outer /* inner */ still */ DELETE FROM t", "DELETE"],
  ["/* outer /* inner */ SELECT 1", "OTHER"],
  ["/*/ SELECT 1 */ INSERT INTO t VALUES (1)", "INSERT"],
  ["/* without an end", "OTHER"],
  ["(SELECT 1) UNION (SELECT 2)", "SELECT"],
  ["( /* a */ ( -- b\n select 1))", "SELECT"],
  ["- SELECT", "OTHER"],
  ["/ SELECT", "OTHER"],
  ["\"select\"", "OTHER"]
]

describe("the operation of a statement", () => {
  for (const [sql, operation] of expected) {
    it(`${JSON.stringify(sql)} is ${operation}`, () => {
      assert.strictEqual(Operation.of(sql), operation)
    })
  }

  it("is found in a statement that is nothing but the beginning of a comment, however long", () => {
    assert.strictEqual(Operation.of("/*".repeat(100_000)), "OTHER")
    assert.strictEqual(Operation.of(" ".repeat(100_000) + "select 1"), "SELECT")
  })
})
