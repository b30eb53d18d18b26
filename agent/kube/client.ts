import { addAbortListener } from "node:events";
import type { Clock } from "../lib/clock.ts";
import { AgentError, hasCode, isAbort, messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import type { Access } from "./access.ts";
import { ApiError, apiError } from "./api-error.ts";
import { type HttpRequest, type HttpResponse, readBody, TransportError } from "./connection.ts";
import { listPages, type Page } from "./list-pages.ts";
import { hostLabel, instrumentTransport, noAnswerCode, type RestClientMetrics } from "./metrics.ts";
import { collectionPath, objectPath, requireNamespace, withQuery } from "./paths.ts";
import type { ApiClient, CallOptions, KubeDeps, PatchType, Resource } from "./port.ts";
import { RateLimiter } from "./rate-limit.ts";
import { createTransport, type Transport } from "./transport.ts";
import type { KubeObject } from "./types.ts";

export interface ApiClientOptions extends KubeDeps {
  /** Either an access, for a client with its own connections, or a transport to share. */
  access?: Access;
  transport?: Transport;
  /** `kubelet/v1.36.0 (linux/amd64) kubernetes/…`: what stands before the slash is also the field manager. */
  userAgent: string;
  /** Calls per second; 0 is client-go's default of 5, negative is unlimited. Watches are not counted. */
  qps: number;
  burst: number;
  /** Default timeout of a call, retries and rate limit included. 30 s. */
  timeoutMs?: number;
  /** Where calls are counted. A transport that is shared counts for itself. */
  metrics?: RestClientMetrics;
}

/** What lists and watches are restricted to. */
export interface ListQuery {
  namespace?: string;
  labelSelector?: string;
  fieldSelector?: string;
}

export interface WatchQuery extends ListQuery {
  /** Where to go on; absent together with `sendInitialEvents`. */
  resourceVersion?: string;
  /** The server ends the watch after this long. */
  timeoutSeconds: number;
  /** Ask for all present objects first, up to a marking bookmark (WatchList). */
  sendInitialEvents?: boolean;
}

/** The client, with what informers need beyond {@link ApiClient}. Disposing closes connections that it made itself. */
export interface KubeClient extends ApiClient, AsyncDisposable {
  readonly transport: Transport;
  /** A list page by page, each given to `onPage` as soon as it is there. @returns the list's resourceVersion */
  listPages<T extends KubeObject>(
    resource: Resource<T>,
    query: ListQuery,
    onPage: (page: Page<T>) => void | Promise<void>,
    options?: CallOptions,
  ): Promise<string>;
  /** Opens a watch: resolves with the server's headers, which may come as late as the first event. Never retried inside. */
  watch(resource: Resource<KubeObject>, query: WatchQuery, signal: AbortSignal): Promise<HttpResponse>;
}

export const callTimeoutMsDefault = 30_000;
// client-go tries 10 times; the call's timeout usually ends it sooner.
export const retriesMax = 10;
// Between tries when the connection broke or a 5xx came without Retry-After.
export const retryPauseMs = 200;
// kube-apiserver refuses larger bodies (3 MiB); said here with the object's name.
export const requestBytesMax = 3 << 20;
// A page of 500 objects at their largest size would be more; what exceeds this would not fit into the agent either.
export const responseBytesMax = 64 << 20;

const contentTypes: Record<PatchType, string> = {
  strategic: "application/strategic-merge-patch+json",
  merge: "application/merge-patch+json",
  json: "application/json-patch+json",
  apply: "application/apply-patch+yaml", // JSON is YAML
};

interface Call extends Omit<HttpRequest, "signal" | "body"> {
  payload?: unknown;
}

/** Makes a client; connects on the first call. */
export function createApiClient(options: ApiClientOptions): KubeClient {
  const { access, log, clock, userAgent, metrics } = options;
  if (options.transport !== undefined) {
    metrics?.transportCreations.inc({ result: "hit" });
    return new Client(options, options.transport, false);
  }
  if (access === undefined) throw new AgentError("Invalid", "createApiClient needs an access or a transport");
  const transport = createTransport({ access, userAgent, clock, log });
  return new Client(options, metrics === undefined ? transport : instrumentTransport(transport, metrics, clock), true);
}

class Client implements KubeClient {
  readonly transport: Transport;
  readonly #ownsTransport: boolean;
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #limiter: RateLimiter;
  readonly #timeoutMs: number;
  readonly #userAgent: string;
  readonly #fieldManager: string;
  readonly #metrics: RestClientMetrics | undefined;
  readonly #host: string;

  constructor(options: ApiClientOptions, transport: Transport, ownsTransport: boolean) {
    this.transport = transport;
    this.#ownsTransport = ownsTransport;
    this.#clock = options.clock;
    this.#log = options.log;
    this.#limiter = new RateLimiter(options);
    this.#timeoutMs = options.timeoutMs ?? callTimeoutMsDefault;
    this.#userAgent = options.userAgent;
    this.#fieldManager = options.userAgent.split("/", 1)[0] ?? "nodelet";
    this.#metrics = options.metrics;
    this.#host = hostLabel(transport.access.server);
  }

  get: ApiClient["get"] = async (resource, key, options) => {
    const path = withQuery(objectPath(resource, key), { resourceVersion: options?.resourceVersion });
    return this.#object({ method: "GET", path }, options);
  };

  list: ApiClient["list"] = async <T extends KubeObject>(
    resource: Resource<T>,
    query: ListQuery,
    options?: CallOptions,
  ) => {
    let items: T[] = [];
    const resourceVersion = await this.listPages(
      resource,
      query,
      (page) => {
        items = page.isFirst ? page.items : items.concat(page.items);
      },
      options,
    );
    return { items, resourceVersion };
  };

  create: ApiClient["create"] = async (resource, object, options) => {
    const { namespace, name } = object.metadata;
    requireNamespace(resource, namespace, name);
    return this.#object(
      { method: "POST", path: collectionPath(resource, namespace), payload: typed(resource, object) },
      options,
    );
  };

  update: ApiClient["update"] = async (resource, object, options) => {
    const path = objectPath(resource, object.metadata, options?.subresource);
    return this.#object({ method: "PUT", path, payload: typed(resource, object) }, options);
  };

  patch: ApiClient["patch"] = async (resource, key, patch, options) => {
    const apply = options.type === "apply" ? { fieldManager: this.#fieldManager, force: true } : {};
    const path = withQuery(objectPath(resource, key, options.subresource), apply);
    const headers = { "content-type": contentTypes[options.type] };
    return this.#object({ method: "PATCH", path, headers, payload: patch }, options);
  };

  delete: ApiClient["delete"] = async (resource, key, options) => {
    const { gracePeriodSeconds, uid } = options ?? {};
    const payload = {
      apiVersion: "v1",
      kind: "DeleteOptions",
      ...(gracePeriodSeconds === undefined ? {} : { gracePeriodSeconds }),
      ...(uid === undefined ? {} : { preconditions: { uid } }),
    };
    await this.#text({ method: "DELETE", path: objectPath(resource, key), payload }, options);
  };

  createSubresource: ApiClient["createSubresource"] = async (resource, key, subresource, body, options) =>
    this.#json({ method: "POST", path: objectPath(resource, key, subresource), payload: body }, options);

  request: ApiClient["request"] = async (method, path, body, options) =>
    this.#json({ method, path, payload: body }, options);

  resetConnections = (): void => this.transport.reset();

  listPages: KubeClient["listPages"] = async (resource, query, onPage, options) =>
    listPages(resource, query, async (path) => this.#json({ method: "GET", path }, options), onPage);

  watch: KubeClient["watch"] = async (resource, query, signal) => {
    const { namespace, sendInitialEvents, ...parameters } = query;
    const path = withQuery(collectionPath(resource, namespace), {
      watch: true,
      allowWatchBookmarks: true,
      ...parameters,
      ...(sendInitialEvents === true ? { sendInitialEvents, resourceVersionMatch: "NotOlderThan" } : {}),
    });
    const response = await this.#send({ method: "GET", path, isWatch: true, signal });
    if (response.status === 200) return response;
    throw await refusal(`watch ${resource.plural}`, response);
  };

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#ownsTransport) await this.transport[Symbol.asyncDispose]();
  }

  async #object<T extends KubeObject>(call: Call, options: CallOptions | undefined): Promise<T> {
    const object = await this.#json<T>(call, options);
    if (typeof object.metadata !== "object" || object.metadata === null) {
      throw new AgentError("Internal", `${describe(call)}: the answer is not a Kubernetes object`);
    }
    return object;
  }

  async #json<T>(call: Call, options: CallOptions | undefined): Promise<T> {
    const text = await this.#text(call, options);
    try {
      const value: unknown = JSON.parse(text);
      if (typeof value !== "object" || value === null) throw new Error("not an object");
      return value as T; // the API server's schema is the type's source
    } catch {
      // The parser's message would quote the answer, which may be a secret.
      throw new AgentError("Internal", `${describe(call)}: the answer is not a JSON object`);
    }
  }

  /** One call with everything around it: turn, timeout, retries. Resolves with a successful answer's text. */
  async #text(call: Call, options: CallOptions | undefined): Promise<string> {
    const { payload, ...request } = call;
    const body = payload === undefined ? undefined : JSON.stringify(payload);
    if (body !== undefined && Buffer.byteLength(body) > requestBytesMax) {
      throw new AgentError(
        "Invalid",
        `${describe(call)}: body is larger than the ${requestBytesMax} bytes that API servers take`,
      );
    }
    const headers = body === undefined ? {} : { "content-type": "application/json", ...request.headers };
    const timeoutMs = options?.timeoutMs ?? this.#timeoutMs;
    const deadlineMs = this.#clock.monotonic() + timeoutMs;
    const stop = new AbortController();
    const timer = this.#clock.after(timeoutMs, () => stop.abort());
    const link = options?.signal === undefined ? undefined : addAbortListener(options.signal, () => stop.abort());
    try {
      const full = { ...request, headers, ...(body === undefined ? {} : { body }), signal: stop.signal };
      return await this.#withRetries(full, deadlineMs);
    } catch (err) {
      if (options?.signal?.aborted === true) {
        throw new AgentError("Canceled", `${describe(call)}: canceled`, { cause: err });
      }
      if (stop.signal.aborted && isAbort(err)) {
        throw new AgentError("DeadlineExceeded", `${describe(call)}: no answer within ${timeoutMs} ms`, { cause: err });
      }
      throw err;
    } finally {
      timer.cancel();
      link?.[Symbol.dispose]();
    }
  }

  async #withRetries(request: HttpRequest, deadlineMs: number): Promise<string> {
    for (let retries = 0; ; retries += 1) {
      let error: unknown;
      try {
        await this.#waitForTurn(request);
        const response = await this.#send(request);
        if (response.status >= 200 && response.status < 300) return await readBody(response, responseBytesMax);
        error = await refusal(describe(request), response);
      } catch (err) {
        error = err;
      }
      const pauseMs = retries < retriesMax ? retryAfterMs(error, request.method, retries) : undefined;
      if (pauseMs === undefined || request.signal.aborted || this.#clock.monotonic() + pauseMs >= deadlineMs) {
        throw error;
      }
      this.#log.debug({ call: describe(request), err: messageOf(error), pauseMs }, "API call failed, trying again");
      const code = error instanceof ApiError ? String(error.status) : noAnswerCode;
      this.#metrics?.retries.inc({ code, verb: request.method, host: this.#host });
      if (pauseMs > 0) await this.#clock.sleep(pauseMs, request.signal);
    }
  }

  async #waitForTurn({ method, signal }: HttpRequest): Promise<void> {
    const startedAtMs = this.#clock.monotonic();
    await this.#limiter.acquire(signal);
    const seconds = (this.#clock.monotonic() - startedAtMs) / 1_000;
    this.#metrics?.throttleSeconds.observe({ verb: method, host: this.#host }, seconds);
  }

  /** Sends once; after a 401, once more if the credentials have changed in between. */
  async #send(request: HttpRequest): Promise<HttpResponse> {
    const headers = { "user-agent": this.#userAgent, ...request.headers };
    const before = await this.transport.access.credentials();
    const response = await this.transport.send({ ...request, headers });
    if (response.status !== 401) return response;
    this.transport.access.invalidate();
    const now = await this.transport.access.credentials();
    const isSame =
      now.connectionKey === before.connectionKey && now.headers["authorization"] === before.headers["authorization"];
    if (isSame) return response;
    response.close();
    return this.transport.send({ ...request, headers });
  }
}

/**
 * Whether a failed try is repeated, and after how long. Pure.
 * - The server said when to come back (429, 5xx with Retry-After): any method, since it has not acted.
 * - The request never reached the server's logic (refused stream, session closing): any method, a few times at once.
 * - The connection broke: only GET, which changes nothing. Not if it could not even be made: callers pace that themselves.
 */
export function retryAfterMs(error: unknown, method: HttpRequest["method"], retries: number): number | undefined {
  if (error instanceof ApiError) {
    const mayRetry = error.status === 429 || error.status >= 500;
    return mayRetry && error.retryAfterMs !== undefined ? error.retryAfterMs : undefined;
  }
  if (!(error instanceof TransportError) || retries >= connectionRetriesMax) return undefined;
  if (error.stage === "refused") return 0;
  return method === "GET" && error.stage === "broken" ? retryPauseMs : undefined;
}

// A server in trouble breaks many connections; beyond this the caller's own backoff has to slow us down.
export const connectionRetriesMax = 3;

async function refusal(what: string, response: HttpResponse): Promise<ApiError> {
  // A Status is small; of anything else only the beginning is quoted.
  const text = await readBody(response, errorBytesMax).catch((err: unknown) => {
    if (hasCode(err, "Canceled")) throw err;
    return "";
  });
  return apiError(what, response.status, text, response.headers["retry-after"]);
}

const errorBytesMax = 1 << 20;

function typed<T extends KubeObject>(resource: Resource<T>, object: T): T {
  const { group, version, kind } = resource;
  return { apiVersion: group === "" ? version : `${group}/${version}`, kind, ...object };
}

/** Method and path without the query, for messages. */
function describe({ method, path }: Pick<HttpRequest, "method" | "path">): string {
  return `${method} ${path.split("?", 1)[0]}`;
}
