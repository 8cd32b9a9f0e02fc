/** What a load run prints while it runs. */
import type { LoadRow } from "../performance/row.ts"

export const head =
  "suite        contender                      size callers max     q/s  ratio       p50       p99  client  server   rss errors"

const figure = (value: number | null, digits: number, width: number): string =>
  (value === null ? "-" : value.toFixed(digits)).padStart(width)

export const show = (row: LoadRow): string =>
  [
    row.suite.padEnd(12),
    row.contender.padEnd(28),
    figure(row.size, 0, 6),
    figure(row.callers, 0, 7),
    figure(row.max, 0, 3),
    figure(row.qps, 0, 7),
    figure(row.ratioToPgClient, 2, 6),
    figure(row.p50Ms, 2, 9),
    figure(row.p99Ms, 2, 9),
    figure(row.clientCpuUs, 1, 7),
    figure(row.serverCpuUs, 1, 7),
    figure(row.rssMb, 0, 5),
    figure(row.errors, 0, 6)
  ].join(" ")
