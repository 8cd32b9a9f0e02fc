/** Who goes through a fault, and how each is called in tables. */

/** What a caller knows of a failed write from its error alone: that it was not made, or that it may have been. */
export type Fate = "NotRun" | "Unknown"

/** A failure as its caller sees it. */
export interface Trouble {
  readonly name: string
  readonly fate: Fate
}

/** One client, connected. */
export interface Contender {
  /** Reads a row by its primary key. */
  readonly read: (id: number) => Promise<unknown>
  /** Writes a row of this number, which is nobody else's. */
  readonly write: (id: number) => Promise<unknown>
  readonly trouble: (error: unknown) => Trouble
  readonly close: () => Promise<unknown>
}

export interface Setting {
  readonly url: string
  readonly max: number
}

export const text = {
  read: "SELECT id, name, price, note FROM item WHERE id = $1",
  write: "INSERT INTO receipt (id, what) VALUES ($1, 'seen')"
} as const

export const contenders = {
  pg: () => import("./nodePostgres.ts"),
  "postgres.js": () => import("./postgresJs.ts"),
  slonik: () => import("./slonik.ts"),
  PgClient: () => import("./pgClient.ts"),
  "effect-pg-pool": () => import("./ours.ts"),
  "effect-pg-pool, multiplexed": () => import("./ours.ts")
} as const

export type Name = keyof typeof contenders
export const names = Object.keys(contenders) as ReadonlyArray<Name>

/** Codes that are said before anything was sent: the server was not reached, or let nobody in. */
const beforeAnything = new Set(["ECONNREFUSED", "57P03", "53300"])

/** The first code in an error and what caused it, its message where there is none. */
export const troubleOf = (error: unknown): Trouble => {
  let at: unknown = error
  for (let depth = 0; depth < 8 && typeof at === "object" && at !== null; depth++) {
    const { cause, code, errors, reason } = at as {
      readonly cause?: unknown
      readonly code?: unknown
      readonly errors?: ReadonlyArray<unknown>
      readonly reason?: unknown
    }
    if (typeof code === "string") return { name: code, fate: beforeAnything.has(code) ? "NotRun" : "Unknown" }
    at = cause ?? errors?.[0] ?? reason
  }
  const name = error instanceof Error ? error.message : String(error)
  return { name: name.slice(0, 60), fate: "Unknown" }
}
