import postgres from "postgres"

const sql = postgres(process.env["DATABASE_URL"]!, { max: 2 })

export const handler = () => sql<Array<{ readonly one: number }>>`SELECT 1 AS one`
