/** Arguments of a command line that are not what they may be: one clear message, and exit code 2. */

export const refuse = (message: string): never => {
  console.error(message)
  process.exit(2)
}

/** What reads the command line, or its refusal. */
export const understood = <A>(parse: () => A): A => {
  try {
    return parse()
  } catch (error) {
    return refuse(error instanceof Error ? error.message : String(error))
  }
}

export const choices = <Choice extends string>(
  option: string,
  given: ReadonlyArray<string>,
  allowed: ReadonlyArray<Choice>
): ReadonlyArray<Choice> =>
  given.map((value) =>
    allowed.find((choice) => choice === value)
      ?? refuse(`${option} ${JSON.stringify(value)} is none of: ${allowed.join(", ")}`)
  )

/** Whole numbers from 1 on, with commas between them. */
export const wholes = (option: string, given: string): ReadonlyArray<number> =>
  given.split(",").map((value) => {
    const number = Number(value)
    return Number.isSafeInteger(number) && number >= 1
      ? number
      : refuse(`${option} ${JSON.stringify(value)} is not a whole number of at least 1`)
  })
