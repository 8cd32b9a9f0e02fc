/**
 * The instruments of pools in a registry of prom-client's, which is only known by its shape.
 */
import type { Row } from "./instrumentTable.ts"
import { samples } from "./instrumentTable.ts"

/** What is needed of a registry. */
export interface Registry {
  // `never`: each package has a metric type of its own, which cannot be named without importing the package.
  registerMetric(metric: never): void
  getSingleMetric(name: string): unknown
  removeSingleMetric(name: string): void
}

const methods: ReadonlyArray<keyof Registry> = ["registerMetric", "getSingleMetric", "removeSingleMetric"]

/** What a compiler would have seen. */
export const isRegistry = (value: unknown): value is Registry =>
  typeof value === "object" && value !== null &&
  methods.every((method) => typeof (value as Partial<Registry>)[method] === "function")

/** One pool in a registry. */
export interface Member<Source> {
  readonly pool: string
  readonly source: Source
  readonly legacy: boolean
}

interface Collector {
  /** Mutable: a registry in OpenMetrics mode cuts `_total` off the names of counters, and appends it when it prints. */
  name: string
  readonly help: string
  readonly type: Row<never>["type"]
  readonly aggregator: "sum"
  readonly labelNames: ReadonlyArray<string>
  get(): Promise<unknown>
  reset(): void
}

/** By name. A pool that was added more than once is there as often, and is told of once. */
type Members<Source> = Map<string, ReadonlyArray<Member<Source>>>

const makeCollector = <Source>(row: Row<Source>, members: Members<Source>): Collector => ({
  name: row.name,
  help: row.help,
  type: row.type,
  aggregator: "sum",
  labelNames: [],
  // A promise because the registry wants one. Nothing in here waits, throws or asks the database: a collector that
  // fails takes the whole scrape with it.
  get() {
    const { aggregator, help, name, type } = this
    const values = Array.from(members).flatMap(([pool, same]) =>
      row.legacy && !same.some(({ legacy }) => legacy)
        ? []
        : samples(row, pool, same[0]!.source).map(({ labels, suffix, value }) => ({
          ...(suffix === "" ? {} : { metricName: `${name}${suffix}` }),
          labels,
          value
        }))
    )
    return Promise.resolve({ name, help, type, aggregator, values })
  },
  // The same numbers feed other exporters: emptying one registry does not set them back.
  reset() {}
})

interface Membership<Source> {
  readonly members: Members<Source>
  readonly collectors: ReadonlyArray<readonly [name: string, collector: Collector]>
}

/** One set of collectors per registry, shared by all its pools: a registry takes each metric name once. */
export interface Memberships<Source> {
  /**
   * Adds a pool, or answers what is in the way: another pool of its name (`null`), or the name of a foreign metric. What
   * was added more than once has to leave as often.
   */
  readonly join: (registry: Registry, member: Member<Source>) => { readonly metric: string | null } | undefined
  readonly leave: (registry: Registry, member: Member<Source>) => void
}

export const memberships = <Source>(rows: () => ReadonlyArray<Row<Source>>): Memberships<Source> => {
  const known = new WeakMap<Registry, Membership<Source>>()

  const of = (registry: Registry): Membership<Source> => {
    const existing = known.get(registry)
    if (existing !== undefined) return existing
    const members: Members<Source> = new Map()
    const membership = {
      members,
      collectors: rows().map((row) => [row.name, makeCollector(row, members)] as const)
    }
    known.set(registry, membership)
    return membership
  }

  return {
    join: (registry, member) => {
      const { collectors, members } = of(registry)
      const same = members.get(member.pool) ?? []
      if (same.some(({ source }) => source !== member.source)) return { metric: null }
      for (const [name, collector] of collectors) {
        const taken = registry.getSingleMetric(name)
        if (taken !== undefined && taken !== collector) return { metric: name }
      }
      members.set(member.pool, [...same, member])
      for (const [name, collector] of collectors) {
        // Also when other pools are there already: `registry.clear()` may have thrown the collectors out.
        if (registry.getSingleMetric(name) === collector) continue
        collector.name = name
        registry.registerMetric(collector as never)
      }
      return undefined
    },
    leave: (registry, member) => {
      const { collectors, members } = of(registry)
      const rest = (members.get(member.pool) ?? []).filter((other) => other !== member)
      if (rest.length > 0) members.set(member.pool, rest)
      else members.delete(member.pool)
      if (members.size > 0) return
      for (const [name, collector] of collectors) {
        if (registry.getSingleMetric(name) === collector) registry.removeSingleMetric(name)
      }
    }
  }
}
