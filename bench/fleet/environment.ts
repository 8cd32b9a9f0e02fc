/** One environment of a serverless platform, as a client lives in it. Invocations come one after another. */
import * as Effect from "effect/Effect"
import * as SqlClient from "effect/sql/SqlClient"

export interface Environment {
  /** One invocation; rejects with what its caller gets. */
  readonly invoke: (order: number) => Promise<void>
  readonly dispose: () => Promise<void>
}

/** The platform's answer to an invocation that took too long; it ends the environment with it. */
class InvocationKilled extends Error {
  override readonly name = "InvocationKilled"
}

export const texts = {
  read: "SELECT total FROM orders WHERE id = $1",
  write: "UPDATE orders SET total = total + 1 WHERE id = $1"
}

/** What the handler does: two reads at once, then a write. */
export const handler = (order: number) =>
  Effect.gen(function*() {
    const sql = yield* SqlClient.SqlClient
    const read = (id: number) => sql`SELECT total FROM orders WHERE id = ${id}`
    yield* Effect.all([read(order), read(order + 1)], { concurrency: "unbounded" })
    yield* sql`UPDATE orders SET total = total + 1 WHERE id = ${order}`
  })

/** Ends what is frozen or slow from outside: `end` is not waited for. */
export const killed = async (work: Promise<unknown>, deadline: number, end: () => void): Promise<void> => {
  let timer: NodeJS.Timeout | undefined
  const kill = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      reject(new InvocationKilled(`not done within ${deadline} ms`))
      end()
    }, deadline)
  })
  try {
    await Promise.race([work, kill])
  } finally {
    clearTimeout(timer)
  }
}
