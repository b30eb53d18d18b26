import { addAbortListener } from "node:events";
import { Agent, type ClientRequest, type IncomingMessage, request as startRequest } from "node:http";
import type { Socket } from "node:net";
import type { Duplex } from "node:stream";
import type { Clock } from "../lib/clock.ts";
import { AgentError } from "../lib/errors.ts";
import { type Connection, type HttpRequest, type HttpResponse, transportError } from "./connection.ts";

// Idle connections kept, as the kubelet does per host. Those in use are as many as there are watches and calls.
const idleConnectionsMax = 25;

interface Http1Options {
  key: string;
  url: URL;
  clock: Clock;
  /** Makes one connected socket, TLS done. */
  connect: () => Promise<Socket>;
}

/** HTTP/1.1 with kept-alive connections, for `kubectl proxy`, DISABLE_HTTP2 and servers behind old proxies. */
export class Http1Connection implements Connection {
  readonly key: string;
  readonly free = Number.MAX_SAFE_INTEGER;
  readonly #options: Http1Options;
  readonly #agent: DialingAgent;
  readonly #requests = new Set<ClientRequest>();
  #isRetired = false;

  constructor(options: Http1Options) {
    this.key = options.key;
    this.#options = options;
    this.#agent = new DialingAgent(options.connect);
  }

  get isUsable(): boolean {
    return !this.#isRetired;
  }

  async send(request: HttpRequest, path: string, headers: Record<string, string | string[]>): Promise<HttpResponse> {
    const { url } = this.#options;
    const { promise, resolve, reject } = Promise.withResolvers<HttpResponse>();
    const { method, body, signal } = request;
    const length = body === undefined ? {} : { "content-length": String(Buffer.byteLength(body)) };
    const exchange = startRequest({
      method,
      path,
      headers: { host: url.host, ...headers, ...length },
      agent: this.#agent,
    });
    this.#requests.add(exchange);
    const abort = addAbortListener(signal, () => {
      reject(new AgentError("Canceled", "the call was canceled"));
      exchange.destroy();
      // Without pings, a call that took too long is the only sign of a dead peer; do not hand its siblings out again.
      this.#dropIdle();
    });
    exchange.on("response", (answer) => {
      resolve({
        status: answer.statusCode ?? 0,
        headers: answer.headers,
        body: this.#body(answer, signal),
        close: () => exchange.destroy(),
      });
    });
    exchange.on("error", (err) => {
      const isUnsent = err instanceof AgentError; // dialing failed
      reject(isUnsent ? err : transportError(url, "request", err, "broken"));
    });
    exchange.on("close", () => {
      this.#requests.delete(exchange);
      abort[Symbol.dispose]();
      reject(transportError(url, "request", "the connection ended before the answer", "broken"));
    });
    exchange.end(body);
    return promise;
  }

  retire(): void {
    this.#isRetired = true;
    this.#dropIdle();
  }

  destroy(err: Error): void {
    this.#isRetired = true;
    for (const exchange of this.#requests) exchange.destroy(err);
    this.#agent.destroy();
  }

  async *#body(answer: IncomingMessage, signal: AbortSignal): AsyncGenerator<Buffer, void, void> {
    try {
      for await (const chunk of answer) yield chunk as Buffer; // a message without an encoding yields buffers
    } catch (err) {
      if (signal.aborted) throw new AgentError("Canceled", "the call was canceled", { cause: err });
      throw transportError(this.#options.url, "answer", err, "broken");
    }
  }

  #dropIdle(): void {
    for (const sockets of Object.values(this.#agent.freeSockets)) for (const socket of sockets ?? []) socket.destroy();
  }
}

/** Node's pool, with our own connecting. */
class DialingAgent extends Agent {
  readonly #connect: () => Promise<Socket>;
  #isClosed = false;

  constructor(connect: () => Promise<Socket>) {
    super({ keepAlive: true, maxFreeSockets: idleConnectionsMax });
    this.#connect = connect;
  }

  override destroy(): void {
    this.#isClosed = true;
    super.destroy();
  }

  override createConnection(_options: unknown, callback?: (err: Error | null, stream: Duplex) => void): undefined {
    this.#connect().then(
      (socket) => {
        callback?.(null, socket);
        if (this.#isClosed) socket.destroy(); // the pool was closed while we dialed, and would keep it for ever
      },
      // Node reads the stream only if there is no error.
      (err: unknown) => (callback as ((err: unknown) => void) | undefined)?.(err),
    );
    return undefined;
  }
}
