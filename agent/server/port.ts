import type { IncomingMessage, ServerResponse } from "node:http";
import type { Duplex } from "node:stream";
import type { Pod, PodStatus } from "../kube/types.ts";

/** A request that has passed the router, authentication and authorization. */
export interface Exchange {
  readonly request: IncomingMessage;
  readonly response: ServerResponse;
  /** Values of the route template's `{names}`, percent-decoded. */
  readonly params: Readonly<Record<string, string>>;
  readonly query: URLSearchParams;
  /** Aborts when the client has gone or the server stops. */
  readonly signal: AbortSignal;
}

/** Answers a request. A rejection with HttpError is sent as it says, any other as 500 with its message. */
export type Handler = (exchange: Exchange) => Promise<void>;

/** A request that wants to leave HTTP; the socket is the handler's from here on. */
export interface Upgrade {
  readonly request: IncomingMessage;
  readonly socket: Duplex;
  /** What the client sent behind its request already. */
  readonly head: Buffer;
  readonly params: Readonly<Record<string, string>>;
  readonly query: URLSearchParams;
  /** Aborts when the server stops. The handler itself notices that the client has gone. */
  readonly signal: AbortSignal;
}

/**
 * Serves an upgraded connection to its end. A rejection with HttpError before anything was written is sent as a plain
 * HTTP answer; the socket is closed in any case.
 */
export type UpgradeHandler = (upgrade: Upgrade) => Promise<void>;

/** An answer other than success: its status and its body, which ends up before a person. */
export class HttpError extends Error {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;

  constructor(status: number, message: string, headers: Readonly<Record<string, string>> = {}) {
    super(message);
    this.name = "HttpError";
    this.status = status;
    this.headers = headers;
  }
}

/** The pods that the agent holds, as the server shows them. */
export interface ServedPods {
  /** The desired set: pods of the API server and static ones, without mirror pods. */
  list(): readonly Pod[];
  find(namespace: string, name: string): Pod | undefined;
  /** The status as the agent sees it now; until it has looked, the API server's. */
  status(pod: Pod): PodStatus | undefined;
}

/** The certificate to serve with, wherever it comes from: files, self-signed, or the API server's signer. */
export interface ServingCertificate {
  /** PEM. Undefined while there is none: every handshake is refused. */
  current(): { readonly cert: Buffer; readonly key: Buffer } | undefined;
  /** Calls `listener` after the certificate changed. @returns ends it */
  subscribe(listener: () => void): () => void;
}

/** Who sent a request. */
export interface UserInfo {
  readonly username: string;
  readonly uid: string;
  readonly groups: readonly string[];
  readonly extra: Readonly<Record<string, readonly string[]>>;
}
