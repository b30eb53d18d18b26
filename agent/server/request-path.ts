import { type IncomingMessage, ServerResponse } from "node:http";
import type { Socket } from "node:net";
import type { Clock } from "../lib/clock.ts";
import { isAbort, messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { requestAttributes } from "./attributes.ts";
import type { Authenticator } from "./auth/authenticator.ts";
import { AuthorizationError, type Authorizer } from "./auth/authorizer.ts";
import { drainedBytesMax, flushMs, queryParametersMax, responseWriteMs } from "./limits.ts";
import { type Exchange, HttpError, type UserInfo } from "./port.ts";
import { requestLabels, type RequestMetrics, type ServerType } from "./request-metrics.ts";
import { sendError } from "./respond.ts";
import { type Match, matchRoute, type Route, type ServeMatch } from "./router.ts";

export interface RequestPathOptions {
  readonly routes: readonly Route[];
  readonly serverType: ServerType;
  /** Undefined: everybody may do everything that there is a route for. */
  readonly auth: { readonly authenticator: Authenticator; readonly authorizer: Authorizer } | undefined;
  /** Undefined: requests are not counted. */
  readonly metrics: RequestMetrics | undefined;
  readonly clock: Clock;
  readonly log: Logger;
  /** Somebody with a credential was allowed something on the connection. */
  onTrusted?(socket: Socket): void;
}

/**
 * What happens to each request, upgrades included:
 *
 *     count → route → authenticate → authorize → handler
 *                \          \             \          \
 *                 404, 30x   401           403, 500   HttpError, or 500
 */
export class RequestPath {
  readonly #options: RequestPathOptions;
  readonly #running = new Set<AbortController>();

  constructor(options: RequestPathOptions) {
    this.#options = options;
  }

  /** True if the request asks to leave HTTP at a place that can do that. */
  wantsUpgrade(request: IncomingMessage): boolean {
    const match = this.#match(request);
    return match.kind === "serve" && match.upgrade !== undefined;
  }

  /** Serves an ordinary request. Never rejects; resolves when the handler has ended. */
  async handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { clock } = this.#options;
    // Node takes the socket away from a request whose body was given up half-read.
    const { socket } = request;
    if (socket.destroyed) return; // sent ahead, by a client that has gone: Node tells nothing about its answer any more
    const ended = this.#begin(request);
    const running = this.#run();
    const gone = () => running.abort();
    response.once("close", gone);
    socket.once("end", gone); // a client that only listens on has gone, as far as Go's server is concerned
    const timer = clock.after(responseWriteMs, () => socket.destroy());
    const cancel = () => timer.cancel();
    socket.once("close", cancel);
    response.once("close", () => {
      cancel();
      socket.off("close", cancel);
    });
    try {
      const match = await this.#admit(request, running.signal);
      const { handler, params } = match;
      endWithAnswer(request, response);
      await handler(withQuery({ request, response, params, signal: running.signal }, match.query));
      if (!response.writableEnded) response.end();
    } catch (err) {
      endWithAnswer(request, response);
      if (response.headersSent) response.destroy();
      else sendError(response, this.#errorOf(request, err));
    } finally {
      socket.off("end", gone);
      this.#running.delete(running);
      ended();
    }
  }

  /** Serves a request that leaves HTTP. Never rejects; the socket is closed when it resolves, or soon after. */
  async upgrade(request: IncomingMessage, socket: Socket, head: Buffer): Promise<void> {
    const ended = this.#begin(request);
    const running = this.#run();
    const writtenBefore = socket.bytesWritten;
    try {
      const { upgrade, params, query } = await this.#admit(request, running.signal);
      if (upgrade === undefined) throw new HttpError(500, "Upgrade request required");
      const { signal } = running;
      if (!socket.destroyed) await upgrade(withQuery({ request, socket, head, params, signal }, query));
    } catch (err) {
      const error = this.#errorOf(request, err);
      if (socket.bytesWritten === writtenBefore && socket.writable) writePlain(request, socket, error);
    } finally {
      this.#running.delete(running);
      ended();
      this.#finish(socket);
    }
  }

  /** Tells all handlers that the server stops. */
  abort(): void {
    for (const running of this.#running) running.abort();
  }

  #match({ method = "GET", url = "", headers, httpVersionMajor }: IncomingMessage): Match {
    // Node's parser takes a line without a version for HTTP/0.9. No target makes it a bad request, as for Go's server.
    const target = httpVersionMajor === 1 ? url : "";
    return matchRoute(this.#options.routes, { method, url: target, accept: headers.accept });
  }

  #begin({ method = "GET", url = "" }: IncomingMessage): () => void {
    const { metrics, serverType } = this.#options;
    return metrics?.begin(requestLabels(method, url, serverType)) ?? (() => {});
  }

  #run(): AbortController {
    const running = new AbortController();
    this.#running.add(running);
    return running;
  }

  /** @returns where the request goes. Rejects with HttpError when it goes nowhere. */
  async #admit(request: IncomingMessage, signal: AbortSignal): Promise<ServeMatch> {
    const match = this.#match(request);
    if (match.kind === "answer") throw match.error;
    await this.#authorize(request, match.path, signal);
    if (match.kind === "refuse") throw match.error;
    return match;
  }

  async #authorize(request: IncomingMessage, path: string, signal: AbortSignal): Promise<void> {
    const { auth, onTrusted } = this.#options;
    if (auth === undefined) return;
    const user = await this.#authenticate(auth.authenticator, request);
    if (user === undefined) throw new HttpError(401, "Unauthorized");
    const { verb, subresources } = requestAttributes(request.method ?? "GET", path);
    const about = `user=${user.username}, verb=${verb}, resource=nodes`;
    let decision: "allowed" | "denied";
    try {
      decision = await auth.authorizer.authorize(user, verb, subresources, signal);
    } catch (err) {
      // That the API server does not answer is said once, where it was asked.
      this.#options.log.debug({ user: user.username, verb, subresources, err: messageOf(err) }, "authorization failed");
      const subresource = err instanceof AuthorizationError ? err.subresource : subresources[0];
      throw new HttpError(500, `Authorization error (${about}, subresource=${subresource})`);
    }
    if (decision !== "allowed") {
      throw new HttpError(403, `Forbidden (${about}, subresource(s)=[${subresources.join(" ")}])\n`);
    }
    // Where strangers are let in on purpose, their streams count as anybody's.
    if (user.username !== anonymous || subresources[0] !== "healthz") onTrusted?.(request.socket);
  }

  async #authenticate(authenticator: Authenticator, request: IncomingMessage): Promise<UserInfo | undefined> {
    try {
      return (await authenticator.authenticate(request, request.socket))?.user;
    } catch (err) {
      this.#options.log.debug({ remote: request.socket.remoteAddress, err: messageOf(err) }, "authentication failed");
      return undefined;
    }
  }

  #errorOf({ method, url = "" }: IncomingMessage, err: unknown): HttpError {
    if (err instanceof HttpError) return err;
    // Queries hold commands of users, which may hold their secrets.
    const [path] = url.split("?", 1);
    const { log } = this.#options;
    if (!isAbort(err)) log.warn({ method, path, err: messageOf(err) }, "request failed");
    return new HttpError(500, messageOf(err));
  }

  /** Closes a socket once it has taken what was written, or after a while. */
  #finish(socket: Socket): void {
    if (socket.destroyed) return;
    const timer = this.#options.clock.after(flushMs, () => socket.destroy());
    socket.once("close", () => timer.cancel());
    socket.resume(); // unread bytes would hold back the end
    socket.destroySoon();
  }
}

const anonymous = "system:anonymous";

/** Adds the query, which is parsed when somebody looks at it. */
function withQuery<T extends object>(exchange: T, text: string): T & Pick<Exchange, "query"> {
  refuseCrowds(text);
  let parsed: URLSearchParams | undefined;
  return Object.defineProperty(exchange, "query", {
    enumerable: true,
    get: () => (parsed ??= new URLSearchParams(text)),
  }) as T & Pick<Exchange, "query">;
}

function refuseCrowds(query: string): void {
  let count = 1;
  for (let at = query.indexOf("&"); at >= 0; at = query.indexOf("&", at + 1)) count += 1;
  if (count > queryParametersMax) {
    throw new HttpError(400, `the query has ${count} parameters, more than ${queryParametersMax}`);
  }
}

/** A body that is still on its way would be read to its end before the next request: only short ones are worth that. */
function endWithAnswer(request: IncomingMessage, response: ServerResponse): void {
  const isShort = Number(request.headers["content-length"]) <= drainedBytesMax;
  if (!request.complete && !isShort) response.shouldKeepAlive = false;
}

function writePlain(request: IncomingMessage, socket: Socket, error: HttpError): void {
  const response = new ServerResponse(request);
  response.shouldKeepAlive = false;
  response.assignSocket(socket);
  sendError(response, error);
}
