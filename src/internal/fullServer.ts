import { digWhole, read } from "./failure.ts"
import { ruleOfFailure } from "./rule.ts"
import { full } from "./sqlState.ts"
import type { Failure } from "./verdict.ts"

const saysSo = (failure: Failure): boolean => ruleOfFailure(failure, "Connect") === full

/**
 * Whether a connect has failed because the server has as many sessions as it takes, or a pooler as many clients. Of several
 * hosts, one that may have room later is enough.
 */
export const isFull = (error: { readonly _tag: string }): boolean => {
  switch (error._tag) {
    // What a hook has asked elsewhere says nothing of this server.
    case "HookFailed":
    case "CredentialsFailed":
      return false
    case "NoSuitableHost": {
      const hosts = read(error, "hosts")
      return Array.isArray(hosts) && hosts.some((host) => saysSo((read(host, "failure") ?? {}) as Failure))
    }
    default:
      return saysSo(digWhole(error))
  }
}
