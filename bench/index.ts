// Runs the benchmarks, or one of them by its name. Each prints what it has measured.
//   npm run bench -- --only layer-cost
import { parseArgs } from "node:util"

const benchmarks: Readonly<Record<string, () => Promise<unknown>>> = {
  breaker: () => import("./breaker.ts"),
  cold: () => import("./cold.ts"),
  "layer-cost": () => import("./layerCost.ts")
}

const { values } = parseArgs({ options: { only: { type: "string" } } })
const names = values.only === undefined ? Object.keys(benchmarks) : [values.only]
for (const name of names) {
  const run = benchmarks[name]
  if (run === undefined) {
    console.error(`There is no benchmark "${name}", but there are: ${Object.keys(benchmarks).join(", ")}`)
    process.exit(2)
  }
  console.log(`# ${name}`)
  await run()
}
