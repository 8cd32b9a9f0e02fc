import type { MetricsData } from "effect/observability/OtlpMetrics"

type Metric = MetricsData["resourceMetrics"][number]["scopeMetrics"][number]["metrics"][number]

/** What OTLP calls AGGREGATION_TEMPORALITY_DELTA. */
const delta = 1

const changed = (metric: Metric): ReadonlyArray<Metric> => {
  const { histogram, sum } = metric
  if (sum?.aggregationTemporality === delta) {
    const dataPoints = sum.dataPoints.filter(({ asDouble, asInt }) => Number(asDouble ?? asInt) !== 0)
    return dataPoints.length === 0 ? [] : [{ ...metric, sum: { ...sum, dataPoints } }]
  }
  if (histogram?.aggregationTemporality === delta) {
    const dataPoints = histogram.dataPoints.filter(({ count }) => count !== 0)
    return dataPoints.length === 0 ? [] : [{ ...metric, histogram: { ...histogram, dataPoints } }]
  }
  return [metric]
}

/**
 * Without the series in which nothing has happened: as deltas they say nothing, and they are nine tenths of what a pool has to
 * send after an invocation.
 */
export const withoutZeros = (data: MetricsData): MetricsData => ({
  resourceMetrics: data.resourceMetrics.map((resource) => ({
    ...resource,
    scopeMetrics: resource.scopeMetrics.map((scope) => ({ ...scope, metrics: scope.metrics.flatMap(changed) }))
  }))
})
