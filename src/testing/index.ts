/**
 * What a test against a database needs: a real server, one that says what it is told to, and a network with faults.
 *
 * @since 0.1.0
 */
export * from "./EmbeddedPostgres.ts"
export * as FaultProxy from "./FaultProxy.ts"
export * as LocalLambda from "./LocalLambda.ts"
export * as ScriptedServer from "./ScriptedServer.ts"
