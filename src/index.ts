/**
 * A serverless-friendly PostgreSQL pool for Effect: `import * as Pg from "effect-pg-pool"`.
 *
 * @since 0.1.0
 */
export * as Breaker from "./Breaker.ts"
export * as Credentials from "./Credentials.ts"
export * as Errors from "./Errors.ts"
export * as Executor from "./Executor.ts"
export * as Health from "./Health.ts"
export { fromEnvironment, layer, layerConfig, layerWithBreaker, withEnvironment } from "./Layer.ts"
export type { Options, Services } from "./Layer.ts"
export * as Metrics from "./Metrics.ts"
export * as Pool from "./Pool.ts"
export * as Schedule from "./Schedule.ts"
export * as Serverless from "./Serverless.ts"
