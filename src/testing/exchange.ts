/** One request of a process that lives in a local Lambda, to the API of its platform. */
import * as Http from "node:http"

export interface Reply {
  readonly headers: Http.IncomingHttpHeaders
  readonly body: string
}

/** Resolves with whatever is answered, once all of it is there. */
export const exchange = (options: Http.RequestOptions, body?: string): Promise<Reply> =>
  new Promise((resolve, reject) => {
    const request = Http.request(options, (response) => {
      let text = ""
      response.setEncoding("utf8")
      response.on("data", (chunk: string) => {
        text += chunk
      })
      response.once("end", () => resolve({ headers: response.headers, body: text }))
      response.once("error", reject)
    })
    request.once("error", reject)
    request.end(body)
  })
