import { assert, describe, it } from "@effect/vitest"
import * as Redacted from "effect/Redacted"
import * as Address from "../src/internal/address.ts"

const resolve = (url: string, more: Omit<Address.AddressOptions, "url"> = {}) =>
  Address.resolve({ url: Redacted.make(url), ...more })

describe("the address", () => {
  const cases: ReadonlyArray<readonly [string, ReturnType<typeof Address.resolve>, Address.Address]> = [
    ["is localhost by default", Address.resolve({}), {
      host: "localhost",
      port: 5432,
      path: undefined,
      database: "postgres"
    }],
    ["is read off a URL", resolve("postgres://me:secret@db.example:6543/shop"), {
      host: "db.example",
      port: 6543,
      path: undefined,
      database: "shop"
    }],
    ["of an IPv6 host has no brackets", resolve("postgresql://[::1]/shop"), {
      host: "::1",
      port: 5432,
      path: undefined,
      database: "shop"
    }],
    ["takes percent-encoded parts", resolve("postgres://me@db/a%20b"), {
      host: "db",
      port: 5432,
      path: undefined,
      database: "a b"
    }],
    ["takes host, port and database from the query string", resolve("postgres:///?host=h&port=7&dbname=d"), {
      host: "h",
      port: 7,
      path: undefined,
      database: "d"
    }],
    ["takes the user's name for a database that is not named", resolve("postgres://me@db"), {
      host: "db",
      port: 5432,
      path: undefined,
      database: "me"
    }],
    ["lets explicit fields win over the URL", resolve("postgres://me@db:1/a", { host: "h", port: 2, database: "b" }), {
      host: "h",
      port: 2,
      path: undefined,
      database: "b"
    }],
    ["is a socket when the host is a directory", resolve("postgres:///shop?host=/run/pg"), {
      host: "/run/pg",
      port: 5432,
      path: "/run/pg/.s.PGSQL.5432",
      database: "shop"
    }]
  ]
  it.each(cases)("%s", (_, actual, expected) => {
    assert.deepStrictEqual(actual, expected)
  })

  it.each(["not a url", "mysql://me:hunter2@host/db", "postgres://me:%zz@host/db", "postgres://host:99999/db"])(
    "complains about %s without its secrets",
    (url) => {
      const bad = resolve(url)
      assert.strictEqual("_tag" in bad && bad._tag, "BadAddress")
      assert.notInclude(JSON.stringify(bad), "hunter2")
    }
  )
})
