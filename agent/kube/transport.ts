import { AgentError } from "../lib/errors.ts";
import type { Access, Credentials } from "./access.ts";
import {
  type Connection,
  type HttpRequest,
  type HttpResponse,
  type TransportLimits,
  transportLimits,
} from "./connection.ts";
import { dial } from "./dial.ts";
import type { KubeDeps } from "./port.ts";
import { Http1Connection } from "./http1-connection.ts";
import { Http2Connection } from "./http2-connection.ts";

/** One API server's connections. Everything that talks to that server shares one. */
export interface Transport extends AsyncDisposable {
  readonly access: Access;
  /**
   * Sends a request; resolves with the answer's headers. Rejects with TransportError, with what
   * `Access.credentials` rejects with, or with code Canceled when the signal aborted.
   */
  send(request: HttpRequest): Promise<HttpResponse>;
  /** Breaks every connection, so that all calls connect anew. */
  reset(): void;
  /**
   * The credentials have changed: connections that were made with others take no more requests and end soon, also those
   * that hold only watches. Without it, that happens with the next request.
   */
  renew(): Promise<void>;
}

// Streams beyond one connection's limit (100 to 250 in kube-apiserver) go to further connections: a node with many
// config map and secret watches needs a few. At the bound, streams queue on the emptiest connection.
export const connectionsMax = 16;

export interface TransportOptions extends KubeDeps {
  access: Access;
  userAgent: string;
  /** Environment variable DISABLE_HTTP2, as in the reference: set to anything, HTTP/1.1 is spoken. */
  disableHttp2?: boolean;
  limits?: Partial<TransportLimits>;
}

/** Makes a transport; connects on the first request. */
export function createTransport(options: TransportOptions): Transport {
  return new PooledTransport(options);
}

class PooledTransport implements Transport {
  readonly access: Access;
  readonly #options: TransportOptions;
  readonly #limits: TransportLimits;
  readonly #url: URL;
  readonly #stop = new AbortController();
  /** Also those that only finish what they have; `isUsable` tells. */
  #connections: Connection[] = [];
  #dialing: { key: string; done: Promise<void> } | undefined;
  #isHttp2: boolean;

  constructor(options: TransportOptions) {
    this.access = options.access;
    this.#options = options;
    this.#limits = { ...transportLimits, ...options.limits };
    this.#url = new URL(options.access.server);
    const disableHttp2 = options.disableHttp2 ?? (process.env["DISABLE_HTTP2"] ?? "") !== "";
    this.#isHttp2 = this.#url.protocol === "https:" && !disableHttp2;
  }

  async send(request: HttpRequest): Promise<HttpResponse> {
    const credentials = await this.access.credentials();
    const prefix = this.#url.pathname === "/" ? "" : this.#url.pathname;
    const headers = {
      "user-agent": this.#options.userAgent,
      accept: "application/json",
      ...credentials.headers,
      ...request.headers,
    };
    this.#retireOthers(credentials.connectionKey);
    for (;;) {
      if (this.#stop.signal.aborted) throw new AgentError("Canceled", "the API client is closed");
      if (request.signal.aborted) throw new AgentError("Canceled", "the call was canceled");
      // Choosing and sending in one step: another caller must not take the same last place in between.
      const connection = this.#roomiest(credentials.connectionKey);
      if (connection !== undefined) return connection.send(request, prefix + request.path, headers);
      await orAborted(this.#dialOnce(credentials), request.signal);
    }
  }

  reset(): void {
    const old = this.#connections;
    this.#connections = [];
    for (const connection of old) connection.destroy(new Error("connection was reset by the agent"));
  }

  async renew(): Promise<void> {
    const { connectionKey } = await this.access.credentials();
    if (!this.#stop.signal.aborted) this.#retireOthers(connectionKey);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    this.reset();
    await this.#dialing?.done.catch(() => {});
    this.reset(); // what a dial that just ended has put there
  }

  /** The connection with most room; undefined if another one should be made. */
  #roomiest(key: string): Connection | undefined {
    const usable = this.#connections.filter((c) => c.isUsable && c.key === key);
    const best = usable.reduce<Connection | undefined>(
      (a, b) => (a === undefined || b.free > a.free ? b : a),
      undefined,
    );
    return best !== undefined && (best.free > 0 || usable.length >= connectionsMax) ? best : undefined;
  }

  /** Concurrent callers share one dial. */
  async #dialOnce(credentials: Credentials): Promise<void> {
    const { connectionKey: key } = credentials;
    if (this.#dialing?.key !== key) {
      const done = this.#dial(credentials).finally(() => {
        if (this.#dialing?.done === done) this.#dialing = undefined;
      });
      this.#dialing = { key, done };
    }
    return this.#dialing.done;
  }

  /** The client certificate or CA was rotated: what was made with the old one takes no more requests. */
  #retireOthers(key: string): void {
    for (const connection of this.#connections.filter((c) => c.isUsable && c.key !== key)) {
      connection.retire();
      this.#options.clock.after(this.#limits.retiredMs, () => {
        connection.destroy(new Error("connection was made with credentials that were replaced"));
        this.#drop(connection);
      });
    }
  }

  #drop(connection: Connection): void {
    this.#connections = this.#connections.filter((c) => c !== connection);
  }

  async #dial(credentials: Credentials): Promise<void> {
    const { clock, log } = this.#options;
    const { connectionKey: key, tls } = credentials;
    const stop = this.#stop.signal;
    const common = { key, url: this.#url, clock, limits: this.#limits };
    if (this.#isHttp2) {
      const socket = await dial({ ...common, tls, protocols: ["h2", "http/1.1"], signal: stop });
      if ("alpnProtocol" in socket && socket.alpnProtocol === "h2") {
        const onClose = () => this.#drop(connection);
        const connection = new Http2Connection({ ...common, socket, log, onClose });
        const onAbort = () => connection.destroy(new Error("the API client is closed"));
        stop.addEventListener("abort", onAbort, { once: true });
        await connection.ready().finally(() => stop.removeEventListener("abort", onAbort));
        this.#connections.push(connection);
        return;
      }
      log.info({ server: this.access.server }, "API server does not speak HTTP/2, using HTTP/1.1");
      this.#isHttp2 = false;
      socket.destroy();
    }
    const connect = () => dial({ ...common, tls, protocols: ["http/1.1"], signal: stop });
    this.#connections.push(new Http1Connection({ ...common, connect }));
  }
}

/** Waits for `promise`, but not after `signal` aborted; the promise then goes on for others. */
async function orAborted(promise: Promise<void>, signal: AbortSignal): Promise<void> {
  const { promise: aborted, reject } = Promise.withResolvers<never>();
  const onAbort = () => reject(new AgentError("Canceled", "the call was canceled while connecting"));
  signal.addEventListener("abort", onAbort, { once: true });
  try {
    await Promise.race([promise, aborted]);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}
