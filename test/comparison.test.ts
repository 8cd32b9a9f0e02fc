import { assert, describe, it } from "@effect/vitest"
import { existsSync, readFileSync } from "node:fs"

const address = new URL("../docs/comparison.md", import.meta.url)
const page = readFileSync(address, "utf8")

interface Link {
  readonly to: string
  /** The title of a test. */
  readonly title: string | undefined
}

/** `[key]: file "title"`, by key. */
const definitions: ReadonlyMap<string, Link> = new Map(
  Array.from(
    page.matchAll(/^\[([^\]]+)\]: (\S+)(?: "(.*)")?$/gm),
    ([, key, to, title]) => [key!, { to: to!, title: title?.replaceAll("\\\"", "\"") }]
  )
)

const keysOf = (text: string): ReadonlyArray<string> =>
  Array.from(text.matchAll(/\[[^\]]+\]\[([^\]]+)\]/g), ([, key]) => key!)

/** `[text](file "title")` */
const inlineLinksOf = (text: string): ReadonlyArray<Link> =>
  Array.from(text.matchAll(/\]\(([^)\s]+)(?: "([^"]*)")?\)/g), ([, to, title]) => ({ to: to!, title }))

const linksOf = (text: string): ReadonlyArray<Link> => [
  ...inlineLinksOf(text),
  ...keysOf(text).flatMap((key) => definitions.get(key) ?? [])
]

const links = [...definitions.values(), ...inlineLinksOf(page)].filter(({ to }) => !/^(https?:|#)/.test(to))

const isThere = ({ to }: Link): boolean => existsSync(new URL(to, address))

/** Whether a string of the file begins with the title: it may go on with what differs from case to case. */
const namesTest = (link: Link): boolean => {
  if (!isThere(link)) return false
  const source = readFileSync(new URL(link.to, address), "utf8").replaceAll("\\\"", "\"")
  return [`"${link.title}`, `\`${link.title}`].some((start) => source.includes(start))
}

const ours = page
  .split("\n")
  .filter((line) => line.startsWith("| ") && !/^\|[ |:-]*\|$/.test(line))
  .map((line) => line.split("|").map((cell) => cell.trim()))
  .flatMap(([, row, cell]) => row === "" || row === undefined || cell === undefined ? [] : [{ row, cell }])

const none: ReadonlyArray<unknown> = []

describe("docs/comparison.md", () => {
  it("links to files that are there", () => {
    assert.isAbove(links.length, 100)
    assert.deepStrictEqual(links.filter((link) => !isThere(link)), none)
  })

  it("names tests that are there", () => {
    const named = links.filter(({ title }) => title !== undefined)
    assert.isAbove(named.length, 100)
    assert.deepStrictEqual(named.filter((link) => !namesTest(link)), none)
  })

  it("defines the links that it uses, and no others", () => {
    const used = new Set(keysOf(page))
    assert.deepStrictEqual([...used].filter((key) => !definitions.has(key)), none)
    assert.deepStrictEqual([...definitions.keys()].filter((key) => !used.has(key)), none)
  })

  it("names the test wherever it links from the column of this pool", () => {
    assert.isAbove(ours.length, 90)
    const unnamed = ours.flatMap(({ cell, row }) =>
      linksOf(cell).filter(({ title }) => title === undefined).map(({ to }) => `${row}: ${to}`)
    )
    assert.deepStrictEqual(unnamed, none)
  })

  it("says the same of this pool in each of its tables", () => {
    const said = new Map(ours.map(({ cell, row }) => [row, cell]))
    assert.deepStrictEqual(ours.filter(({ cell, row }) => said.get(row) !== cell), none)
  })
})
