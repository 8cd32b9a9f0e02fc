/** How many sessions a pool may hold. */
export interface Size {
  readonly max: number
  readonly min: number
}

const ceiling = 100

export const fromCpus = (cpus: number): Size => {
  const max = Math.min(cpus * 2 + 4, ceiling)
  return { max, min: Math.min(Math.max(Math.floor(max / 4), 5), max) }
}

export const serverless: Size = { max: 2, min: 0 }
