import type { BreakerOptions } from "./breakerSettings.ts"
import type { PoolOptions } from "./poolSettings.ts"
import * as Sizing from "./sizing.ts"

/**
 * The pool of one serverless environment. It is frozen between invocations, killed without a word, and one of many that
 * share a server.
 */
export const preset = {
  ...Sizing.serverless,
  // Sessions are there for the next invocation, and not for longer than a server or gateway keeps them.
  idleTimeout: "5 minutes",
  // Whoever ends an environment waits for half a second at most.
  closeTimeout: "200 millis",
  acquireTimeout: "10 seconds",
  whenServerFull: "wait",
  serverReaping: {
    idleSession: "6 minutes",
    // A frozen machine answers no probe: before idleTimeout they would end sessions that the next invocation wants.
    keepaliveIdle: "5 minutes",
    keepaliveInterval: "10 seconds",
    keepaliveCount: 3,
    connectionCheck: "10 seconds"
  },
  // A call after the outage must not pay for those before it: most environments have one caller, who asks anew each time.
  breaker: { openFor: "1 second", maxOpenFor: "10 seconds" }
} as const satisfies PoolOptions & { readonly breaker: BreakerOptions }
