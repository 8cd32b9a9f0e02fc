import { assert, describe, it } from "@effect/vitest"
import * as Redacted from "effect/Redacted"
import * as Os from "node:os"
import * as Address from "../src/internal/address.ts"

const resolve = (url: string, more: Omit<Address.AddressOptions, "url"> = {}) =>
  Address.resolve({ url: Redacted.make(url), ...more })

describe("the address", () => {
  const cases: ReadonlyArray<readonly [string, ReturnType<typeof Address.resolve>, Partial<Address.Address>]> = [
    ["is localhost by default, and the system's user", Address.resolve({}), {
      host: "localhost",
      port: 5432,
      path: undefined,
      database: Os.userInfo().username,
      username: Os.userInfo().username,
      sslMode: undefined,
      connectTimeout: undefined
    }],
    ["is read off a URL", resolve("postgres://me:secret@db.example:6543/shop"), {
      host: "db.example",
      port: 6543,
      database: "shop",
      username: "me"
    }],
    ["of an IPv6 host has no brackets", resolve("postgresql://[::1]/shop"), { host: "::1" }],
    ["takes percent-encoded parts", resolve("postgres://me@db/a%20b"), { database: "a b" }],
    ["takes host, port and database from the query string", resolve("postgres:///?host=h&port=7&dbname=d"), {
      host: "h",
      port: 7,
      database: "d"
    }],
    ["takes the user's name for a database that is not named", resolve("postgres://me@db"), { database: "me" }],
    ["lets explicit fields win over the URL", resolve("postgres://me@db:1/a", { host: "h", port: 2, database: "b" }), {
      host: "h",
      port: 2,
      database: "b"
    }],
    ["is a socket when the host is a directory", resolve("postgres:///shop?host=/run/pg"), {
      path: "/run/pg/.s.PGSQL.5432"
    }],
    ["says what the URL says of TLS", resolve("postgres://me@db/a?sslmode=verify-full"), { sslMode: "verify-full" }],
    ["says how the URL wants TLS to begin", resolve("postgres://me@db/a?sslnegotiation=direct"), {
      sslNegotiation: "direct"
    }],
    ["takes ssl=true for TLS, as node-postgres does", resolve("postgres://me@db/a?ssl=true"), { sslMode: "require" }],
    ["prefers sslmode to it", resolve("postgres://me@db/a?ssl=false&sslmode=verify-ca"), { sslMode: "verify-ca" }],
    [
      "reads a list of hosts off a URL",
      resolve("postgres://me:secret@one:1,[::1],/shop?target_session_attrs=primary"),
      {
        host: "one",
        port: 1,
        hosts: [
          { host: "one", port: 1, path: undefined },
          { host: "::1", port: 5432, path: undefined },
          { host: "localhost", port: 5432, path: undefined }
        ],
        sessionAttrs: "primary",
        database: "shop",
        username: "me"
      }
    ],
    ["reads lists of hosts and ports off the query string", resolve("postgres:///shop?host=one,/run/pg&port=1,2"), {
      hosts: [
        { host: "one", port: 1, path: undefined },
        { host: "/run/pg", port: 2, path: "/run/pg/.s.PGSQL.2" }
      ]
    }],
    ["takes one port for all hosts", resolve("postgres:///shop?host=one,two&port=7"), {
      hosts: [{ host: "one", port: 7, path: undefined }, { host: "two", port: 7, path: undefined }]
    }],
    [
      "lets explicit hosts win over those of the URL",
      resolve("postgres://me@db:1,other:2/a", { hosts: [{ host: "h" }] }),
      {
        hosts: [{ host: "h", port: 5432, path: undefined }]
      }
    ],
    ["lets a host of its own win over a list", resolve("postgres://me@db:1,other:2/a", { host: "h" }), {
      hosts: [{ host: "h", port: 1, path: undefined }]
    }],
    ["takes any server by default", resolve("postgres://me@db/a"), { sessionAttrs: "any" }],
    ["reads connect_timeout in seconds", resolve("postgres://me@db/a?connect_timeout=3"), { connectTimeout: 3000 }],
    ["reads connect_timeout=0 as none", resolve("postgres://me@db/a?connect_timeout=0"), { connectTimeout: Infinity }]
  ]
  it.each(cases)("%s", (_, actual, expected) => {
    assert.deepInclude(actual, expected)
  })

  it("gives the driver, which knows of one host only, a URL that it can read", () => {
    const urls = [
      "postgres://me:hunter2@one:1,two:2/shop?application_name=a",
      "postgres://me:hunter2@one/shop?host=one,two&port=1,2"
    ].map((url) => {
      const found = resolve(url)
      return "_tag" in found || found.url === undefined ? found : Redacted.value(found.url)
    })
    assert.deepStrictEqual(urls, [
      "postgres://me:hunter2@one:1/shop?application_name=a",
      "postgres://me:hunter2@one/shop"
    ])
  })

  it.each([
    "not a url",
    "mysql://me:hunter2@host/db",
    "postgres://me:%zz@host/db",
    "postgres://host:99999/db",
    "postgres://me:hunter2@host/db?sslmode=maybe",
    "postgres://me:hunter2@host/db?sslnegotiation=maybe",
    "postgres://me:hunter2@host/db?ssl=maybe",
    "postgres://me:hunter2@host/db?connect_timeout=soon",
    "postgres://me:hunter2@host/db?target_session_attrs=master",
    "postgres://me:hunter2@one:5432,two:x/db",
    "postgres://me:hunter2@host/db?host=one,two,three&port=1,2"
  ])("complains about %s without its secrets", (url) => {
    const bad = resolve(url)
    assert.strictEqual("_tag" in bad && bad._tag, "BadAddress")
    assert.notInclude(JSON.stringify(bad), "hunter2")
  })
})
