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
})
