/** Complaints about variables of the environment that were worded here, so that they hold no secret. */
import * as Config from "effect/Config"
import * as ConfigProvider from "effect/ConfigProvider"

const ours = new WeakSet<object>()

export const make = (message: string): Config.ConfigError => {
  const error = new Config.ConfigError(new ConfigProvider.SourceError({ message }))
  ours.add(error)
  return error
}

export const has = (error: unknown): boolean => typeof error === "object" && error !== null && ours.has(error)
