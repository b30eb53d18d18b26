import type { IncomingMessage } from "node:http";
import type { Duplex } from "node:stream";
import type { Clock } from "../../../agent/lib/clock.ts";
import { serveObjects } from "./api.ts";
import { type Authorizer, authenticate, authorize } from "./auth.ts";
import { discover } from "./discovery.ts";
import { Exchange, type Request, type Response } from "./exchange.ts";
import { serveFaults } from "./faults-endpoint.ts";
import type { FaultAction, Faults } from "./faults.ts";
import { metricsGroup, metricsVersion, serveMetrics } from "./metrics-api.ts";
import { openApi } from "./openapi.ts";
import type { NodeProxy } from "./proxy.ts";
import type { Registry } from "./registry.ts";
import { type RequestInfo, requestInfo } from "./request-info.ts";
import type { LoggedRequest, RequestLog } from "./request-log.ts";
import { answerReview, reviewKinds } from "./reviews.ts";
import { ApiError, methodNotAllowed, unknownPath } from "./status.ts";
import { callSubresources, serveCall } from "./subresources.ts";
import type { TokenAuthority } from "./tokens.ts";
import type { User } from "./types.ts";
import type { WatchHub } from "./watches.ts";

export interface HandlerDeps {
  registry: Registry;
  tokens: TokenAuthority;
  known: ReadonlyMap<string, User>;
  authorizer: Authorizer | undefined;
  watches: WatchHub;
  requests: RequestLog;
  faults: Faults;
  proxy: NodeProxy;
  clock: Clock;
  /** host:port as discovery tells it. */
  advertised: string;
}

export interface Handler {
  onRequest(request: Request, response: Response): void;
  onUpgrade(request: IncomingMessage, socket: Duplex, head: Buffer): void;
  /** Resolves when no request is under way any more. */
  settled(): Promise<void>;
}

/** The way of each request: log → authenticate → fault → authorize → serve. */
export function createHandler(deps: HandlerDeps): Handler {
  const underWay = new Set<Promise<void>>();
  const track = (work: Promise<void>) => {
    underWay.add(work);
    void work.finally(() => underWay.delete(work));
  };
  return {
    onRequest: (request, response) => track(answer(new Exchange(request, response), deps)),
    onUpgrade: (request, socket, head) => track(upgrade(request, socket, head, deps)),
    settled: async () => {
      await Promise.all(underWay);
    },
  };
}

async function answer(exchange: Exchange, deps: HandlerDeps): Promise<void> {
  const info = requestInfo(exchange.method, exchange.url);
  const entry = logEntry(exchange, info, deps);
  deps.requests.add(entry);
  exchange.response.on("close", () => {
    entry.code = exchange.code;
  });
  try {
    exchange.user = authenticate(exchange, deps.tokens, deps.known);
    entry.user = exchange.user.name;
    const fault = deps.faults.next({ ...entry, url: entry.url });
    if (fault !== undefined && !(await suffer(exchange, fault, deps.clock))) return;
    await serve(exchange, info, deps);
  } catch (err) {
    await exchange.sendError(err);
  }
  entry.code = exchange.code;
}

interface MutableEntry extends Omit<LoggedRequest, "user"> {
  user: string;
}

function logEntry(exchange: Exchange, info: RequestInfo, { clock }: HandlerDeps): MutableEntry {
  return {
    atMs: clock.now(),
    method: exchange.method,
    url: `${exchange.url.pathname}${exchange.url.search}`,
    verb: info.verb,
    resource: info.subresource === "" ? info.plural : `${info.plural}/${info.subresource}`,
    user: "",
    userAgent: exchange.header("user-agent") ?? "",
    httpVersion: exchange.request.httpVersion,
    code: 0,
  };
}

/** Carries a fault out. Resolves to whether the request is to be served all the same. */
async function suffer(exchange: Exchange, fault: FaultAction, clock: Clock): Promise<boolean> {
  switch (fault.kind) {
    case "respond":
      await exchange.sendError(faultError(fault));
      return false;
    case "delay":
      await clock.sleep(fault.ms, exchange.gone).catch(() => {});
      return !exchange.gone.aborted;
    case "drop":
      exchange.cut();
      return false;
    case "dropAnswer":
      // Any body will do: it is broken off before its first byte.
      exchange.bodyFault = { chunkBytes: 1, intervalMs: 0, cutAfterBytes: 0 };
      return true;
    case "hang":
      if (exchange.gone.aborted) return false;
      await new Promise<void>((resolve) => exchange.gone.addEventListener("abort", () => resolve(), { once: true }));
      return false;
    case "slowBody":
      exchange.bodyFault = fault;
      return true;
  }
}

const faultReasons: Readonly<Record<number, readonly [reason: string, message: string]>> = {
  403: ["Forbidden", "forbidden: injected fault"],
  409: [
    "Conflict",
    "Operation cannot be fulfilled: the object has been modified; please apply your changes to the latest version and try again",
  ],
  410: ["Expired", "The provided resource version is too old"],
  429: ["TooManyRequests", "the server has received too many requests and has asked us to try again later"],
  500: ["InternalError", "Internal error occurred: injected fault"],
  503: ["ServiceUnavailable", "the server is currently unable to handle the request"],
  504: ["Timeout", "the server was unable to return a response in the time allotted"],
};

function faultError({ code, retryAfterSeconds, message }: Extract<FaultAction, { kind: "respond" }>): ApiError {
  const [reason, text] = faultReasons[code] ?? ["Unknown", "injected fault"];
  return new ApiError(code, reason, message ?? text, retryAfterSeconds === undefined ? {} : { retryAfterSeconds });
}

async function serve(exchange: Exchange, info: RequestInfo, deps: HandlerDeps): Promise<void> {
  const { registry } = deps;
  const nowMs = () => deps.clock.now();
  if (info.plural === "") {
    await serveMeta(exchange, deps);
    return;
  }
  checkAccess(exchange.user, info, deps);
  if (reviewKinds[info.plural]?.group === info.group) {
    if (exchange.method !== "POST") throw methodNotAllowed();
    const review = answerReview(info.plural, await exchange.readObject(), exchange.user, deps);
    return exchange.send(201, review);
  }
  if (info.group === metricsGroup && info.version === metricsVersion) {
    return serveMetrics(exchange, info, { store: registry.store, proxy: deps.proxy, now: () => registry.now() });
  }
  if (deps.proxy.handles(info)) return deps.proxy.serve(exchange, info);
  if (callSubresources.includes(info.subresource)) {
    return serveCall(exchange, info, { registry, tokens: deps.tokens, nowMs });
  }
  return serveObjects(exchange, info, {
    registry,
    nowMs,
    watch: (watched, resource, matches) => deps.watches.watch(watched, resource, matches),
  });
}

function checkAccess(user: User, info: RequestInfo, { authorizer }: HandlerDeps): void {
  const { verb, group, plural, subresource, namespace, name } = info;
  authorize(authorizer, { user, verb, group, resource: plural, subresource, namespace, name });
}

async function serveMeta(exchange: Exchange, deps: HandlerDeps): Promise<void> {
  const { pathname } = exchange.url;
  if (/^\/(healthz|livez|readyz)(\/|$)/.test(pathname)) {
    return exchange.sendText(200, "ok", { "content-type": "text/plain; charset=utf-8" });
  }
  if (pathname === "/test/faults") return serveFaults(exchange, deps);
  const known = discover(pathname, deps.advertised);
  if (known !== undefined) return exchange.send(200, known);
  const document = openApi(pathname, exchange.header("accept") ?? "");
  if (document !== undefined) return exchange.sendText(200, document.body, { "content-type": document.contentType });
  throw unknownPath();
}

/** HTTP/1.1 upgrades: only streams to a kubelet have them. */
async function upgrade(request: IncomingMessage, socket: Duplex, head: Buffer, deps: HandlerDeps): Promise<void> {
  // The client may go at any time; there is nobody left to tell.
  socket.on("error", () => socket.destroy());
  const exchange = upgradeExchange(request);
  const info = requestInfo(exchange.method, exchange.url);
  const entry = logEntry(exchange as Exchange, info, deps);
  deps.requests.add(entry);
  try {
    exchange.user = authenticate(exchange as Exchange, deps.tokens, deps.known);
    entry.user = exchange.user.name;
    checkAccess(exchange.user, { ...info, verb: "create" }, deps);
    if (!deps.proxy.handles(info)) throw unknownPath();
    entry.code = await deps.proxy.upgrade(request, info, exchange.url, { socket, head });
  } catch (err) {
    const status = err instanceof ApiError ? err.status : new ApiError(500, "InternalError", String(err)).status;
    entry.code = status.code;
    const body = JSON.stringify(status);
    socket.end(
      `HTTP/1.1 ${status.code} ${status.reason ?? "Error"}\r\nContent-Type: application/json\r\n` +
        `Content-Length: ${Buffer.byteLength(body)}\r\nConnection: close\r\n\r\n${body}`,
    );
  }
}

// As much of an exchange as authentication and the log look at; there is no response object before an upgrade.
function upgradeExchange(request: IncomingMessage) {
  return {
    request,
    method: request.method ?? "GET",
    url: new URL(request.url ?? "/", "https://test"),
    user: { name: "", groups: [] } as User,
    header: (name: string) => {
      const value = request.headers[name];
      return Array.isArray(value) ? value.join(",") : value;
    },
  };
}
