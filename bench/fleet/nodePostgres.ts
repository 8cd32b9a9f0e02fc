/**
 * `pg` as its documentation has it for functions: one pool outside of the handler, small, with listeners for errors of
 * clients; more than one client where the handler asks two things at once.
 */
import pg from "pg"
import { type Environment, killed, texts } from "./environment.ts"
import type { House } from "./order.ts"

export const make = (
  { deadline, url }: House,
  { keeps, max }: { readonly max: number; readonly keeps: boolean }
): Environment => {
  const open = () => {
    const clients = new Set<pg.PoolClient>()
    const pool = new pg.Pool({ connectionString: url, max, idleTimeoutMillis: 10_000, connectionTimeoutMillis: 10_000 })
    pool.on("connect", (client) => {
      clients.add(client)
      // The pool listens to idle clients alone; one that is lent would end the process.
      client.on("error", () => {})
    })
    pool.on("remove", (client) => clients.delete(client))
    pool.on("error", () => {})
    return { pool, clients }
  }
  let current: ReturnType<typeof open> | undefined
  /** The platform ends the process: the kernel closes its sockets. */
  const end = () => {
    const ended = current
    current = undefined
    for (const client of ended?.clients ?? []) {
      ;(client as unknown as { readonly connection: { readonly stream: { readonly destroy: () => void } } }).connection
        .stream.destroy()
    }
    ended?.pool.end().catch(() => {})
  }
  const invoke = async (order: number) => {
    const { pool } = current ??= open()
    if (keeps) {
      await Promise.all([pool.query(texts.read, [order]), pool.query(texts.read, [order + 1])])
      await pool.query(texts.write, [order])
      return
    }
    const client = await pool.connect()
    try {
      await client.query(texts.read, [order])
      await client.query(texts.read, [order + 1])
      await client.query(texts.write, [order])
    } finally {
      client.release(true)
    }
  }
  return {
    invoke: (order) => killed(invoke(order), deadline, end),
    dispose: async () => end()
  }
}
