/** Start line and headers, as they stand on the wire. */
export interface ResponseHead {
  readonly status: number;
  /** What the start line says after the number. */
  readonly statusText: string;
  /** Name and value in turn, as they came. */
  readonly rawHeaders: readonly string[];
}

/** A header's first value; names are compared without regard to case. */
export function headerOf(rawHeaders: readonly string[], name: string): string | undefined {
  return headersOf(rawHeaders, name)[0];
}

/** All values of a header. */
export function headersOf(rawHeaders: readonly string[], name: string): string[] {
  return pairs(rawHeaders).flatMap(([key, value]) => (key.toLowerCase() === name ? [value] : []));
}

export interface RequestHead {
  readonly method: string;
  /** Path and query. */
  readonly path: string;
  readonly rawHeaders: readonly string[];
}

// Set anew for the runtime, or none of its business.
const droppedHeaders = ["authorization", "content-length", "transfer-encoding", "trailer", "x-forwarded-for"];

/**
 * The head of the request to the runtime: the client's own, but for the path, without its credentials and its body, and
 * with the client's address in X-Forwarded-For.
 *
 * @param drop further headers to leave out, in lower case
 * @param add name and value in turn
 */
export function requestHead(
  { method, path, rawHeaders }: RequestHead,
  clientAddress: string | undefined,
  drop: readonly string[] = [],
  add: readonly string[] = [],
): string {
  const dropped = [...droppedHeaders, ...drop];
  const kept = pairs(rawHeaders)
    .filter(([name]) => !dropped.includes(name.toLowerCase()))
    .map(([name, value]): [string, string] => [
      name,
      name.toLowerCase() === "sec-websocket-protocol" ? withoutToken(value) : value,
    ]);
  const forwardedFor = [...headersOf(rawHeaders, "x-forwarded-for"), ...(clientAddress ? [clientAddress] : [])];
  const lines = [...kept, ...pairs(add)];
  if (forwardedFor.length > 0) lines.push(["X-Forwarded-For", forwardedFor.join(", ")]);
  if (method !== "GET") lines.push(["Content-Length", "0"]);
  return `${method} ${path} HTTP/1.1\r\n${lines.map(([name, value]) => `${name}: ${value}\r\n`).join("")}\r\n`;
}

/** Browsers' clients can only send their token as if it were a subprotocol. */
function withoutToken(protocols: string): string {
  const names = protocols.split(",").map((name) => name.trim());
  return names.filter((name) => !name.startsWith("base64url.bearer.authorization.k8s.io.")).join(", ");
}

const statusLine = /^HTTP\/1\.[01] ([1-5]\d\d)(?: ([^\r\n]*))?$/;

/** Reads a response's head without the empty line behind it. @returns undefined if it is none */
export function parseResponseHead(text: string): ResponseHead | undefined {
  const [first = "", ...lines] = text.split("\r\n");
  const match = statusLine.exec(first);
  if (match === null) return undefined;
  const rawHeaders: string[] = [];
  for (const line of lines) {
    const colon = line.indexOf(":");
    if (colon <= 0 || /\s/.test(line.slice(0, colon))) return undefined;
    rawHeaders.push(line.slice(0, colon), line.slice(colon + 1).trim());
  }
  return { status: Number(match[1]), statusText: match[2] ?? "", rawHeaders };
}

function pairs(rawHeaders: readonly string[]): [string, string][] {
  const found: [string, string][] = [];
  for (let i = 0; i + 1 < rawHeaders.length; i += 2) found.push([rawHeaders[i] ?? "", rawHeaders[i + 1] ?? ""]);
  return found;
}
