/** No two pools are alike: what their owners may have set, as chance will have it. */
import type * as Pg from "effect-pg-pool"
import * as Effect from "effect/Effect"
import type { Chance } from "./chance.ts"

export interface Variety {
  readonly options: Pg.Pool.Options
  readonly description: string
}

/** Who shares a session cannot have it reset. */
export const make = (chance: Chance, max: number, multiplex: boolean): Variety => {
  const reset = multiplex ? "none" : chance.pick<"none" | "clean" | "discard-all">(["none", "clean", "discard-all"])
  const plain = {
    multiplex,
    reset,
    min: chance.whole(0, max),
    maxUses: chance.pick([20, 300, 5000]),
    maxLifetime: chance.pick([2000, 10_000]),
    validate: chance.pick<"idle" | "always">(["idle", "idle", "always"]),
    prepare: reset !== "discard-all" && chance.isIt(0.8),
    shedding: chance.isIt(0.3),
    ...(chance.isIt(0.3) && { reapEvery: 300 })
  } as const
  /** Now and then a hook refuses the session. */
  const veto = () => Effect.delay(Effect.sync(() => !chance.isIt(0.01)), chance.whole(0, 2))
  const hooks: Partial<Pg.Pool.Options> = {
    ...(chance.isIt(0.3) && { beforeAcquire: veto }),
    ...(chance.isIt(0.3) && { afterRelease: veto }),
    ...(chance.isIt(0.3) && { beforeDisconnect: (connection) => connection.query("SELECT 1") })
  }
  const settings = Object.entries(plain).map(([name, value]) => `${name} ${value}`)
  return { options: { ...plain, ...hooks }, description: [...settings, ...Object.keys(hooks)].join(", ") }
}
