import { defineConfig } from "vitest/config"

export default defineConfig({
  resolve: {
    // `effect-pg-pool` means src, by the same list as for the type check.
    tsconfigPaths: true
  },
  test: {
    include: ["test/**/*.test.ts"],
    // One PostgreSQL server per run, shared by every file.
    globalSetup: ["test/globalSetup.ts"],
    pool: "forks",
    // Two busy processes plus the server: more only makes timing tests lie on a small machine.
    maxWorkers: 2,
    testTimeout: 60_000,
    hookTimeout: 60_000,
    teardownTimeout: 20_000,
    // What a pool logs about the faults of a test is of interest when the test fails.
    silent: "passed-only"
  }
})
