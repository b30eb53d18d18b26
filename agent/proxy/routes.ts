import { type Handler } from "../server/port.ts";
import type { Route } from "../server/router.ts";
import type { Answer } from "./health.ts";
import { sendText } from "../server/respond.ts";

/** What the proxy's port for metrics serves. */
export interface ProxyHandlers {
  readonly healthz: Handler;
  readonly ping: Handler;
  readonly metrics: Handler;
  readonly slis: Handler;
  readonly proxyMode: Handler;
  readonly configz: Handler;
  readonly statusz: Handler;
  readonly flagz: Handler;
  /** Name of the profile in `profile`, empty for the index. */
  readonly pprof: Handler;
  readonly verbosity: Handler;
}

/** What is off is not there. */
export interface ProxyRouteSwitches {
  readonly statusz: boolean;
  readonly flagz: boolean;
  /** Profiles, and the log's verbosity. */
  readonly enableProfiling: boolean;
}

// Whoever profiles may ask for symbols with a POST.
const profileMethods = ["GET", "HEAD", "POST"];

/** The port for metrics: anybody who reaches it may ask all of it. */
export function metricsRoutes(handlers: ProxyHandlers, switches: ProxyRouteSwitches): Route[] {
  const { pprof, verbosity, statusz, flagz } = handlers;
  const profiles = { methods: profileMethods, template: "/debug/pprof/{profile*}", handler: pprof };
  return [
    exact("/healthz", handlers.healthz),
    exact("/healthz/ping", handlers.ping),
    exact("/metrics", handlers.metrics),
    exact("/metrics/slis", handlers.slis),
    exact("/proxyMode", handlers.proxyMode),
    exact("/configz", handlers.configz),
    ...(switches.statusz ? [exact("/statusz", statusz)] : []),
    ...(switches.flagz ? [exact("/flagz", flagz)] : []),
    ...(switches.enableProfiling
      ? [{ kind: "service", path: "/debug/pprof/", endpoints: [profiles] } as const, exact("/debug/flags/v", verbosity)]
      : []),
  ];
}

/** The port for the proxy's own health. */
export function healthRoutes(healthz: () => Answer, livez: () => Answer): Route[] {
  return [exact("/healthz", answering(healthz)), exact("/livez", answering(livez))];
}

/** A healthCheckNodePort: any path will do. */
export function healthCheckRoutes(answer: () => Answer): Route[] {
  return [{ kind: "below", path: "/", handler: answering(answer) }];
}

function exact(path: string, handler: Handler): Route {
  return { kind: "exact", path, handler };
}

function answering(ask: () => Answer): Handler {
  return ({ response }) => {
    const { status, headers, body } = ask();
    sendText(response, status, body, headers);
    return Promise.resolve();
  };
}
