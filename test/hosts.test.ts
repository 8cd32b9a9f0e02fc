import { assert, describe, it } from "@effect/vitest"
import * as fc from "fast-check"
import * as Hosts from "../src/internal/hosts.ts"

const primary: Hosts.Role = { isStandby: false, isReadOnly: false }
const closed: Hosts.Role = { isStandby: false, isReadOnly: true }
const standby: Hosts.Role = { isStandby: true, isReadOnly: true }

const roleOf = (on: ReadonlyArray<string>, off: ReadonlyArray<string>) =>
  Hosts.roleBy((name) => on.includes(name) ? "on" : off.includes(name) ? "off" : undefined)

/** What hosts are, `undefined` for one that cannot be reached. */
type World = ReadonlyArray<Hosts.Role | undefined>

/** Searches as the connector does; the hosts in the order in which they were tried, and the one that was taken. */
const search = (hosts: Hosts.Hosts, world: World, now: number) => {
  const pass = Hosts.begin(hosts, now)
  const tried: Array<number> = []
  for (let host = Hosts.next(pass); host !== undefined; host = Hosts.next(pass)) {
    tried.push(host)
    assert.isAtMost(tried.length, 2 * world.length)
    const role = world[host]
    if (role === undefined) {
      Hosts.failed(hosts, host, now)
      continue
    }
    const answer = Hosts.answered(pass, host, hosts.attrs === "any" ? undefined : role, now)
    if (answer !== "Refused") return { tried, taken: host, hasMoved: answer === "Moved" }
  }
  return { tried, taken: undefined, hasMoved: false }
}

describe("what a server says of itself", () => {
  const [inStandby, readOnly] = Hosts.roleParameters
  it.each([
    ["a primary", [], [inStandby, readOnly], primary],
    ["a primary that is closed for writes", [readOnly], [inStandby], closed],
    ["a standby", [inStandby], [readOnly], standby],
    ["nothing, before PostgreSQL 14", [], [readOnly], undefined]
  ])("is %s", (_, on, off, role) => {
    assert.deepStrictEqual(roleOf(on, off), role)
  })

  it("is what targetSessionAttrs asks for, as libpq has it", () => {
    const table = Hosts.allSessionAttrs.map((attrs) => [
      attrs,
      ...[primary, closed, standby].map((role) => Hosts.fits(attrs, role))
    ])
    assert.deepStrictEqual(table, [
      ["any", true, true, true],
      ["read-write", true, false, false],
      ["read-only", false, true, true],
      ["primary", true, true, false],
      ["standby", false, false, true],
      // Any other will do when there is none.
      ["prefer-standby", false, false, true]
    ])
  })
})

describe("a search for the writer", () => {
  it("begins with the one that was found last", () => {
    const hosts = Hosts.make("read-write", 3)
    assert.deepStrictEqual(search(hosts, [standby, standby, primary], 0), {
      tried: [0, 1, 2],
      taken: 2,
      hasMoved: false
    })
    assert.deepStrictEqual(search(hosts, [standby, standby, primary], 1), { tried: [2], taken: 2, hasMoved: false })
  })

  it("says when it has moved, once", () => {
    const hosts = Hosts.make("primary", 2)
    search(hosts, [primary, standby], 0)
    assert.deepStrictEqual(search(hosts, [undefined, primary], 1), { tried: [0, 1], taken: 1, hasMoved: true })
    assert.deepStrictEqual(search(hosts, [undefined, primary], 2), { tried: [1], taken: 1, hasMoved: false })
  })

  it("asks those who answer before the one that has failed, which is asked again all the same", () => {
    const hosts = Hosts.make("read-write", 2)
    search(hosts, [primary, standby], 0)
    search(hosts, [undefined, standby], 1)
    assert.deepStrictEqual(search(hosts, [undefined, standby], 2).tried, [1, 0])
    assert.deepStrictEqual(search(hosts, [undefined, standby], 2 + Hosts.recheckAfter).tried, [1, 0])
    assert.strictEqual(search(hosts, [primary, standby], 3 + Hosts.recheckAfter).taken, 0)
  })
})

describe("a search for a standby", () => {
  it("takes turns among them", () => {
    const hosts = Hosts.make("standby", 3)
    const world: World = [standby, primary, standby]
    const taken = [0, 1, 2, 3, 4, 5].map((now) => search(hosts, world, now).taken)
    assert.deepStrictEqual(taken, [0, 2, 0, 2, 0, 2])
  })

  it("that is only preferred ends at the primary when there is none", () => {
    const hosts = Hosts.make("prefer-standby", 2)
    assert.deepStrictEqual(search(hosts, [primary, undefined], 0), { tried: [0, 1, 0], taken: 0, hasMoved: false })
  })

  it("that is only preferred does not wait for one that has just failed, until its back-off ends", () => {
    const hosts = Hosts.make("prefer-standby", 2)
    search(hosts, [primary, undefined], 0)
    assert.deepStrictEqual(search(hosts, [primary, undefined], 1).tried, [0])
    assert.strictEqual(search(hosts, [primary, standby], 2).taken, 0)
    assert.deepStrictEqual(search(hosts, [primary, standby], Hosts.recheckAfter), {
      tried: [1],
      taken: 1,
      hasMoved: false
    })
    assert.strictEqual(search(hosts, [primary, standby], Hosts.recheckAfter + 1).taken, 1)
  })
})

describe("a search for any host", () => {
  it("keeps to the order of the list, but for those that have just failed", () => {
    const hosts = Hosts.make("any", 3)
    assert.deepStrictEqual(search(hosts, [undefined, standby, primary], 0).tried, [0, 1])
    assert.deepStrictEqual(search(hosts, [undefined, standby, primary], 1).tried, [1])
    assert.deepStrictEqual(search(hosts, [primary, standby, primary], Hosts.recheckAfter).tried, [0])
  })
})

describe("every search", () => {
  const role = fc.constantFrom(primary, closed, standby, undefined)
  const world = fc.array(role, { minLength: 4, maxLength: 4 })
  const steps = fc.array(fc.record({ world, wait: fc.integer({ min: -20_000, max: 20_000 }) }), { maxLength: 12 })

  it("finds a host that fits if one is up, whatever is remembered and however the clock jumps", () => {
    fc.assert(
      fc.property(fc.constantFrom(...Hosts.allSessionAttrs), steps, (attrs, steps) => {
        const hosts = Hosts.make(attrs, 4)
        let now = 0
        for (const { wait, world } of steps) {
          now += wait
          const { taken, tried } = search(hosts, world, now)
          const suitable = world.flatMap((role, index) => role !== undefined && Hosts.fits(attrs, role) ? [index] : [])
          if (attrs === "prefer-standby") {
            assert.strictEqual(taken === undefined, world.every((role) => role === undefined))
          } else if (suitable.length > 0) {
            assert.include(suitable, taken)
          } else {
            assert.isUndefined(taken)
            assert.deepStrictEqual(tried.toSorted(), [0, 1, 2, 3])
          }
        }
      }),
      { numRuns: 2000 }
    )
  })

  it("of prefer-standby takes the primary only if each standby is away, or was a moment ago", () => {
    fc.assert(
      fc.property(steps, (steps) => {
        const hosts = Hosts.make("prefer-standby", 4)
        const downAt = new Map<number, number>()
        let now = 0
        for (const { wait, world } of steps) {
          now += Math.abs(wait)
          const { taken, tried } = search(hosts, world, now)
          for (const host of tried) if (world[host] === undefined) downAt.set(host, now)
          if (taken === undefined || world[taken]!.isStandby) continue
          for (const [host, role] of world.entries()) {
            if (role?.isStandby !== true) continue
            assert.isBelow(now - (downAt.get(host) ?? -Infinity), Hosts.recheckAfter)
          }
        }
      }),
      { numRuns: 2000 }
    )
  })

  it("asks a host once, or once more where nothing better was found", () => {
    fc.assert(
      fc.property(fc.constantFrom(...Hosts.allSessionAttrs), world, (attrs, world) => {
        const { tried } = search(Hosts.make(attrs, 4), world, 0)
        const twice = tried.filter((host, index) => tried.indexOf(host) !== index)
        assert.isAtMost(twice.length, attrs === "prefer-standby" ? 1 : 0)
      })
    )
  })
})
