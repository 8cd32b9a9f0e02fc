import { afterEach, assert, beforeEach, describe, it, vi } from "@effect/vitest"
import * as Net from "node:net"

/** As in a process of its own: there is one registration in each. */
const registerAt = async (address: string): Promise<string | undefined> => {
  vi.resetModules()
  const { register } = await import("../src/internal/lambdaExtension.ts")
  process.env["AWS_LAMBDA_RUNTIME_API"] = address
  return register()
}

describe("an extension that cannot be registered", () => {
  const sockets = new Set<Net.Socket>()
  const silent = Net.createServer((socket) => sockets.add(socket.on("error", () => {})))

  beforeEach(() => new Promise<void>((resolve) => silent.listen(0, "127.0.0.1", resolve)))
  afterEach(() => {
    delete process.env["AWS_LAMBDA_RUNTIME_API"]
    for (const socket of sockets) socket.destroy()
    silent.close()
  })

  it("is given up when the platform does not answer", async () => {
    const { port } = silent.address() as Net.AddressInfo
    assert.strictEqual(await registerAt(`127.0.0.1:${port}`), "ETIMEDOUT")
    assert.strictEqual(sockets.size, 1)
  })

  it("throws nothing where the variable names no address", async () => {
    assert.strictEqual(await registerAt("127.0.0.1:99999999"), "ERR_INVALID_URL")
  })
})
