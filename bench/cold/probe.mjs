// The process that is measured: loads a handler as a Lambda does, calls it, and says when it had what. Milliseconds since the
// process began, and of CPU.
const cpu = () => {
  const { system, user } = process.cpuUsage()
  return (system + user) / 1000
}
const began = { at: performance.now(), cpu: cpu() }
const { handler } = await import(process.argv[2])
const loaded = { at: performance.now(), cpu: cpu() }
const rows = await handler()
const answered = { at: performance.now(), cpu: cpu() }
if (rows.length !== 1 || rows[0].one !== 1) throw new Error(`Not the row: ${JSON.stringify(rows)}`)
process.stdout.write(JSON.stringify({ began, loaded, answered }), () => process.exit(0))
