/** A plausible shop, the same on every run: customers, products with skewed popularity, and a history of orders. */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import { count, line, seconds, Terminal } from "./terminal.ts"

export interface Shop {
  readonly customers: number
  readonly products: number
  /** Orders of the past have the ids from 1 to this; those of the workload come after. */
  readonly pastOrders: number
}

const customers = 12_000
const products = 1_000
const pastOrders = 40_000
const batch = 5_000

// None of the ids that clients generate has a unique constraint: a write that is applied twice must be seen, not refused.
const tables = [
  "CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL, email text NOT NULL, city text NOT NULL)",
  `CREATE TABLE products (id int PRIMARY KEY, name text NOT NULL, price int NOT NULL,
     initial_stock int NOT NULL, stock int NOT NULL CHECK (stock >= 0))`,
  "CREATE TABLE orders (id int NOT NULL, customer_id int NOT NULL, placed_on date NOT NULL, total int NOT NULL)",
  "CREATE TABLE order_items (order_id int NOT NULL, product_id int NOT NULL, quantity int NOT NULL, price int NOT NULL)",
  "CREATE TABLE payments (id int NOT NULL, order_id int NOT NULL, amount int NOT NULL)"
]

const indexes = [
  "CREATE INDEX ON orders (id)",
  "CREATE INDEX ON orders (customer_id)",
  "CREATE INDEX ON order_items (order_id)",
  "CREATE INDEX ON payments (id)",
  "ANALYZE customers, products, orders, order_items"
]

const words = (list: string): ReadonlyArray<string> => list.split(" ")
const firstNames = words(
  "Ada Alan Barbara Claude Donald Edsger Frances Grace Hedy Ivan Jean John Katherine Ken Leslie "
    + "Margaret Niklaus Peter Radia Robin Rosa Sophie Tony Vint Xin Yukihiro Zoe Amara Bjarne Chidi Dennis Emeka Fatima"
)
const lastNames = words(
  "Lovelace Turing Liskov Shannon Knuth Dijkstra Allen Hopper Lamarr Sutherland Bartik Backus Johnson "
    + "Thompson Lamport Hamilton Wirth Naur Perlman Milner Peterson Wilson Hoare Cerf Wang Matsumoto Okafor Ritchie Haddad"
)
const cities = words("Berlin Lagos Lima Lisbon Lyon Nairobi Osaka Oslo Porto Quito Riga Seoul Tallinn Toronto Utrecht")
const adjectives = words("Quiet Sturdy Folding Enamel Copper Woven Oak Travel Garden Double Little Nordic Steel Linen")
const things = words("Kettle Lamp Chair Blanket Teapot Shelf Basket Lantern Stool Mug Rug Clock Vase Apron Bench Tray")

/** Popularity is skewed, as in any shop: the best tenth of the products gets almost half of the sales. */
export const popular = (draw: number, among: number): number => 1 + Math.floor(among * draw ** 3)

const pick = <A>(list: ReadonlyArray<A>, draw: number): A => list[Math.floor(draw * list.length)]!

/** Most things cost a little, a few cost a lot; in cents, and always so many ninety-nine. */
const priceOf = (draw: number): number => Math.ceil(3 * Math.exp(draw * 4)) * 100 - 1

type Row = Readonly<Record<string, string | number>>

const generate = (draw: () => number) => {
  const priceList: Array<number> = []
  return {
    customer: (id: number): Row => {
      const name = `${pick(firstNames, draw())} ${pick(lastNames, draw())}`
      return {
        id,
        name,
        email: `${name.toLowerCase().replace(" ", ".")}.${id}@example.com`,
        city: pick(cities, draw())
      }
    },
    product: (id: number): Row => {
      const price = priceList[id] = priceOf(draw())
      const stock = 20_000 + Math.floor(draw() * 20_000)
      return { id, name: `${pick(adjectives, draw())} ${pick(things, draw())}`, price, initial_stock: stock, stock }
    },
    order: (id: number): { readonly order: Row; readonly items: ReadonlyArray<Row> } => {
      const items = Array.from({ length: 1 + Math.floor(draw() ** 2 * 6) }, () => {
        const product_id = popular(draw(), products)
        return { order_id: id, product_id, quantity: 1 + Math.floor(draw() ** 3 * 4), price: priceList[product_id]! }
      })
      const total = items.reduce((sum, item) => sum + item.quantity * item.price, 0)
      return {
        order: { id, customer_id: popular(draw(), customers), days_ago: 1 + Math.floor(draw() * 720), total },
        items
      }
    }
  }
}

const ids = (from: number, to: number): ReadonlyArray<number> =>
  Array.from({ length: to - from + 1 }, (_, index) => from + index)

/** Creates the tables and fills them: one statement for each few thousand rows. */
export const load = Effect.gen(function*() {
  const sql = yield* PgClient.PgClient
  const terminal = yield* Terminal
  const startedAt = yield* Clock.currentTimeMillis
  const random = yield* Random.Random
  const shop = generate(() => random.nextDoubleUnsafe())
  let rows = 0

  const insert = (table: string, columns: string, record: string, records: ReadonlyArray<Row>) =>
    sql`INSERT INTO ${sql(table)} SELECT ${sql.literal(columns)}
        FROM json_to_recordset(${sql.json(records)}::json) AS batch(${sql.literal(record)})`.pipe(
      Effect.andThen(Effect.suspend(() => {
        rows += records.length
        return terminal.live ? terminal.status(["dim", `  ${count(rows)} rows ...`]) : Effect.void
      }))
    )

  for (const statement of tables) yield* sql.unsafe(statement)
  yield* insert("customers", "*", "id int, name text, email text, city text", ids(1, customers).map(shop.customer))
  yield* insert(
    "products",
    "*",
    "id int, name text, price int, initial_stock int, stock int",
    ids(1, products).map(shop.product)
  )
  let items = 0
  for (let from = 1; from <= pastOrders; from += batch) {
    const orders = ids(from, Math.min(from + batch - 1, pastOrders)).map(shop.order)
    yield* insert(
      "orders",
      "id, customer_id, current_date - days_ago, total",
      "id int, customer_id int, days_ago int, total int",
      orders.map(({ order }) => order)
    )
    const itemRows = orders.flatMap(({ items }) => items)
    items += itemRows.length
    yield* insert("order_items", "*", "order_id int, product_id int, quantity int, price int", itemRows)
  }
  for (const statement of indexes) yield* sql.unsafe(statement)
  yield* terminal.endStatus
  const took = (yield* Clock.currentTimeMillis) - startedAt
  yield* line(["green", "✔ "], `A shop of ${count(rows)} rows, in ${seconds(took)}`)
  const orders = `${count(pastOrders)} orders with ${count(items)} items`
  yield* line(["dim", `  ${count(customers)} customers, ${count(products)} products, ${orders}`])
  return { customers, products, pastOrders } satisfies Shop
}).pipe(Random.withSeed("a plausible shop"))
