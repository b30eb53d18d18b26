import type { IncomingMessage } from "node:http";
import { AgentError } from "../../lib/errors.ts";

/** Marks the entry of Sec-WebSocket-Protocol that carries a token, for browsers, which cannot set headers. */
const tokenProtocolPrefix = "base64url.bearer.authorization.k8s.io.";
const protocolHeader = "sec-websocket-protocol";
// A client offers five subprotocols at most, and names two or three options of the connection.
export const listEntriesMax = 64;

/**
 * The token of the request's first Authorization header; undefined if there is none of type Bearer, or an empty one.
 */
export function bearerToken(request: Pick<IncomingMessage, "rawHeaders">): string | undefined {
  const [first] = headerValues(request, "authorization");
  const [scheme = "", token = ""] = (first ?? "").trim().split(" ", 2);
  return scheme.toLowerCase() === "bearer" && token !== "" ? utf8(token) : undefined;
}

/**
 * The token among a WebSocket request's subprotocols; undefined if there is none, or the request is for something else.
 * Throws AgentError Unauthorized when it is malformed, there twice, or the only subprotocol: one without a secret in it has
 * to remain for the answer.
 */
export function webSocketToken(request: Pick<IncomingMessage, "rawHeaders">): string | undefined {
  if (!isWebSocketRequest(request)) return undefined;
  const protocols = subprotocols(request);
  const [found, ...more] = protocols.filter(isTokenProtocol);
  if (found === undefined) return undefined;
  if (more.length > 0) throw new AgentError("Unauthorized", "there is more than one token among the subprotocols");
  if (protocols.length === 1) throw new AgentError("Unauthorized", "the token is the only subprotocol");
  const encoded = found.slice(tokenProtocolPrefix.length);
  const bytes = Buffer.from(encoded, "base64url");
  // Node.js skips what is no base64: only what encodes to the same text was one.
  if (bytes.toString("base64url") !== encoded || !isUtf8(bytes)) {
    throw new AgentError("Unauthorized", "the token among the subprotocols is not base64url");
  }
  return encoded === "" ? undefined : bytes.toString("utf8");
}

/**
 * Takes the credentials out of a request that has been authenticated, so that no handler can pass them on to a runtime.
 * Changes `request`.
 */
export function stripCredentials(request: IncomingMessage): void {
  replaceHeader(request, "authorization", undefined);
  const protocols = subprotocols(request);
  if (!protocols.some(isTokenProtocol)) return;
  const rest = protocols.filter((protocol) => !isTokenProtocol(protocol));
  replaceHeader(request, protocolHeader, rest.length === 0 ? undefined : rest.join(","));
}

function isTokenProtocol(protocol: string): boolean {
  return protocol.startsWith(tokenProtocolPrefix);
}

function isWebSocketRequest(request: Pick<IncomingMessage, "rawHeaders">): boolean {
  const tokens = listOf(request, "connection");
  const [upgrade = ""] = headerValues(request, "upgrade");
  return tokens.some((token) => token.trim().toLowerCase() === "upgrade") && upgrade.toLowerCase() === "websocket";
}

function subprotocols(request: Pick<IncomingMessage, "rawHeaders">): string[] {
  return listOf(request, protocolHeader)
    .map((protocol) => protocol.trim())
    .filter((protocol) => protocol !== "");
}

// The first entries of a header that is a list: nobody has a reason to send more, and a megabyte of commas takes long.
function listOf(request: Pick<IncomingMessage, "rawHeaders">, name: string): string[] {
  return headerValues(request, name)
    .slice(0, listEntriesMax)
    .flatMap((value) => value.split(",", listEntriesMax));
}

/** All values of a header as they came, whatever Node.js makes of doubled ones. */
function headerValues({ rawHeaders }: Pick<IncomingMessage, "rawHeaders">, name: string): string[] {
  const values: string[] = [];
  for (let i = 0; i + 1 < rawHeaders.length; i += 2) {
    if (rawHeaders[i]?.toLowerCase() === name) values.push(rawHeaders[i + 1] ?? "");
  }
  return values;
}

/** Sets a header to one value, or removes it, in every form in which a request shows its headers. */
function replaceHeader(request: IncomingMessage, name: string, value: string | undefined): void {
  const { headers, headersDistinct, rawHeaders } = request;
  const kept: string[] = [];
  for (let i = 0; i + 1 < rawHeaders.length; i += 2) {
    if (rawHeaders[i]?.toLowerCase() !== name) kept.push(rawHeaders[i] ?? "", rawHeaders[i + 1] ?? "");
  }
  if (value === undefined) {
    delete headers[name];
    delete headersDistinct[name];
  } else {
    kept.push(name, value);
    headers[name] = value;
    headersDistinct[name] = [value];
  }
  rawHeaders.splice(0, rawHeaders.length, ...kept);
}

/** Node.js shows the bytes of a header as Latin-1; what was sent may be UTF-8. */
function utf8(text: string): string {
  return Buffer.from(text, "latin1").toString("utf8");
}

function isUtf8(bytes: Buffer): boolean {
  return bytes.equals(Buffer.from(bytes.toString("utf8"), "utf8"));
}
