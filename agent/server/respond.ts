import type { IncomingMessage, ServerResponse } from "node:http";
import { bodyBytesMax } from "./limits.ts";
import { HttpError } from "./port.ts";

const textType = "text/plain; charset=utf-8";

/** An error as Go's `http.Error` writes it: a line of text that no browser may take for something else. */
export function plainError(status: number, text: string): HttpError {
  return new HttpError(status, `${text}\n`, { "X-Content-Type-Options": "nosniff" });
}

/** Sends a whole answer. Its type is plain text unless `headers` say otherwise. */
export function sendText(
  response: ServerResponse,
  status: number,
  text: string,
  headers: Readonly<Record<string, string>> = {},
): void {
  const length = Buffer.byteLength(text);
  response.writeHead(status, { "Content-Type": textType, ...headers, "Content-Length": length }).end(text);
}

/** Sends a value as JSON, with a line's end as the reference does. For small values: it is written in one piece. */
export function sendJson(
  response: ServerResponse,
  value: unknown,
  headers: Readonly<Record<string, string>> = {},
): void {
  sendText(response, 200, `${JSON.stringify(value)}\n`, { "Content-Type": "application/json", ...headers });
}

/** Sends what went wrong. Does nothing if an answer has begun: all that is left then is to cut the connection. */
export function sendError(response: ServerResponse, { status, message, headers }: HttpError): void {
  if (!response.headersSent) sendText(response, status, message, headers);
}

/** Reads a body as text. Rejects with HttpError 413 when it is larger than `bytesMax`, and when the client goes. */
export async function readBody(
  request: IncomingMessage,
  { what = "body", bytesMax = bodyBytesMax }: { what?: string; bytesMax?: number } = {},
): Promise<string> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  // Destroying the request would take the connection along, and the answer with it.
  const body: AsyncIterable<Buffer> = request.iterator({ destroyOnReturn: false });
  for await (const chunk of body) {
    bytes += chunk.length;
    if (bytes > bytesMax) throw new HttpError(413, `the ${what} is larger than ${bytesMax} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString("utf8");
}
