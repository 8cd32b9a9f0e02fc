/** The handlers that are compared, each in a file of its own in `handlers`. */
export interface Subject {
  /** Its file. */
  readonly name: string
  readonly title: string
}

export const subjects: ReadonlyArray<Subject> = [
  { name: "lambda", title: "`Serverless.lambda`" },
  { name: "barrel", title: "the same, from the barrel" },
  { name: "layer", title: "`Pg.layer` in a `ManagedRuntime`" },
  { name: "config", title: "the same, `Pg.layerConfig()`" },
  { name: "plain", title: "`PgClient.layer` (`@effect/sql-pg`)" },
  { name: "pg", title: "`pg`" },
  { name: "postgres", title: "`postgres`" }
]
