/** Where the routes of health are. */
import type { Paths, Route } from "./healthEndpoint.ts"

export interface Wishes {
  readonly prefix?: string | undefined
  readonly paths?: Readonly<Partial<Record<Route, string | false | undefined>>> | undefined
}

export interface BadPath {
  readonly option: string
  readonly value: unknown
  readonly allowed: string
}

const usual: Readonly<Record<Route, string>> = {
  database: "/health/database",
  livez: "/livez",
  readyz: "/readyz",
  metrics: "/metrics"
}

export const routes: ReadonlyArray<Route> = ["database", "livez", "readyz", "metrics"]

/** Each with a slash before it and none behind. */
export const resolve = ({ paths, prefix }: Wishes, hasMetrics: boolean): Paths => {
  const at = (route: Route): `/${string}` | undefined => {
    const path = paths?.[route] ?? usual[route]
    return path === false ? undefined : `/${`${prefix ?? ""}/${path}`.split("/").filter(Boolean).join("/")}`
  }
  return {
    database: at("database"),
    livez: at("livez"),
    readyz: at("readyz"),
    metrics: hasMetrics ? at("metrics") : undefined
  }
}

/** What is wrong, a compiler having looked at it or not. */
export const complaint = (wishes: Wishes, hasMetrics: boolean): BadPath | undefined => {
  const { paths = {}, prefix } = wishes
  if (prefix !== undefined && typeof prefix !== "string") {
    return { option: "prefix", value: prefix, allowed: "a path, such as \"/internal\"" }
  }
  for (const [route, path] of Object.entries(paths)) {
    const option = `paths.${route}`
    if (!routes.some((known) => known === route)) {
      return { option, value: path, allowed: `left out: there are the paths ${routes.join(", ")}` }
    }
    if (path !== undefined && path !== false && typeof path !== "string") {
      return { option, value: path, allowed: "a path, such as \"/healthz\", or false" }
    }
  }
  const resolved = resolve(wishes, hasMetrics)
  const taken = new Map<string, Route>()
  for (const route of routes) {
    const path = resolved[route]
    if (path === undefined) continue
    const other = taken.get(path)
    if (other !== undefined) {
      return { option: `paths.${route}`, value: path, allowed: `a path of its own: ${other} is answered there` }
    }
    taken.set(path, route)
  }
  return undefined
}
