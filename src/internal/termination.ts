/** The end of a process that a platform announces by SIGTERM. */

const endings = new Set<() => Promise<void>>()
let isListening = false

const onSigterm = (): void => {
  const ends = Array.from(endings)
  void Promise.all(ends.map((end) => end())).then(() => {
    for (const end of ends) endings.delete(end)
    // Made meanwhile, by a process that was told to end.
    if (endings.size > 0) return onSigterm()
    process.removeListener("SIGTERM", onSigterm)
    isListening = false
    // Whoever else listens has its own work to end, and exits by itself.
    if (process.listenerCount("SIGTERM") === 0) process.exit(0)
  })
}

/** Signals do not reach the threads of a worker, of which Lambda's Managed Instances have several. */
export const isAnnounced = (): boolean => process.getBuiltinModule("node:worker_threads").isMainThread

/** Ends something at SIGTERM, and the process once all is ended. */
export const atSigterm = (end: () => Promise<void>): void => {
  endings.add(end)
  if (isListening) return
  isListening = true
  process.on("SIGTERM", onSigterm)
}
