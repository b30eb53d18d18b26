import type { IncomingHttpHeaders } from "node:http";
import { AgentError, messageOf } from "../lib/errors.ts";

export interface HttpRequest {
  method: "GET" | "POST" | "PUT" | "PATCH" | "DELETE";
  /** Path with query, without the server's prefix. */
  path: string;
  headers?: Record<string, string | string[]>;
  body?: string;
  /** Ends the exchange at any stage. */
  signal: AbortSignal;
  /** A watch may be silent for long; any other answer that is late makes us ask whether the connection lives. */
  isWatch?: boolean;
}

export interface HttpResponse {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  /** Read it once, to the end, or `close`. Throws TransportError if the connection breaks in the middle. */
  readonly body: AsyncIterable<Buffer>;
  /** Gives up the rest of the body. Idempotent. */
  close(): void;
}

/**
 * How far a request came: no connection could be made; it was certainly not acted upon (a refused stream, a session that
 * was just closing), so that anything may be sent again; or the connection broke and nobody knows.
 */
export type TransportStage = "connect" | "refused" | "broken";

/** The server could not be asked, or the answer broke off. */
export class TransportError extends AgentError {
  readonly stage: TransportStage;

  constructor(message: string, stage: TransportStage, cause: unknown) {
    super("Unavailable", message, { cause });
    this.stage = stage;
  }
}

/** What transport needs of a connection of either protocol. */
export interface Connection {
  readonly key: string;
  /** True while new requests may be put on it. */
  readonly isUsable: boolean;
  /** Requests it can take now without queueing. */
  readonly free: number;
  send(request: HttpRequest, path: string, headers: Record<string, string | string[]>): Promise<HttpResponse>;
  /** Takes no new requests; closes when the last one has ended. */
  retire(): void;
  destroy(err: Error): void;
}

/** Durations in ms. Injectable so that tests need not wait. */
export interface TransportLimits {
  connectMs: number;
  handshakeMs: number;
  pingIdleMs: number;
  pingTimeoutMs: number;
  suspectMs: number;
  retiredMs: number;
}

export const transportLimits: TransportLimits = {
  connectMs: 30_000, // the kubelet's dial timeout
  handshakeMs: 10_000, // the kubelet's TLS handshake timeout
  pingIdleMs: 30_000, // Go's HTTP/2 health check as Kubernetes sets it: ping after 30 s of silence,
  pingTimeoutMs: 15_000, // and give up on the connection 15 s later
  // A call unanswered for this long makes us ping at once, so that a dead connection costs the node lease (renewed
  // every 10 s, lost after 40 s) one renewal, not several.
  suspectMs: 5_000,
  // After a certificate was rotated, old connections end after this long even if a watch is on them: calls take 30 s.
  retiredMs: 30_000,
};

/** Reads a whole body as text. Rejects with TransportError when it breaks off, with Internal past `bytesMax`. */
export async function readBody(response: HttpResponse, bytesMax: number): Promise<string> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of response.body) {
    bytes += chunk.length;
    if (bytes > bytesMax) {
      response.close();
      throw new AgentError("Internal", `the API server's answer is larger than ${bytesMax} bytes`);
    }
    chunks.push(chunk);
  }
  return (chunks.length === 1 && chunks[0] !== undefined ? chunks[0] : Buffer.concat(chunks)).toString("utf8");
}

/** Any error of a socket, as one line with the server's name. */
export function transportError(url: URL, what: string, err: unknown, stage: TransportStage): TransportError {
  return new TransportError(`${url.origin}: ${what}: ${messageOf(err)}`, stage, err);
}
