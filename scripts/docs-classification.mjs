// Writes docs/classification.md. `test/classificationTable.test.ts` fails when that was forgotten.
import { writeFileSync } from "node:fs"
import { fileURLToPath } from "node:url"
import { render } from "./classification-table.ts"

writeFileSync(fileURLToPath(new URL("../docs/classification.md", import.meta.url)), render())
