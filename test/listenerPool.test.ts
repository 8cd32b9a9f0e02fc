import { assert, describe, it } from "@effect/vitest"
import * as Redacted from "effect/Redacted"
import * as ListenerPool from "../src/internal/listenerPool.ts"

describe("the pool of the listeners", () => {
  it("has the hosts of its own URL alone, and takes from a pooled list what that leaves open", () => {
    const direct = Redacted.make("postgres://one,two/?target_session_attrs=primary")
    const options = ListenerPool.optionsOf(
      {
        url: Redacted.make("postgres://shop:hunter2@a:1,b:2/orders"),
        targetSessionAttrs: "any",
        hosts: [{ host: "c" }]
      },
      direct
    )
    assert.strictEqual(options.url, direct)
    assert.isUndefined(options.hosts)
    assert.isUndefined(options.targetSessionAttrs)
    assert.strictEqual(options.username, "shop")
    assert.strictEqual(options.database, "orders")
  })

  it("takes over what the pooled URL says in whichever way, and leaves alone what its own says", () => {
    const optionsOf = (url: string, direct: string) =>
      ListenerPool.optionsOf({ url: Redacted.make(url), password: Redacted.make("given") }, Redacted.make(direct))
    const { database, password, username } = optionsOf("postgres://a/?user=shop&dbname=orders", "postgres://b")
    assert.deepStrictEqual([username, database], ["shop", "orders"])
    assert.strictEqual(Redacted.value(password as Redacted.Redacted), "given")
    assert.strictEqual(optionsOf("postgres://me@a/old%20orders", "postgres://b").database, "old orders")
    assert.isUndefined(optionsOf("postgres://me@a", "postgres://b").database)
    assert.isUndefined(optionsOf("postgres://me@a", "postgres://b?password=own").password)
  })
})
