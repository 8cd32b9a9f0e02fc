/**
 * What errors would say if they were printed in full. It is kept beside them, so that whoever prints, traces or serialises
 * an error does not come upon it, and whoever asks for it by name does.
 */
const texts = new WeakMap<object, string>()

export const keep = (error: object, text: string): void => {
  texts.set(error, text)
}

/** The message that an error was made with, where it has been taken out of it. */
export const textOf = (error: object): string | undefined => texts.get(error)

/** Whether the text of an error has been taken out of it. */
export const has = (error: object): boolean => texts.has(error)
