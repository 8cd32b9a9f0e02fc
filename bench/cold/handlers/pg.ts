import pg from "pg"

const pool = new pg.Pool({ connectionString: process.env["DATABASE_URL"], max: 2 })

export const handler = async () => (await pool.query<{ readonly one: number }>("SELECT 1 AS one")).rows
