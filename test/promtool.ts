import { assert } from "@effect/vitest"
import { spawnSync } from "node:child_process"

/** What `promtool` has to complain of: nothing, or its words. */
export const promtool = (args: ReadonlyArray<string>, input = ""): string => {
  const { error, status, stderr, stdout } = spawnSync("promtool", args, { input, encoding: "utf8", maxBuffer: 1e8 })
  if (error !== undefined) {
    assert.fail(
      `promtool cannot be run (${error.message}): install the Debian package prometheus (brew install prometheus)`
    )
  }
  return status === 0 ? "" : `exit code ${status}\n${stdout}${stderr}`
}

/** What Prometheus' own linter has to say of a page of metrics: nothing, or its complaints. */
export const complaintsAbout = (page: string): string => promtool(["check", "metrics"], page)
