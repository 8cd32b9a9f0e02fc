import { assert, describe, it } from "@effect/vitest"
import * as fc from "fast-check"
import { poolerTexts } from "../scripts/pooler-texts.ts"
import { type Circumstances, classify, type Failure, isSafeToRepeat, type Phase, type Verdict } from "../src/Errors.ts"
import { listed as listedCodes } from "../src/internal/socketCode.ts"
import { listed as listedStates } from "../src/internal/sqlState.ts"

const at = (phase: Phase, more?: Partial<Circumstances>): Circumstances => ({
  phase,
  reused: false,
  replied: true,
  ...more
})

const short = ({ breaker, connection, effect, kind, retry }: Verdict): string =>
  [kind, effect, retry, breaker, connection].join(" ")

const error = (sqlState: string, message?: string): Failure => ({ sqlState, severity: "ERROR", message })
const fatal = (sqlState: string, message?: string): Failure => ({ sqlState, severity: "FATAL", message })
const code = (code: string): Failure => ({ code })
const text = (message: string): Failure => ({ message })

type Row = readonly [sentence: string, failure: Failure, phase: Phase, verdict: string]

const table = (rows: ReadonlyArray<Row>): void => {
  for (const [sentence, failure, phase, verdict] of rows) {
    const name = failure.sqlState ?? failure.code ?? failure.message ?? "nothing"
    it(`${name} ${sentence} (${phase})`, () => {
      assert.strictEqual(short(classify(failure, at(phase))), verdict)
    })
  }
}

// kind, effect, retry, breaker, connection
describe("a server that cannot be reached", () => {
  // dprint-ignore
  table([
    ["is repeated with back-off and counted", code("ECONNREFUSED"), "Connect", "Unreachable NotRun Backoff Failure Evict"],
    ["may be a resolver that restarts", code("ENOTFOUND"), "Connect", "Unreachable NotRun Backoff Failure Evict"],
    ["is a resolver without an answer", code("EAI_AGAIN"), "Connect", "Unreachable NotRun Backoff Failure Evict"],
    ["has no route", code("EHOSTUNREACH"), "Connect", "Unreachable NotRun Backoff Failure Evict"],
    ["has no network", code("ENETUNREACH"), "Connect", "Unreachable NotRun Backoff Failure Evict"],
    ["did not answer in time", code("ETIMEDOUT"), "Connect", "Unreachable NotRun Backoff Failure Evict"],
    ["has no Unix socket", code("ENOENT"), "Connect", "Unreachable NotRun Backoff Failure Evict"],
    ["is the driver's timeout", text("PgConnection: Connection timed out"), "Connect", "Unreachable NotRun Backoff Failure Evict"],
    ["is a handshake cut short", text("PgConnection: Connection closed during startup: Connection closed unexpectedly"), "Connect", "Unreachable NotRun Backoff Failure Evict"],
    ["starts up, stops or recovers", fatal("57P03", "the database system is starting up"), "Connect", "Unreachable NotRun Backoff Failure Evict"],
    ["could not be connected to", fatal("08001"), "Connect", "Unreachable NotRun Backoff Failure Evict"],
    ["rejected the connection", fatal("08004"), "Connect", "Unreachable NotRun Backoff Failure Evict"],
    ["shuts down during the handshake", fatal("57P01"), "Connect", "Unreachable NotRun Backoff Failure Evict"],
    ["fails to connect in a way never heard of", code("EWHATEVER"), "Connect", "Unreachable NotRun Backoff Failure Evict"],
    ["is relayed by a pooler to the statement that waited for it", fatal("57P03"), "InFlight", "Unreachable RolledBack Backoff Failure Evict"]
  ])
})

describe("a connection that is lost", () => {
  // dprint-ignore
  table([
    ["before the first byte did nothing", code("ECONNRESET"), "BeforeWrite", "Unreachable NotRun Backoff Failure Evict"],
    ["in flight leaves the outcome unknown", code("ECONNRESET"), "InFlight", "Unreachable Unknown Backoff Failure Evict"],
    ["before COMMIT is rolled back", code("ECONNRESET"), "Transaction", "Unreachable RolledBack Backoff Failure Evict"],
    ["in COMMIT leaves the outcome unknown", code("ECONNRESET"), "Commit", "Unreachable Unknown Backoff Failure Evict"],
    ["in flight leaves the outcome unknown", code("EPIPE"), "InFlight", "Unreachable Unknown Backoff Failure Evict"],
    ["in flight leaves the outcome unknown", code("ETIMEDOUT"), "InFlight", "Unreachable Unknown Backoff Failure Evict"],
    ["in flight leaves the outcome unknown", code("EHOSTUNREACH"), "InFlight", "Unreachable Unknown Backoff Failure Evict"],
    ["in flight leaves the outcome unknown", code("ENETUNREACH"), "InFlight", "Unreachable Unknown Backoff Failure Evict"],
    ["in flight leaves the outcome unknown", code("EPROTO"), "InFlight", "Unreachable Unknown Backoff Failure Evict"],
    ["in flight leaves the outcome unknown", text("PgConnection: Connection closed"), "InFlight", "Unreachable Unknown Backoff Failure Evict"],
    ["in flight leaves the outcome unknown", text("PgConnection: Connection is closed"), "InFlight", "Unreachable Unknown Backoff Failure Evict"],
    ["in flight leaves the outcome unknown", text("PgConnection: Query cancellation timed out"), "InFlight", "Unreachable Unknown Backoff Failure Evict"],
    ["in flight leaves the outcome unknown", text("PgConnection: Failed to write query"), "InFlight", "Unreachable Unknown Backoff Failure Evict"],
    ["before COMMIT is rolled back", text("PgConnection: Connection closed"), "Transaction", "Unreachable RolledBack Backoff Failure Evict"],
    ["in COMMIT leaves the outcome unknown", text("PgConnection: Connection closed"), "Commit", "Unreachable Unknown Backoff Failure Evict"],
    ["behind a pooler in flight leaves the outcome unknown", fatal("08000"), "InFlight", "Unreachable Unknown Backoff Failure Evict"],
    ["behind a pooler in flight leaves the outcome unknown", fatal("08006"), "InFlight", "Unreachable Unknown Backoff Failure Evict"],
    ["behind a pooler leaves it unknown even as an ERROR", error("08006"), "InFlight", "Unreachable Unknown Backoff Failure Evict"],
    ["behind a pooler before COMMIT is rolled back", fatal("08006"), "Transaction", "Unreachable RolledBack Backoff Failure Evict"],
    ["behind a pooler in COMMIT leaves the outcome unknown", fatal("08006"), "Commit", "Unreachable Unknown Backoff Failure Evict"],
    ["did not exist, so it carried nothing", fatal("08003"), "InFlight", "Unreachable RolledBack Backoff Failure Evict"],
    ["says that nobody knows, in flight", error("08007"), "InFlight", "Unreachable Unknown Backoff Failure Evict"],
    ["says that nobody knows, in a transaction too", error("08007"), "Transaction", "Unreachable Unknown Backoff Failure Evict"],
    ["says that nobody knows, in COMMIT", error("08007"), "Commit", "Unreachable Unknown Backoff Failure Evict"]
  ])
})

describe("a session that the server ends", () => {
  // dprint-ignore
  table([
    ["before the first byte did nothing", fatal("57P01"), "BeforeWrite", "Unreachable NotRun Now Failure Evict"],
    ["after the write may have committed first", fatal("57P01"), "InFlight", "Unreachable Unknown Now Failure Evict"],
    ["before COMMIT is rolled back", fatal("57P01"), "Transaction", "Unreachable RolledBack Now Failure Evict"],
    ["in COMMIT may have committed first", fatal("57P01"), "Commit", "Unreachable Unknown Now Failure Evict"],
    ["by a crash takes every session with it", fatal("57P02"), "InFlight", "Unreachable Unknown Backoff Failure EvictAll"],
    ["by a crash before COMMIT is rolled back", fatal("57P02"), "Transaction", "Unreachable RolledBack Backoff Failure EvictAll"],
    ["by a crash in COMMIT may have committed first", fatal("57P02"), "Commit", "Unreachable Unknown Backoff Failure EvictAll"],
    ["with its database is not coming back", fatal("57P04"), "BeforeWrite", "Denied NotRun Never Ignored EvictAll"],
    ["with its database is not coming back", fatal("57P04"), "InFlight", "Denied Unknown Never Ignored EvictAll"],
    ["because it idled had read nothing more", fatal("57P05"), "BeforeWrite", "StaleConnection NotRun Now Ignored Evict"],
    ["because it idled had read nothing more", fatal("57P05"), "InFlight", "StaleConnection RolledBack Now Ignored Evict"],
    ["because it idled in a transaction rolled it back", fatal("25P03"), "Transaction", "Cancelled RolledBack Backoff Ignored Evict"],
    ["because it idled in a transaction had not read COMMIT", fatal("25P03"), "Commit", "Cancelled RolledBack Backoff Ignored Evict"],
    ["because its transaction lasted too long rolled it back", fatal("25P04"), "Transaction", "Cancelled RolledBack Backoff Ignored Evict"],
    ["because its transaction lasted too long can be late", fatal("25P04"), "Commit", "Cancelled Unknown Backoff Ignored Evict"]
  ])
})

describe("the same failure in each phase", () => {
  const phases: ReadonlyArray<Phase> = ["Connect", "BeforeWrite", "InFlight", "Transaction", "Commit"]
  // dprint-ignore
  const rows: ReadonlyArray<readonly [name: string, failure: Failure, verdicts: ReadonlyArray<string>]> = [
    ["ECONNRESET", code("ECONNRESET"), [
      "Unreachable NotRun Backoff Failure Evict",
      "Unreachable NotRun Backoff Failure Evict",
      "Unreachable Unknown Backoff Failure Evict",
      "Unreachable RolledBack Backoff Failure Evict",
      "Unreachable Unknown Backoff Failure Evict"
    ]],
    ["57P01", fatal("57P01"), [
      "Unreachable NotRun Backoff Failure Evict",
      "Unreachable NotRun Now Failure Evict",
      "Unreachable Unknown Now Failure Evict",
      "Unreachable RolledBack Now Failure Evict",
      "Unreachable Unknown Now Failure Evict"
    ]],
    ["57P03", fatal("57P03"), [
      "Unreachable NotRun Backoff Failure Evict",
      "Unreachable NotRun Backoff Failure Evict",
      "Unreachable RolledBack Backoff Failure Evict",
      "Unreachable RolledBack Backoff Failure Evict",
      "Unreachable Unknown Backoff Failure Evict"
    ]],
    ["53300", fatal("53300"), [
      "Overloaded NotRun BackoffSlow Failure Evict",
      "Overloaded NotRun BackoffSlow Failure Evict",
      "Overloaded RolledBack BackoffSlow Failure Evict",
      "Overloaded RolledBack BackoffSlow Failure Evict",
      "Overloaded Unknown BackoffSlow Failure Evict"
    ]],
    ["25006", error("25006"), [
      "ReadOnly NotRun Now Ignored EvictAll",
      "ReadOnly NotRun Now Ignored EvictAll",
      "ReadOnly RolledBack Now Ignored EvictAll",
      "ReadOnly RolledBack Now Ignored EvictAll",
      "ReadOnly RolledBack Now Ignored EvictAll"
    ]],
    ["40001", error("40001"), [
      "Contention NotRun Backoff Success Evict",
      "Contention NotRun Backoff Success Keep",
      "Contention RolledBack Backoff Success Keep",
      "Contention RolledBack Backoff Success Keep",
      "Contention RolledBack Backoff Success Keep"
    ]],
    ["08P01 of a pooler", fatal("08P01", "something new"), [
      "Unreachable NotRun Backoff Failure Evict",
      "Unreachable NotRun Backoff Failure Evict",
      "Unreachable Unknown Never Failure Evict",
      "Unreachable RolledBack Never Failure Evict",
      "Unreachable Unknown Never Failure Evict"
    ]],
    ["08P01 of PostgreSQL", error("08P01", "insufficient data left in message"), [
      "Unreachable NotRun Backoff Failure Evict",
      "Unreachable NotRun Backoff Failure Evict",
      "Rejected RolledBack Never Success Keep",
      "Rejected RolledBack Never Success Keep",
      "Rejected RolledBack Never Success Keep"
    ]]
  ]
  for (const [name, failure, verdicts] of rows) {
    it(`${name} means something else before, within and after`, () => {
      assert.deepStrictEqual(phases.map((phase) => short(classify(failure, at(phase)))), verdicts)
    })
  }

  it("matters by age only before the first byte", () => {
    const ages = [true, false].flatMap((reused) => [true, false].map((replied) => ({ reused, replied })))
    for (const [name, failure] of rows) {
      for (const phase of phases.filter((phase) => phase !== "BeforeWrite")) {
        const verdicts = new Set(ages.map((age) => short(classify(failure, { phase, ...age }))))
        assert.strictEqual(verdicts.size, 1, `${name} ${phase}`)
      }
    }
    for (const failure of [code("ECONNRESET"), fatal("57P01"), fatal("57P03"), fatal("08P01", "something new")]) {
      const verdicts = ages.map((age) => classify(failure, { phase: "BeforeWrite", ...age }))
      assert.deepStrictEqual(verdicts.map(({ kind }) => kind === "StaleConnection"), [false, true, false, false])
      assert.isTrue(verdicts.every(({ effect }) => effect === "NotRun"))
    }
  })
})

describe("a stale session", () => {
  const stale = at("BeforeWrite", { reused: true, replied: false })

  for (
    const failure of [
      code("ECONNRESET"),
      code("EPIPE"),
      text("PgConnection: Connection closed"),
      fatal("57P01"),
      fatal("08006")
    ]
  ) {
    it(`${failure.sqlState ?? failure.code ?? failure.message} on a reused session with nothing written or answered is repeated at once, not counted`, () => {
      assert.strictEqual(short(classify(failure, stale)), "StaleConnection NotRun Now Ignored Evict")
    })
  }

  const lost = code("ECONNRESET")
  it("is not one if it was new", () => {
    assert.strictEqual(classify(lost, { ...stale, reused: false }).kind, "Unreachable")
  })
  it("is not one if the server has answered since the checkout", () => {
    assert.strictEqual(classify(lost, { ...stale, replied: true }).kind, "Unreachable")
  })
  it("is not one if something was written", () => {
    assert.strictEqual(
      short(classify(lost, { ...stale, phase: "InFlight" })),
      "Unreachable Unknown Backoff Failure Evict"
    )
  })
  it("takes its siblings along if the server crashed", () => {
    assert.strictEqual(short(classify(fatal("57P02"), stale)), "StaleConnection NotRun Now Ignored EvictAll")
  })
})

describe("a server without room", () => {
  // dprint-ignore
  table([
    ["is asked more slowly", fatal("53300", "sorry, too many clients already"), "Connect", "Overloaded NotRun BackoffSlow Failure Evict"],
    ["is relayed to the statement that waited", fatal("53300"), "InFlight", "Overloaded RolledBack BackoffSlow Failure Evict"],
    ["is asked more slowly", error("53000"), "InFlight", "Overloaded RolledBack BackoffSlow Failure Keep"],
    ["has no disk", error("53100"), "InFlight", "Overloaded RolledBack BackoffSlow Failure Keep"],
    ["has no disk, and said so before committing", error("53100"), "Commit", "Overloaded RolledBack BackoffSlow Failure Keep"],
    ["has no memory", error("53200"), "Transaction", "Overloaded RolledBack BackoffSlow Failure Keep"],
    ["has no memory and ends the session", fatal("53200"), "InFlight", "Overloaded Unknown BackoffSlow Failure Evict"],
    ["is at a configured limit", error("53400"), "InFlight", "Overloaded RolledBack BackoffSlow Failure Keep"]
  ])
})

describe("a pooler's refusal", () => {
  // dprint-ignore
  table([
    ["for ever is not repeated", fatal("08P01", "unsupported startup parameter: statement_timeout"), "Connect", "Rejected NotRun Never Success Evict"],
    ["for ever is not repeated", fatal("08P01", "unsupported startup parameter in options: lock_timeout"), "Connect", "Rejected NotRun Never Success Evict"],
    ["for a name is not repeated", fatal("08P01", "no such database: shop"), "Connect", "Denied NotRun Never Ignored Evict"],
    ["for want of room is asked more slowly", fatal("08P01", "no more connections allowed (max_client_conn)"), "Connect", "Overloaded NotRun BackoffSlow Failure Evict"],
    ["after waiting for room never reached the server", fatal("08P01", "query_wait_timeout"), "InFlight", "Overloaded RolledBack BackoffSlow Failure Evict"],
    ["for want of a server is repeated", fatal("08P01", "server login has been failing, try again later (server_login_retry)"), "Connect", "Unreachable NotRun Backoff Failure Evict"],
    ["for want of a server is repeated", fatal("08P01", "server_login_has_been_failing"), "Connect", "Unreachable NotRun Backoff Failure Evict"],
    ["in other words is repeated", fatal("08P01", "something new"), "Connect", "Unreachable NotRun Backoff Failure Evict"],
    ["of a running statement leaves the outcome unknown", fatal("08P01", "query_timeout"), "InFlight", "Unreachable Unknown Backoff Failure Evict"],
    ["of a running statement leaves it unknown as an ERROR too", error("08P01", "server conn crashed?"), "InFlight", "Unreachable Unknown Backoff Failure Evict"],
    ["of an idle client is a stale session", fatal("08P01", "client_idle_timeout"), "BeforeWrite", "StaleConnection NotRun Now Ignored Evict"],
    ["of an idle transaction is rolled back", fatal("08P01", "idle transaction timeout"), "Transaction", "Cancelled RolledBack Backoff Ignored Evict"],
    ["in unknown words in flight is not repeated", fatal("08P01", "something new"), "InFlight", "Unreachable Unknown Never Failure Evict"],
    ["is none where PostgreSQL complains of a message", error("08P01", "bind message supplies 1 parameters, but prepared statement \"\" requires 2"), "InFlight", "Rejected RolledBack Never Success Keep"],
    ["of Supavisor's is asked more slowly", fatal("XX000", "MaxClientsInSessionMode: max clients reached"), "Connect", "Overloaded NotRun BackoffSlow Failure Evict"],
    ["of Supavisor's for a name is not repeated", fatal("XX000", "Tenant or user not found"), "Connect", "Denied NotRun Never Ignored Evict"],
    ["of Neon's is asked more slowly", error("XX000", "Too many connections attempts"), "Connect", "Overloaded NotRun BackoffSlow Failure Evict"],
    ["of PgCat's is asked more slowly", fatal("58000", "could not get connection from the pool"), "InFlight", "Overloaded RolledBack BackoffSlow Failure Evict"]
  ])
})

describe("a race that was lost", () => {
  // dprint-ignore
  table([
    ["is repeated, and the server answered", error("40001"), "InFlight", "Contention RolledBack Backoff Success Keep"],
    ["is repeated as a whole transaction", error("40001"), "Transaction", "Contention RolledBack Backoff Success Keep"],
    ["is told apart from a lost COMMIT", error("40001"), "Commit", "Contention RolledBack Backoff Success Keep"],
    ["is repeated", error("40P01"), "InFlight", "Contention RolledBack Backoff Success Keep"],
    ["is repeated as a whole transaction", error("40P01"), "Transaction", "Contention RolledBack Backoff Success Keep"],
    ["for a lock is left to the caller", error("55P03"), "InFlight", "Contention RolledBack Never Success Keep"],
    ["is none", error("40000"), "Transaction", "Rejected RolledBack Never Success Keep"],
    ["is none", error("40002"), "Commit", "Rejected RolledBack Never Success Keep"],
    ["is none where nobody knows", error("40003"), "InFlight", "Rejected Unknown Never Success Evict"],
    ["is none where nobody knows", error("40003"), "Transaction", "Rejected Unknown Never Success Evict"]
  ])
})

describe("a server that says no", () => {
  // dprint-ignore
  table([
    ["was asked something impossible", error("22P02"), "InFlight", "Rejected RolledBack Never Success Keep"],
    ["was asked to divide by zero", error("22012"), "Transaction", "Rejected RolledBack Never Success Keep"],
    ["has that row already", error("23505"), "InFlight", "Rejected RolledBack Never Success Keep"],
    ["checks deferred constraints in COMMIT", error("23503"), "Commit", "Rejected RolledBack Never Success Keep"],
    ["did not understand", error("42601"), "InFlight", "Rejected RolledBack Never Success Keep"],
    ["knows no such table", error("42P01"), "Transaction", "Rejected RolledBack Never Success Keep"],
    ["does not allow it", error("42501"), "InFlight", "Rejected RolledBack Never Success Keep"],
    ["cannot do it", error("0A000"), "InFlight", "Rejected RolledBack Never Success Keep"],
    ["is not in the state for it", error("55000"), "InFlight", "Rejected RolledBack Never Success Keep"],
    ["uses that object", error("55006"), "InFlight", "Rejected RolledBack Never Success Keep"],
    ["has a stale plan, so the session goes", error("0A000", "cached plan must not change result type"), "Transaction", "Rejected RolledBack Never Success Evict"],
    ["lost a prepared statement, so the session goes", error("26000"), "InFlight", "Rejected RolledBack Never Success Evict"],
    ["waits for ROLLBACK", error("25P02"), "Transaction", "Rejected RolledBack Never Success Keep"],
    ["waits for a ROLLBACK that nobody owes, so the session goes", error("25P02"), "InFlight", "Rejected RolledBack Never Success Evict"],
    ["had a function raise", error("P0001"), "InFlight", "Rejected RolledBack Never Success Keep"],
    ["could not reach a foreign server, and is well itself", error("08001", "could not connect to server \"warehouse\""), "InFlight", "Rejected RolledBack Never Success Keep"],
    ["could not reach the server of a dblink, and is well itself", error("08001", "could not establish connection"), "Transaction", "Rejected RolledBack Never Success Keep"],
    ["has a code nobody knows", error("Z9Z99"), "InFlight", "Rejected RolledBack Never Success Keep"],
    ["has a code nobody knows, at the door", fatal("Z9Z99"), "Connect", "Rejected NotRun Never Success Evict"],
    ["ends the session with a code nobody knows", fatal("Z9Z99"), "InFlight", "Rejected Unknown Never Success Evict"]
  ])
})

describe("a server in trouble with itself", () => {
  // dprint-ignore
  table([
    ["aborts the statement with an ERROR", error("58000"), "InFlight", "Rejected RolledBack Never Success Evict"],
    ["cannot be believed about COMMIT", error("58030"), "Commit", "Rejected Unknown Never Success Evict"],
    ["cannot be believed if the session ends", fatal("58030"), "InFlight", "Rejected Unknown Never Success Evict"],
    ["misses a file somebody named", error("58P01"), "InFlight", "Rejected RolledBack Never Success Keep"],
    ["has a bad configuration", fatal("F0000"), "Connect", "Rejected NotRun Never Success Evict"],
    ["has an internal error", error("XX000"), "InFlight", "Rejected RolledBack Never Success Evict"],
    ["has an internal error of unknown severity", { sqlState: "XX000" }, "InFlight", "Rejected Unknown Never Success Evict"],
    ["has corrupted data", error("XX001"), "Transaction", "Rejected RolledBack Never Success Evict"],
    ["has an internal error in COMMIT", error("XX000"), "Commit", "Rejected Unknown Never Success Evict"],
    ["speaks through a gateway", error("99999"), "InFlight", "Rejected RolledBack Never Success Evict"]
  ])
})

describe("who is not let in", () => {
  // dprint-ignore
  table([
    ["is not asked again", fatal("28P01"), "Connect", "Denied NotRun Never Ignored Evict"],
    ["is not asked again", fatal("28000"), "Connect", "Denied NotRun Never Ignored Evict"],
    ["asked for no database there is", fatal("3D000"), "Connect", "Denied NotRun Never Ignored Evict"],
    ["has no password", text("PgConnection: No password configured"), "Connect", "Denied NotRun Never Ignored Evict"],
    ["speaks SCRAM with an impostor", text("PgConnection: SCRAM server verification failed"), "Connect", "Denied NotRun Never Ignored Evict"],
    ["finds no TLS", text("PgConnection: Server refused TLS"), "Connect", "Denied NotRun Never Ignored Evict"],
    ["finds TLS that is somebody else's", text("PgConnection: Server refused direct TLS"), "Connect", "Denied NotRun Never Ignored Evict"],
    ["meets an expired certificate", code("CERT_HAS_EXPIRED"), "Connect", "Denied NotRun Never Ignored Evict"],
    ["meets a self-signed certificate", code("SELF_SIGNED_CERT_IN_CHAIN"), "Connect", "Denied NotRun Never Ignored Evict"],
    ["meets another host's certificate", code("ERR_TLS_CERT_ALTNAME_INVALID"), "Connect", "Denied NotRun Never Ignored Evict"],
    ["speaks TLS to what does not", code("ERR_SSL_WRONG_VERSION_NUMBER"), "Connect", "Denied NotRun Never Ignored Evict"],
    ["may not open the socket", code("EACCES"), "Connect", "Denied NotRun Never Ignored Evict"]
  ])
})

describe("a server that only reads", () => {
  // dprint-ignore
  table([
    ["sends every session to look for the writer", error("25006"), "InFlight", "ReadOnly RolledBack Now Ignored EvictAll"],
    ["sends every session to look for the writer", error("25006"), "Transaction", "ReadOnly RolledBack Now Ignored EvictAll"]
  ])
})

describe("work that was stopped", () => {
  // dprint-ignore
  table([
    ["by the server keeps its session", error("57014", "canceling statement due to statement timeout"), "InFlight", "Cancelled RolledBack Backoff Ignored Keep"],
    ["by the server in a transaction keeps its session", error("57014"), "Transaction", "Cancelled RolledBack Backoff Ignored Keep"],
    ["by this side leaves the outcome unknown", code("ABORT_ERR"), "InFlight", "Cancelled Unknown Never Ignored Evict"]
  ])
})

describe("what never left this process", () => {
  // dprint-ignore
  table([
    ["is not the server's fault", code("AcquireTimeout"), "Connect", "Local NotRun Never Ignored Evict"],
    ["is not the server's fault", code("PoolSaturated"), "Connect", "Local NotRun Never Ignored Evict"],
    ["is not the server's fault", code("CircuitOpen"), "Connect", "Local NotRun Never Ignored Evict"],
    ["is not the server's fault", code("EMFILE"), "Connect", "Local NotRun Never Ignored Evict"],
    ["is a bad option", text("PgConnection: Unrecognized sslmode in URL: \"maybe\""), "Connect", "Rejected NotRun Never Ignored Evict"],
    ["could not be encoded", text("PgConnection: Failed to encode query"), "InFlight", "Rejected RolledBack Never Ignored Keep"],
    ["is a COMMIT that could only roll back", text("PgClient: COMMIT rolled back an aborted transaction"), "Commit", "Rejected RolledBack Never Success Keep"],
    ["is not known at all, and not repeated", {}, "InFlight", "Rejected Unknown Never Success Evict"],
    ["is not known at all, and not repeated", code("EWHATEVER"), "InFlight", "Rejected Unknown Never Success Evict"]
  ])
})

describe("every input", () => {
  const phases: ReadonlyArray<Phase> = ["Connect", "BeforeWrite", "InFlight", "Transaction", "Commit"]
  const sqlState = fc.oneof(
    fc.constantFrom(...listedStates.map((state) => state.padEnd(5, "0"))),
    fc.stringMatching(/^[0-9A-Z]{5}$/)
  )
  const message = fc.oneof(
    fc.constantFrom(
      "unsupported startup parameter: x",
      "query_wait_timeout",
      "query_timeout",
      "client_idle_timeout",
      "no more connections allowed",
      "Connection closed",
      "PgConnection: Failed to encode query",
      "COMMIT rolled back an aborted transaction",
      "cached plan must not change result type"
    ),
    fc.constantFrom(...poolerTexts.map(({ text }) => text)),
    fc.string({ unit: "binary" })
  )
  const severity = fc.constantFrom("ERROR", "FATAL", "PANIC", undefined, "ВАЖНО")
  const reply = fc.record({ sqlState, severity, message: fc.option(message, { nil: undefined }) })
  const socket = fc.record({
    code: fc.option(fc.oneof(fc.constantFrom(...listedCodes), fc.stringMatching(/^E[A-Z]{2,9}$/)), { nil: undefined }),
    message: fc.option(message, { nil: undefined })
  })
  const failure: fc.Arbitrary<Failure> = fc.oneof(reply, socket)
  const circumstances = fc.record({ phase: fc.constantFrom(...phases), reused: fc.boolean(), replied: fc.boolean() })
  const runs = { numRuns: 10_000 }

  it("that could have taken effect never yields NotRun, and what cannot have always does", () => {
    fc.assert(
      fc.property(failure, circumstances, (failure, circumstances) => {
        const unwritten = circumstances.phase === "Connect" || circumstances.phase === "BeforeWrite"
        assert.strictEqual(classify(failure, circumstances).effect === "NotRun", unwritten)
      }),
      runs
    )
  })

  it("in flight or in COMMIT without an ERROR reply is Unknown, unless it was refused or ended before it was read", () => {
    const beforeReading = /^(28|3D)...$|^(53300|57P03|57P05|25P03|08001|08003|08004)$/
    fc.assert(
      fc.property(
        fc.oneof(
          fc.record({ sqlState, severity: fc.constantFrom("FATAL", "PANIC") }),
          fc.record({ code: fc.constantFrom(...listedCodes.filter((code) => /^(E|ERR_S)/.test(code))) })
        ),
        fc.constantFrom<Phase>("InFlight", "Commit"),
        fc.boolean(),
        fc.boolean(),
        (failure: Failure, phase, reused, replied) => {
          if (failure.sqlState !== undefined && beforeReading.test(failure.sqlState)) return
          if (failure.sqlState === undefined && /^(EAFNO|EINVAL)/.test(failure.code ?? "")) return
          assert.strictEqual(classify(failure, { phase, reused, replied }).effect, "Unknown")
        }
      ),
      runs
    )
  })

  it("inside a transaction before COMMIT is rolled back, unless the code says that nobody knows", () => {
    fc.assert(
      fc.property(failure, fc.boolean(), fc.boolean(), (failure, reused, replied) => {
        const { effect } = classify(failure, { phase: "Transaction", reused, replied })
        const nobodyKnows = failure.sqlState === "08007" || failure.sqlState === "40003"
        assert.isTrue(effect === "RolledBack" || nobodyKnows)
      }),
      runs
    )
  })

  it("with an Unknown outcome, or cancelled, is repeated only if declared idempotent", () => {
    fc.assert(
      fc.property(failure, circumstances, (failure, circumstances) => {
        const verdict = classify(failure, circumstances)
        assert.isFalse(verdict.effect === "Unknown" && isSafeToRepeat(verdict, false))
        assert.isFalse(verdict.kind === "Cancelled" && isSafeToRepeat(verdict, false))
        assert.isFalse(verdict.retry === "Never" && isSafeToRepeat(verdict, true))
        assert.isTrue(!isSafeToRepeat(verdict, false) || isSafeToRepeat(verdict, true))
      }),
      runs
    )
  })

  it("that ends the session also evicts it, and only a reply of the server keeps one after a write", () => {
    fc.assert(
      fc.property(failure, circumstances, (failure, circumstances) => {
        const verdict = classify(failure, circumstances)
        if (failure.severity === "FATAL" || verdict.kind === "Unreachable" || verdict.kind === "StaleConnection") {
          assert.notStrictEqual(verdict.connection, "Keep")
        }
        if (verdict.kind === "StaleConnection") assert.notStrictEqual(circumstances.phase, "Connect")
      }),
      runs
    )
  })
})
