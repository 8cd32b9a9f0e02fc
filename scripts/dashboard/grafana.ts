/** The dashboard as Grafana reads it (schema version 39, Grafana 11 and later). */
import { type Panel, rows, variables } from "./panels.ts"

const datasource = { type: "prometheus", uid: "$datasource" }

const thresholds = ({ thresholds = [] }: Panel) => ({
  mode: "absolute",
  steps: thresholds.length === 0
    ? [{ color: "green", value: null }]
    : thresholds.map(([from, color], index) => ({ color, value: index === 0 ? null : from }))
})

const mappings = ({ meanings = [] }: Panel) =>
  meanings.length === 0 ? [] : [{
    type: "value",
    options: Object.fromEntries(
      meanings.map(({ color, text, value }, index) => [String(value), { text, color, index }])
    )
  }]

const targets = ({ kind, queries }: Panel) =>
  queries.map(({ expr, legend }, index) => ({
    refId: String.fromCharCode("A".charCodeAt(0) + index),
    datasource,
    editorMode: "code",
    expr,
    legendFormat: legend,
    range: true,
    format: kind === "heatmap" ? "heatmap" : "time_series"
  }))

const legend = { displayMode: "list", placement: "bottom", showLegend: true, calcs: [] }
const tooltip = { mode: "multi", sort: "desc" }

const byThreshold = (panel: Panel) => ({
  unit: panel.unit,
  color: { mode: "thresholds" },
  thresholds: thresholds(panel),
  mappings: mappings(panel)
})

const drawn = (panel: Panel) => {
  switch (panel.kind) {
    case "stat":
      return {
        fieldConfig: {
          defaults: byThreshold(panel),
          overrides: []
        },
        options: {
          colorMode: "value",
          graphMode: panel.meanings === undefined ? "area" : "none",
          justifyMode: "auto",
          orientation: "auto",
          textMode: "value",
          wideLayout: true,
          showPercentChange: false,
          percentChangeColorMode: "standard",
          reduceOptions: { calcs: ["lastNotNull"], fields: "", values: false }
        }
      }
    case "state-timeline":
      return {
        fieldConfig: {
          defaults: {
            ...byThreshold(panel),
            custom: { fillOpacity: 70, lineWidth: 0 }
          },
          overrides: []
        },
        options: { alignValue: "left", mergeValues: true, rowHeight: 0.9, showValue: "auto", legend, tooltip }
      }
    case "heatmap":
      return {
        fieldConfig: { defaults: {}, overrides: [] },
        options: {
          calculate: false,
          cellGap: 1,
          color: { mode: "scheme", fill: "dark-orange", scheme: "Spectral", steps: 64, exponent: 0.5, reverse: true },
          filterValues: { le: 1e-9 },
          legend: { show: true },
          rowsFrame: { layout: "auto" },
          tooltip: { mode: "single", yHistogram: false },
          yAxis: { unit: panel.unit, axisPlacement: "left" }
        }
      }
    case "timeseries":
      return {
        fieldConfig: {
          defaults: {
            unit: panel.unit,
            min: 0,
            ...(panel.max !== undefined && { max: panel.max }),
            color: { mode: "palette-classic" },
            custom: {
              drawStyle: "line",
              lineWidth: 1,
              fillOpacity: panel.stacked ? 30 : 8,
              showPoints: "auto",
              spanNulls: false,
              stacking: { mode: panel.stacked ? "normal" : "none", group: "A" }
            }
          },
          overrides: panel.limit === undefined ? [] : [{
            matcher: { id: "byName", options: panel.limit },
            properties: [
              { id: "custom.stacking", value: { mode: "none", group: "A" } },
              { id: "custom.fillOpacity", value: 0 },
              { id: "custom.lineStyle", value: { fill: "dash", dash: [8, 6] } },
              { id: "color", value: { mode: "fixed", fixedColor: "red" } }
            ]
          }]
        },
        options: { legend, tooltip }
      }
  }
}

const placed = () => {
  let id = 0
  let y = 0
  return rows.flatMap((row) => {
    const header = {
      id: ++id,
      type: "row",
      title: row.title,
      collapsed: false,
      gridPos: { x: 0, y: y++, w: 24, h: 1 },
      panels: []
    }
    let x = 0
    const panels = row.panels.map((panel) => {
      const gridPos = { x, y, w: panel.width, h: row.height }
      x += panel.width
      const { description, kind: type, title } = panel
      return { id: ++id, type, title, description, gridPos, datasource, targets: targets(panel), ...drawn(panel) }
    })
    y += row.height
    return [header, ...panels]
  })
}

const dashboard = () => ({
  uid: "effect-pg-pool",
  title: "PostgreSQL pools (effect-pg-pool)",
  description: "Pools of effect-pg-pool: how full, how slow, what fails, and what the circuit breaker makes of it.",
  tags: ["postgresql", "effect-pg-pool"],
  schemaVersion: 39,
  version: 1,
  editable: true,
  graphTooltip: 1,
  refresh: "30s",
  time: { from: "now-1h", to: "now" },
  timezone: "browser",
  annotations: { list: [] },
  links: [],
  templating: {
    list: [
      { name: "datasource", label: "Data source", type: "datasource", query: "prometheus", hide: 0, refresh: 1 },
      ...variables.map(({ label, name, query }) => ({
        name,
        label,
        type: "query",
        datasource,
        definition: query,
        query: { query, refId: name },
        refresh: 2,
        sort: 1,
        hide: 0,
        includeAll: true,
        allValue: ".*",
        multi: true,
        current: { text: ["All"], value: ["$__all"] }
      }))
    ]
  },
  panels: placed()
})

export const render = (): string => `${JSON.stringify(dashboard(), null, 2)}\n`
