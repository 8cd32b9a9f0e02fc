import { readFileSync } from "node:fs"

/** The page that helps people to move here. */
export const page = readFileSync(new URL("../../docs/migrating.md", import.meta.url), "utf8")

type Row = Readonly<Record<string, string>>

const cellsOf = (line: string): ReadonlyArray<string> =>
  line.trim().slice(1, -1).split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"))

/** Every table, as rows by heading. */
export const tables: ReadonlyArray<ReadonlyArray<Row>> = Array.from(
  page.matchAll(/(?:^\|.*\|\n)+/gm),
  ([table]) => {
    const [heading, , ...lines] = table.trimEnd().split("\n").map(cellsOf)
    return lines.map((cells) => Object.fromEntries(heading!.map((name, index) => [name, cells[index] ?? ""])))
  }
)

/** The rows of the tables that have all of these headings. */
export const rowsWith = (...headings: ReadonlyArray<string>): ReadonlyArray<Row> =>
  tables.flatMap((rows) => rows.filter((row) => headings.every((heading) => row[heading] !== undefined)))

/** What stands between backticks. */
export const spansOf = (text: string): ReadonlyArray<string> =>
  Array.from(text.matchAll(/(?<!`)`([^`]+)`(?!`)/g), ([, span]) => span!)

/** What the cell says, if it is code and nothing else. */
export const codeOf = (cell: string): string | undefined => /^`([^`]+)`$/.exec(cell)?.[1]
