/** Many shoppers at once: reads that may be repeated, payments in one statement, and orders in a transaction. */
import * as Pg from "effect-pg-pool"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Random from "effect/Random"
import * as Schema from "effect/Schema"
import * as SqlClient from "effect/sql/SqlClient"
import { popular, type Shop } from "./dataset.ts"
import type * as Ledger from "./ledger.ts"
import { nameOf } from "./ledger.ts"

export interface Options {
  readonly shop: Shop
  readonly shoppers: number
  /** How long a shopper thinks between two calls, on average, in milliseconds. */
  readonly thinkTime: number
  readonly payments: Ledger.Ledger
  readonly orders: Ledger.Ledger
  readonly succeeded: () => void
  readonly failed: (name: string) => void
}

export interface Workload {
  /** Lets every call that is under way come to its end; what has none after ten seconds is interrupted. */
  readonly stop: Effect.Effect<void>
}

/** The shop itself says no: the transaction is rolled back, and nothing is wrong. */
class SoldOut extends Schema.TaggedError<SoldOut>("demo/SoldOut")("SoldOut", { product: Schema.Int }) {}

export const start = Effect.fnUntraced(function*(options: Options) {
  const { orders, payments, shop } = options
  const sql = yield* SqlClient.SqlClient
  const executor = yield* Pg.Executor.Executor
  const random = yield* Random.Random
  const draw = () => random.nextDoubleUnsafe()
  const anyOrder = () => 1 + Math.floor(draw() * shop.pastOrders)

  const browse = Effect.suspend(() => {
    const dice = draw()
    if (dice < 0.5) return sql`SELECT name, price, stock FROM products WHERE id = ${popular(draw(), shop.products)}`
    if (dice < 0.8) {
      return sql`SELECT id, placed_on, total FROM orders WHERE customer_id = ${popular(draw(), shop.customers)}
                 ORDER BY id DESC LIMIT 10`
    }
    return sql`SELECT name, quantity, order_items.price FROM order_items JOIN products ON products.id = product_id
               WHERE order_id = ${anyOrder()}`
  })

  // A read does no harm when it runs twice, and says so: the pool may then repeat it even when its answer was lost.
  const read = executor.run(browse, { idempotent: true })

  const pay = payments.record((id) =>
    executor.run(
      sql`INSERT INTO payments (id, order_id, amount) VALUES (${id}, ${anyOrder()}, ${Math.ceil(draw() * 9999)})`
    )
  )

  const basket = () => {
    const quantities = new Map<number, number>()
    for (let n = 1 + Math.floor(draw() * 3); n > 0; n--) {
      quantities.set(popular(draw(), shop.products), 1 + Math.floor(draw() ** 3 * 4))
    }
    // In one order for everybody, so that two shoppers never wait for each other.
    return Array.from(quantities).sort(([a], [b]) => a - b)
  }

  const order = orders.record((id) =>
    Effect.suspend(() => {
      const wanted = basket()
      const customer = popular(draw(), shop.customers)
      return Effect.gen(function*() {
        let total = 0
        for (const [product, quantity] of wanted) {
          const [item] = yield* sql<{ price: number }>`
            WITH taken AS (
              UPDATE products SET stock = stock - ${quantity} WHERE id = ${product} AND stock >= ${quantity}
              RETURNING price
            )
            INSERT INTO order_items (order_id, product_id, quantity, price)
            SELECT ${id}::int, ${product}::int, ${quantity}::int, price FROM taken RETURNING price`
          if (item === undefined) return yield* new SoldOut({ product })
          total += quantity * item.price
        }
        yield* sql`INSERT INTO orders (id, customer_id, placed_on, total) VALUES (${id}, ${customer}, current_date, ${total})`
      }).pipe(sql.withTransaction, (transaction) => executor.run(transaction))
    })
  )

  const call = Effect.suspend((): Effect.Effect<unknown, unknown> => {
    const dice = draw()
    return dice < 0.6 ? read : dice < 0.85 ? pay : order
  })

  const shopHours = { open: true }
  const shopper = Effect.gen(function*() {
    while (shopHours.open) {
      yield* Effect.sleep(-Math.log(1 - draw()) * options.thinkTime)
      yield* Effect.matchEffect(call, {
        onSuccess: () => Effect.sync(options.succeeded),
        onFailure: (error) => {
          if (error instanceof SoldOut) return Effect.void
          options.failed(nameOf(error))
          // Who was shown an error does not click again at once.
          return Effect.sleep(100 + draw() * 200)
        }
      })
    }
  })

  const fibers = yield* Effect.forEach(
    Array.from({ length: options.shoppers }),
    () => Effect.forkScoped(shopper)
  )
  return {
    stop: Effect.suspend(() => {
      shopHours.open = false
      return Effect.timeoutOption(Fiber.awaitAll(fibers), "10 seconds")
    }).pipe(Effect.andThen(Fiber.interruptAll(fibers)))
  } satisfies Workload
})
