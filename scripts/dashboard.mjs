// Writes dashboards/grafana.json. `test/dashboard.test.ts` fails when that was forgotten.
import { writeFileSync } from "node:fs"
import { fileURLToPath } from "node:url"
import { render } from "./dashboard/grafana.ts"

writeFileSync(fileURLToPath(new URL("../dashboards/grafana.json", import.meta.url)), render())
