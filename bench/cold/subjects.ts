/** The handlers that are compared, each in a file of its own in `handlers`. */
export interface Subject {
  /** Its file. */
  readonly name: string
  readonly title: string
}

export const subjects: ReadonlyArray<Subject> = [
  { name: "lambda", title: "`Pg.Serverless.lambda`" },
  { name: "layer", title: "`Pg.layer` in a `ManagedRuntime`" },
  { name: "room", title: "the same, from `effect-pg-pool/Layer`" },
  { name: "config", title: "`Pg.layerConfig()`, from the environment" },
  { name: "plain", title: "`PgClient.layer` (`@effect/sql-pg`)" },
  { name: "pg", title: "`pg`" },
  { name: "postgres", title: "`postgres`" }
]
