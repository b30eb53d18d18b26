import { createHash } from "node:crypto";
import type { IncomingMessage } from "node:http";
import { AgentError } from "../errors.ts";

// RFC 6455, section 1.3.
const acceptSuffix = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/** True if the client wants to speak WebSocket on this connection. */
export function isWebSocket({ headers }: Pick<IncomingMessage, "headers">): boolean {
  return tokens(headers.connection).includes("upgrade") && headers.upgrade?.toLowerCase() === "websocket";
}

/** WebSocket subprotocols that the client offers, in its order. */
export function offeredProtocols({ headers }: Pick<IncomingMessage, "headers">): string[] {
  const offered = headers["sec-websocket-protocol"];
  return offered === undefined ? [] : offered.split(",").map((protocol) => protocol.trim());
}

/**
 * The answer that completes a handshake (RFC 6455, version 13), without extensions, as it goes on the wire.
 *
 * Throws AgentError, Invalid, if the request is no proper handshake.
 *
 * @param protocol the subprotocol chosen; undefined if the client offered none
 */
export function handshakeAnswer(request: IncomingMessage, protocol: string | undefined): string {
  const accept = createHash("sha1")
    .update(handshakeKey(request) + acceptSuffix)
    .digest("base64");
  const lines = [
    "HTTP/1.1 101 Switching Protocols",
    ...["Upgrade: websocket", "Connection: Upgrade"],
    `Sec-WebSocket-Accept: ${accept}`,
    ...(protocol === undefined ? [] : [`Sec-WebSocket-Protocol: ${protocol}`]),
  ];
  return `${lines.join("\r\n")}\r\n\r\n`;
}

function handshakeKey(request: IncomingMessage): string {
  const { method, headers } = request;
  const key = headers["sec-websocket-key"] ?? "";
  if (method !== "GET" || !isWebSocket(request)) throw new AgentError("Invalid", "no WebSocket handshake");
  if (headers["sec-websocket-version"] !== "13") {
    throw new AgentError("Invalid", "unsupported WebSocket version: want 13");
  }
  if (!/^[+/0-9A-Za-z]{22}==$/.test(key)) {
    throw new AgentError("Invalid", "a WebSocket handshake without a proper key");
  }
  return key;
}

function tokens(value: string | undefined): string[] {
  return (value ?? "").split(",").map((token) => token.trim().toLowerCase());
}
