/**
 * What a test against a real database needs.
 *
 * @since 0.1.0
 */
export * from "./EmbeddedPostgres.ts"
