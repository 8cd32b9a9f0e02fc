// The process that is measured: loads a handler as Lambda's runtime does, calls it, and tells when it had what, in
// milliseconds since the process began and of its CPU.
const now = () => {
  const { system, user } = process.cpuUsage()
  return { at: performance.now(), cpu: (system + user) / 1000 }
}
const [, , file] = process.argv
const began = now()
const { handler } = await import(file)
const loaded = now()
const rows = await handler({}, { awsRequestId: "1", getRemainingTimeInMillis: () => 30_000 })
const answered = now()
if (rows.length !== 1 || rows[0].one !== 1) throw new Error(`Another answer than the row: ${JSON.stringify(rows)}`)
process.stdout.write(JSON.stringify({ began, loaded, answered }), () => process.exit(0))
