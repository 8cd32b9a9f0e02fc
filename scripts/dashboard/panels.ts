/** What the dashboard shows: rows of panels and their questions, for Grafana and for the pictures in docs/. */

export interface Query {
  readonly expr: string
  readonly legend: string
}

/** A colour from a value on. */
type Threshold = readonly [from: number, color: Color]
export type Color = "green" | "yellow" | "orange" | "red" | "purple" | "text"

/** What a value is called. */
export interface Meaning {
  readonly value: number
  readonly text: string
  readonly color: Color
}

export interface Panel {
  readonly title: string
  /** One sentence: what it tells, and what is bad. */
  readonly description: string
  readonly kind: "stat" | "timeseries" | "heatmap" | "state-timeline"
  /** Grafana's name of the unit. */
  readonly unit: "short" | "s" | "percentunit" | "ops"
  /** Of the 24 columns. */
  readonly width: number
  readonly queries: ReadonlyArray<Query>
  /** The series are parts of a whole. */
  readonly stacked?: true
  /** The legend of a query that is a limit: a dashed line above the others. */
  readonly limit?: string
  readonly max?: number
  readonly thresholds?: ReadonlyArray<Threshold>
  readonly meanings?: ReadonlyArray<Meaning>
}

export interface Row {
  readonly title: string
  readonly height: number
  readonly panels: ReadonlyArray<Panel>
}

const chosen = `job=~"$job",instance=~"$instance",pool=~"$pool"`
const series = (name: string, matchers = ""): string => `${name}{${chosen}${matchers && `,${matchers}`}}`
const rate = (name: string, matchers?: string): string => `rate(${series(name, matchers)}[$__rate_interval])`

const quantile = (share: number, name: string, by: string, matchers?: string): string =>
  `histogram_quantile(${share}, sum by (${by}) (${rate(`${name}_bucket`, matchers)}))`

/** p50, p95 and p99 of a histogram, one of each for each pool. */
const quantiles = (name: string): ReadonlyArray<Query> =>
  [0.5, 0.95, 0.99].map((share) => ({
    expr: quantile(share, name, "le, pool"),
    legend: `{{pool}} p${share * 100}`
  }))

const used = `sum without (state) (${series("db_pool_connections", `state="used"`)})`
const utilisation = `${used} / ${series("db_pool_connections_max")}`

const atFault = `error_type!~"Rejected|Contention"`
/** Queries that failed through no fault of their own, of all that were begun, those that got no session included. */
const errorRatio = (by: string): string =>
  `sum${by} (${rate("db_query_errors_total", atFault)}) / sum${by} (${rate("db_query_duration_seconds_count")} or ${
    rate("db_query_errors_total", `operation="CHECKOUT"`)
  })`

const breakerStates: ReadonlyArray<Meaning & { readonly state: string }> = [
  { value: 0, state: "closed", text: "Closed", color: "green" },
  { value: 1, state: "half_open", text: "Half-open", color: "yellow" },
  { value: 2, state: "open", text: "Open", color: "red" },
  { value: 3, state: "isolated", text: "Isolated", color: "purple" },
  { value: 4, state: "disabled", text: "Disabled", color: "text" }
]

/** The number of the state that the breaker is in. Only one of the parts is not 0. */
const breakerState = (by: string): string =>
  `sum by (${by}) (${
    breakerStates.filter(({ value }) => value > 0)
      .map(({ state, value }) => `${value} * ${series("db_circuit_breaker_state", `state="${state}"`)}`)
      .join(" or ")
  })`

const overview: ReadonlyArray<Panel> = [
  {
    title: "Database",
    description: "Whether the last evidence says that every chosen pool can use its database.",
    kind: "stat",
    unit: "short",
    width: 3,
    queries: [{ expr: `min(${series("db_up")})`, legend: "up" }],
    meanings: [{ value: 0, text: "Down", color: "red" }, { value: 1, text: "Up", color: "green" }]
  },
  {
    title: "Circuit breaker",
    description: "The state of the worst breaker; while one is open, its calls fail at once and ask nothing.",
    kind: "stat",
    unit: "short",
    width: 3,
    queries: [{ expr: `max(${breakerState("job, instance, pool")})`, legend: "state" }],
    meanings: breakerStates
  },
  {
    title: "Utilisation",
    description: "Connections in use, of those that the fullest pool may have; an alert fires above 90 %.",
    kind: "stat",
    unit: "percentunit",
    width: 3,
    queries: [{ expr: `max(${utilisation})`, legend: "used of max" }],
    thresholds: [[0, "green"], [0.8, "orange"], [0.9, "red"]]
  },
  {
    title: "Waiting",
    description: "Callers who wait for a connection; an alert fires above 10.",
    kind: "stat",
    unit: "short",
    width: 3,
    queries: [{ expr: `sum(${series("db_pool_pending_requests")})`, legend: "callers" }],
    thresholds: [[0, "green"], [1, "orange"], [10, "red"]]
  },
  {
    title: "Query p95",
    description: "95 % of the queries take no longer than this, estimated from the histogram.",
    kind: "stat",
    unit: "s",
    width: 3,
    queries: [{ expr: quantile(0.95, "db_query_duration_seconds", "le"), legend: "p95" }],
    thresholds: [[0, "green"], [0.1, "orange"], [0.25, "red"]]
  },
  {
    title: "Under 100 ms",
    description:
      "Share of the successful queries that took at most 100 ms; exact, since that is a bound of the histogram.",
    kind: "stat",
    unit: "percentunit",
    width: 3,
    queries: [{
      expr: `sum(${rate("db_query_duration_seconds_bucket", `outcome="ok",le="0.1"`)}) / sum(${
        rate("db_query_duration_seconds_count", `outcome="ok"`)
      })`,
      legend: "share"
    }],
    thresholds: [[0, "red"], [0.95, "orange"], [0.99, "green"]]
  },
  {
    title: "Errors",
    description: "Share of the queries that failed through no fault of their own; the objective allows 0.1 %.",
    kind: "stat",
    unit: "percentunit",
    width: 3,
    queries: [{ expr: errorRatio(""), legend: "share" }],
    thresholds: [[0, "green"], [0.001, "orange"], [0.05, "red"]]
  },
  {
    title: "Retry budget",
    description: "Tokens left in the emptiest retry budget; below 1, failures are not retried.",
    kind: "stat",
    unit: "short",
    width: 3,
    queries: [{ expr: `min(${series("db_retry_budget_tokens")})`, legend: "tokens" }],
    thresholds: [[0, "red"], [1, "orange"], [5, "green"]]
  }
]

const connections: ReadonlyArray<Panel> = [
  {
    title: "Connections by state",
    description: "What the connections do; when all up to the limit are in use, callers wait.",
    kind: "timeseries",
    unit: "short",
    width: 12,
    stacked: true,
    limit: "max",
    queries: [
      ...["used", "idle", "connecting"].map((state) => ({
        expr: `sum(${series("db_pool_connections", `state="${state}"`)})`,
        legend: state
      })),
      { expr: `sum(${series("db_pool_connections_max")})`, legend: "max" }
    ]
  },
  {
    title: "Utilisation",
    description: "Connections in use, of those that each pool may have; above 90 % for 5 minutes an alert fires.",
    kind: "timeseries",
    unit: "percentunit",
    width: 6,
    max: 1,
    queries: [{ expr: utilisation, legend: "{{pool}} {{instance}}" }]
  },
  {
    title: "Callers waiting",
    description: "Callers who wait for a connection; above 10 for 2 minutes an alert fires.",
    kind: "timeseries",
    unit: "short",
    width: 6,
    queries: [{ expr: series("db_pool_pending_requests"), legend: "{{pool}} {{instance}}" }]
  }
]

const times: ReadonlyArray<Panel> = [
  {
    title: "Waiting for a connection",
    description: "Time from asking for a connection to holding one, or to giving up; it grows before anything fails.",
    kind: "timeseries",
    unit: "s",
    width: 6,
    queries: quantiles("db_pool_acquire_duration_seconds")
  },
  {
    title: "How waiting ended",
    description: "Checkouts per second by outcome; anything but acquired reached a caller as a failure.",
    kind: "timeseries",
    unit: "ops",
    width: 6,
    queries: [{ expr: `sum by (outcome) (${rate("db_pool_acquire_duration_seconds_count")})`, legend: "{{outcome}}" }]
  },
  {
    title: "Holding a connection",
    description: "Time for which callers keep a connection; if it is long, others wait.",
    kind: "timeseries",
    unit: "s",
    width: 6,
    queries: quantiles("db_pool_use_duration_seconds")
  },
  {
    title: "Opening a connection",
    description: "Time to connect and to log in, failures included; slow logins make every burst of load slow.",
    kind: "timeseries",
    unit: "s",
    width: 6,
    queries: quantiles("db_pool_connect_duration_seconds")
  }
]

const queries: ReadonlyArray<Panel> = [
  {
    title: "Query latency",
    description: "Time from sending a statement to its answer, waiting for a connection left out.",
    kind: "timeseries",
    unit: "s",
    width: 6,
    queries: quantiles("db_query_duration_seconds")
  },
  {
    title: "Where the queries are",
    description: "Queries by how long they took: two bands tell of two kinds of query, which no percentile shows.",
    kind: "heatmap",
    unit: "s",
    width: 6,
    queries: [{
      expr: `sum by (le) (increase(${series("db_query_duration_seconds_bucket")}[$__rate_interval]))`,
      legend: "{{le}}"
    }]
  },
  {
    title: "p95 by operation",
    description: "95 % of the statements of a kind take no longer than this; a slow COMMIT is the server's disk.",
    kind: "timeseries",
    unit: "s",
    width: 6,
    queries: [{ expr: quantile(0.95, "db_query_duration_seconds", "le, operation"), legend: "{{operation}}" }]
  },
  {
    title: "Queries by operation",
    description: "Statements per second by their first word; apart from them, those that nobody waited for any more.",
    kind: "timeseries",
    unit: "ops",
    width: 6,
    stacked: true,
    queries: [
      {
        expr: `sum by (operation) (${rate("db_query_duration_seconds_count", `outcome!="interrupted"`)})`,
        legend: "{{operation}}"
      },
      { expr: `sum(${rate("db_query_duration_seconds_count", `outcome="interrupted"`)})`, legend: "interrupted" }
    ]
  }
]

const failures: ReadonlyArray<Panel> = [
  {
    title: "Error ratio",
    description:
      "Share of the queries that failed through no fault of their own; above 5 % for 5 minutes an alert fires.",
    kind: "timeseries",
    unit: "percentunit",
    width: 6,
    queries: [{ expr: errorRatio(" by (pool)"), legend: "{{pool}}" }]
  },
  {
    title: "Errors by kind",
    description: "Failures per second by their kind: Rejected and Contention are the program's, the rest is trouble.",
    kind: "timeseries",
    unit: "ops",
    width: 6,
    stacked: true,
    queries: [{ expr: `sum by (error_type) (${rate("db_query_errors_total")})`, legend: "{{error_type}}" }]
  },
  {
    title: "Retries by reason",
    description: "Attempts after the first, per second: failures that callers did not get to see.",
    kind: "timeseries",
    unit: "ops",
    width: 6,
    stacked: true,
    queries: [{ expr: `sum by (reason) (${rate("db_query_retries_total")})`, legend: "{{reason}}" }]
  },
  {
    title: "Retry budget",
    description: "Tokens left; a retry costs 1 or 2, a success brings back a tenth, and below 1 nothing is retried.",
    kind: "timeseries",
    unit: "short",
    width: 6,
    queries: [{ expr: series("db_retry_budget_tokens"), legend: "{{pool}} {{instance}}" }]
  }
]

const breaker: ReadonlyArray<Panel> = [
  {
    title: "Circuit breaker",
    description: "The state of each breaker; open means that calls fail at once and the database is left alone.",
    kind: "state-timeline",
    unit: "short",
    width: 12,
    queries: [{ expr: breakerState("instance, pool"), legend: "{{pool}} {{instance}}" }],
    meanings: breakerStates
  },
  {
    title: "Transitions",
    description: "Changes of state by the state entered; many openings in a row are a database that comes and goes.",
    kind: "timeseries",
    unit: "short",
    width: 6,
    queries: [{
      expr: `sum by (to) (increase(${series("db_circuit_breaker_transitions_total")}[$__rate_interval]))`,
      legend: "{{to}}"
    }]
  },
  {
    title: "Rejected calls",
    description: "Calls per second that the breaker turned away without asking the database.",
    kind: "timeseries",
    unit: "ops",
    width: 6,
    stacked: true,
    queries: [{ expr: `sum by (reason) (${rate("db_circuit_breaker_rejections_total")})`, legend: "{{reason}}" }]
  }
]

const churn: ReadonlyArray<Panel> = [
  {
    title: "Connections opened and closed",
    description: "Openings and closings per second, the latter by reason: in a healthy pool they are rare.",
    kind: "timeseries",
    unit: "ops",
    width: 8,
    queries: [
      { expr: `sum(${rate("db_pool_connections_opened_total")})`, legend: "opened" },
      { expr: `sum by (reason) (${rate("db_pool_connections_closed_total")})`, legend: "closed: {{reason}}" }
    ]
  },
  {
    title: "Checkouts that failed",
    description: "Callers per second who got no connection, by the error that they got instead.",
    kind: "timeseries",
    unit: "ops",
    width: 8,
    stacked: true,
    queries: [{ expr: `sum by (error_type) (${rate("db_pool_acquire_errors_total")})`, legend: "{{error_type}}" }]
  },
  {
    title: "Timeouts and failed connects",
    description: "Callers who gave up waiting, and attempts to connect that failed, per second.",
    kind: "timeseries",
    unit: "ops",
    width: 8,
    queries: [
      { expr: `sum(${rate("db_pool_acquire_timeouts_total")})`, legend: "acquire timeouts" },
      {
        expr: `sum(${rate("db_pool_connect_duration_seconds_count", `outcome="error"`)})`,
        legend: "failed connects"
      }
    ]
  }
]

export const rows: ReadonlyArray<Row> = [
  { title: "Overview", height: 4, panels: overview },
  { title: "Connections", height: 8, panels: connections },
  { title: "Waiting, holding, opening", height: 8, panels: times },
  { title: "Queries", height: 8, panels: queries },
  { title: "Failures", height: 8, panels: failures },
  { title: "Circuit breaker", height: 8, panels: breaker },
  { title: "Churn", height: 8, panels: churn }
]

/** What is chosen at the top of the dashboard: each narrows down the next. */
export const variables: ReadonlyArray<{ readonly name: string; readonly label: string; readonly query: string }> = [
  { name: "job", label: "Job", query: "label_values(db_pool_connections_max, job)" },
  { name: "instance", label: "Instance", query: `label_values(db_pool_connections_max{job=~"$job"}, instance)` },
  {
    name: "pool",
    label: "Pool",
    query: `label_values(db_pool_connections_max{job=~"$job",instance=~"$instance"}, pool)`
  }
]
