// For `node --import`: the package's own name means src here, as it does for the tests, so that nothing has to be built.
import { registerHooks } from "node:module"

registerHooks({
  resolve(specifier, context, next) {
    const room = /^effect-pg-pool(?:\/(\w+))?$/.exec(specifier)
    if (room === null) return next(specifier, context)
    const file = room[1] === undefined ? "index" : room[1] === "testing" ? "testing/index" : room[1]
    return next(new URL(`../src/${file}.ts`, import.meta.url).href, context)
  }
})
