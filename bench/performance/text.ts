/** Figures and tables as they are printed on the page. */

export const whole = (value: number): string => Math.round(value).toLocaleString("en-US")

/** Three digits, more only where the number itself has them. */
export const brief = (value: number): string =>
  Math.abs(value) >= 100 ? whole(value) : value.toFixed(Math.abs(value) >= 10 ? 1 : 2)

export const orDash = (value: number | null | undefined, print: (value: number) => string): string =>
  value === null || value === undefined ? "–" : print(value)

/** Aligned as the formatter has it; all columns but the first are figures, unless `texts` names them. */
export const table = (
  head: ReadonlyArray<string>,
  body: ReadonlyArray<ReadonlyArray<string>>,
  texts: ReadonlyArray<number> = [0]
): string => {
  const widths = head.map((_, column) => Math.max(3, ...[head, ...body].map((row) => row[column]!.length)))
  const line = (row: ReadonlyArray<string>) =>
    `| ${
      row.map((
        cell,
        column
      ) => (texts.includes(column) ? cell.padEnd(widths[column]!) : cell.padStart(widths[column]!)))
        .join(" | ")
    } |`
  const rule = `| ${
    widths.map((width, column) => (texts.includes(column) ? "-".repeat(width) : `${"-".repeat(width - 1)}:`)).join(
      " | "
    )
  } |`
  return [line(head), rule, ...body.map(line)].join("\n")
}

/** The same Markdown with its tables aligned. */
export const aligned = (markdown: string): string =>
  markdown.replaceAll(/(?:^\|.*\|$\n?){3,}/gm, (found) => {
    const [head, rule, ...body] = found.trimEnd().split("\n").map((line) =>
      line.slice(1, -1).split("|").map((cell) => cell.trim())
    )
    const texts = rule!.flatMap((cell, column) => (cell.endsWith(":") ? [] : [column]))
    return `${table(head!, body, texts)}${found.endsWith("\n") ? "\n" : ""}`
  })
