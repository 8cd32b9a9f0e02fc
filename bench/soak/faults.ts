/** What is done to the server, to the network and to the pools meanwhile. */
import * as PgConnection from "@effect/sql-pg/PgConnection"
import type * as Pg from "effect-pg-pool"
import { FaultProxy, type Server } from "effect-pg-pool/testing"
import * as Effect from "effect/Effect"
import { kill } from "node:process"
import type { Chance } from "./chance.ts"
import * as Watch from "./watch.ts"

export interface Scene {
  readonly server: Server
  readonly now: () => number
  /** Faults by kind. */
  readonly done: Map<string, number>
  /** What is going on, for whoever has to find out what went wrong: milliseconds since the beginning, and the fault. */
  readonly chronicle: Array<string>
  readonly say: (line: string) => void
  isOver: boolean
}

interface Deed {
  readonly name: string
  readonly weight: number
  /** Whether the server cannot know afterwards how many clients are left. */
  readonly isBlinding: boolean
  readonly make: () => Effect.Effect<unknown, unknown>
}

const chooser = (chance: Chance) => (deeds: ReadonlyArray<Deed>): Deed => {
  let at = chance.next() * deeds.reduce((sum, { weight }) => sum + weight, 0)
  return deeds.find(({ weight }) => (at -= weight) < 0) ?? deeds[0]!
}

/** Milliseconds. In the first of three chapters nothing happens that would blind the server. */
const chapter = 12_000

/** One deed after the other, with some peace in between, until it is over. */
const torment = Effect.fnUntraced(function*(
  scene: Scene,
  who: string,
  watched: ReadonlyArray<Watch.Watched>,
  chance: Chance,
  deeds: ReadonlyArray<Deed>,
  peace: readonly [least: number, most: number]
) {
  const choose = chooser(chance)
  const clear = deeds.filter(({ isBlinding }) => !isBlinding)
  while (!scene.isOver) {
    yield* Effect.sleep(chance.between(...peace))
    if (scene.isOver) return
    const isClear = Math.floor(scene.now() / chapter) % 3 === 0
    const { isBlinding, make, name } = choose(isClear ? clear : deeds)
    scene.done.set(name, (scene.done.get(name) ?? 0) + 1)
    const from = scene.now()
    yield* make().pipe(
      Watch.during(watched, isBlinding, scene.now),
      // The server may be gone, for the other deeds' sake.
      Effect.catchCause((cause) => Effect.sync(() => scene.say(`${who}: ${name} could not be done: ${cause}`)))
    )
    scene.chronicle.push(`${from.toFixed(0)} to ${scene.now().toFixed(0)} ms: ${name} (${who})`)
  }
})

const direct = <A, E>(scene: Scene, f: (connection: PgConnection.PgConnection) => Effect.Effect<A, E>) =>
  Effect.scoped(Effect.flatMap(PgConnection.make({ url: scene.server.url, applicationName: "chaos of the soak" }), f))
    .pipe(Effect.ignore)

/** The server itself: all pools feel it. */
export const onServer = (scene: Scene, watched: ReadonlyArray<Watch.Watched>, chance: Chance) => {
  const { server } = scene
  const pids = (connection: PgConnection.PgConnection) =>
    Effect.map(
      connection.queryValues("SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'soak %'", [], false),
      (rows) => rows.map(([pid]) => pid as number)
    )
  const toSome = (f: (pids: ReadonlyArray<number>) => ReadonlyArray<number>, sql: string) => () =>
    direct(
      scene,
      (connection) =>
        Effect.flatMap(pids(connection), (pids) => connection.query(sql, [`{${f(pids).join(",")}}`], false))
    )
  const pause = (least: number, most: number) => Effect.suspend(() => Effect.sleep(chance.between(least, most)))
  const deeds: ReadonlyArray<Deed> = [
    {
      name: "some sessions ended",
      weight: 5,
      isBlinding: false,
      make: toSome(chance.some, "SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) AS pid")
    },
    {
      name: "all sessions ended",
      weight: 2,
      isBlinding: false,
      make: toSome((pids) => pids, "SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) AS pid")
    },
    {
      name: "statements cancelled by somebody else",
      weight: 2,
      isBlinding: false,
      make: toSome(chance.some, "SELECT pg_cancel_backend(pid) FROM unnest($1::int[]) AS pid")
    },
    {
      name: "a backend crashed",
      weight: 2,
      isBlinding: false,
      make: () =>
        direct(
          scene,
          (connection) =>
            Effect.flatMap(pids(connection), ([first, ...more]) =>
              first === undefined ? Effect.void : Effect.sync(() =>
                kill(chance.pick([first, ...more]), "SIGKILL")
              ))
        )
    },
    {
      name: "server stopped and started",
      weight: 2,
      isBlinding: false,
      make: () => Effect.andThen(server.stop, Effect.andThen(pause(0, 1500), server.start))
    },
    {
      name: "server killed and started",
      weight: 2,
      isBlinding: false,
      make: () => Effect.andThen(server.kill, Effect.andThen(pause(0, 1500), server.start))
    },
    {
      name: "server frozen",
      weight: 3,
      isBlinding: true,
      make: () =>
        Effect.acquireUseRelease(server.pause, () => pause(50, chance.isIt(0.7) ? 1500 : 5000), () => server.resume)
    }
  ]
  return torment(scene, "the server", watched, chance, deeds, [1000, 5000])
}

/** The network of one pool. */
const onNetwork = (proxy: FaultProxy.FaultProxy, chance: Chance): ReadonlyArray<Deed> => {
  const directions = ["to the server", "to the client"] as const
  const where = () => chance.isIt(0.4) ? {} : { direction: chance.pick(directions) }
  const wait = () => Effect.sleep(chance.isIt(0.7) ? chance.between(20, 800) : chance.between(800, 5000))
  /** All links, or some of those that are there. */
  const linked = (name: string, weight: number, fault: () => FaultProxy.LinkFault): Deed => ({
    name: `network: ${name}`,
    weight,
    isBlinding: true,
    make: () => {
      const made = fault()
      if (chance.isIt(0.5)) return proxy.during(made)(wait())
      return Effect.flatMap(proxy.links, (links) => {
        const struck = chance.some(links)
        return Effect.acquireUseRelease(
          Effect.sync(() => struck.forEach((link) => link.set(made))),
          wait,
          () => Effect.sync(() => struck.forEach((link) => link.lift(made)))
        )
      })
    }
  })
  return [
    linked(
      "delay",
      2,
      () => FaultProxy.delay({ ...where(), by: chance.between(1, 200), jitter: chance.between(0, 100) })
    ),
    linked(
      "slow drip",
      2,
      () => FaultProxy.drip({ ...where(), bytes: chance.whole(1, 60), every: chance.whole(1, 20) })
    ),
    linked("hold", 2, () => FaultProxy.hold(where())),
    linked("lost bytes", 2, () => FaultProxy.drop(where())),
    linked("cut at a byte", 4, () => FaultProxy.cutAfter(chance.whole(0, 400), where())),
    linked("half-close", 2, () => FaultProxy.halfClose(chance.pick(directions))),
    linked("black hole", 2, FaultProxy.blackhole),
    {
      name: "network: all cut",
      weight: 2,
      isBlinding: true,
      make: () => proxy.cut
    },
    {
      name: "network: refused",
      weight: 2,
      isBlinding: true,
      make: () => proxy.during(FaultProxy.refuse(chance.pick(["closed", "reset"])))(wait())
    }
  ]
}

/** Those who run the service turn its knobs. */
const onControls = (pool: Pg.Pool.Pool["Service"], chance: Chance): ReadonlyArray<Deed> => {
  const { max, min } = pool.settings
  const wait = () => Effect.sleep(chance.between(0, 1500))
  const deed = (name: string, make: () => Effect.Effect<unknown, unknown>): Deed => ({
    name: `control: ${name}`,
    weight: 2,
    isBlinding: false,
    make
  })
  return [
    deed("evictAll", () => pool.evictAll),
    deed("resize", () =>
      Effect.acquireUseRelease(
        pool.resize({ max: chance.whole(1, max), min: 0 }),
        wait,
        () => Effect.orDie(pool.resize({ max, min }))
      )),
    deed("suspend, resume", () => Effect.acquireUseRelease(pool.suspend, wait, () => pool.resume)),
    deed("warm", () => Effect.ignore(pool.warm(chance.whole(1, max + 2))))
  ]
}

/** One pool: its network and its controls. */
export const onPool = (
  scene: Scene,
  watched: Watch.Watched,
  pool: Pg.Pool.Pool["Service"],
  proxy: FaultProxy.FaultProxy,
  chance: Chance
) =>
  torment(
    scene,
    watched.name,
    [watched],
    chance,
    [...onNetwork(proxy, chance), ...onControls(pool, chance)],
    [100, 2000]
  )

/** A network without anybody in charge of the pool. */
export const onNetworkAlone = (
  scene: Scene,
  watched: Watch.Watched,
  proxy: FaultProxy.FaultProxy,
  chance: Chance
) => torment(scene, watched.name, [watched], chance, onNetwork(proxy, chance), [50, 1000])
