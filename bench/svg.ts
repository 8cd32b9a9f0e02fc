/** The elements of the charts, with coordinates to a tenth. */
export const n = (value: number): string => String(Math.round(value * 10) / 10)
export const escaped = (text: string): string =>
  text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;")
export const text = (x: number, y: number, what: string, more = ""): string =>
  `<text x="${n(x)}" y="${n(y)}"${more}>${escaped(what)}</text>`
export const rect = (x: number, y: number, wide: number, high: number, name: string): string =>
  `<rect x="${n(x)}" y="${n(y)}" width="${n(wide)}" height="${n(high)}" class="${name}"/>`
export const line = (x1: number, y1: number, x2: number, y2: number, name: string): string =>
  `<path d="M${n(x1)} ${n(y1)}L${n(x2)} ${n(y2)}" class="${name}"/>`
