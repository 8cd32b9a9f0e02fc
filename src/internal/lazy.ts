/** What a program may never ask for is made when it asks, and not while its file is loaded, in every cold start. */
export const lazy = <A extends object>(make: () => A): () => A => {
  let made: A | undefined
  return () => made ??= make()
}

/**
 * A regular expression that is compiled when it is first asked. Node checks a literal when it reads the file, run or not, and
 * with the classes of Unicode (`\p{L}`) that takes a quarter of a millisecond.
 */
export const pattern = (source: string, flags: string): Pick<RegExp, "test"> => {
  const compiled = lazy(() => new RegExp(source, flags))
  return { test: (text) => compiled().test(text) }
}
