import { type Handler, type UpgradeHandler } from "./port.ts";
import { plainError } from "./respond.ts";
import type { Endpoint, Route } from "./router.ts";

/** A handler for requests, and one for those that leave HTTP. */
export interface StreamHandler {
  readonly handle: Handler;
  readonly upgrade: UpgradeHandler;
}

/** What serves the routes of the kubelet API, by route. */
export interface KubeletHandlers {
  readonly healthz: Handler;
  /** `/healthz/<name>` for each check. */
  readonly healthChecks: ReadonlyMap<string, Handler>;
  readonly pods: Handler;
  readonly runningPods: Handler;
  readonly statsSummary: Handler;
  readonly metrics: MetricsHandlers;
  readonly run: Handler;
  readonly exec: StreamHandler;
  readonly attach: StreamHandler;
  readonly portForward: StreamHandler;
  readonly containerLogs: Handler;
  /** Path below /var/log in `path`, empty for the root; a slash at its end is kept. */
  readonly nodeLogs: Handler;
  readonly configz: Handler;
  readonly checkpoint: Handler;
  /** Name of the profile in `profile`, empty for the index. */
  readonly pprof: Handler;
  readonly verbosity: Handler;
  readonly statusz: Handler;
  readonly flagz: Handler;
}

/** Handlers below /metrics. */
export interface MetricsHandlers {
  readonly agent: Handler;
  readonly cadvisor: Handler;
  readonly resource: Handler;
  readonly probes: Handler;
  readonly slis: Handler;
}

/** Fields of the kubelet's configuration that switch routes off. */
export interface RouteSwitches {
  readonly enableDebuggingHandlers: boolean;
  readonly enableProfilingHandler: boolean;
  readonly enableDebugFlagsHandler: boolean;
  readonly enableSystemLogHandler: boolean;
  /** Feature gates ContainerCheckpoint, ComponentStatusz and ComponentFlagz: what is off is not there. */
  readonly checkpoint: boolean;
  readonly statusz: boolean;
  readonly flagz: boolean;
}

/** Everything that the secure port serves. */
export function kubeletRoutes(handlers: KubeletHandlers, switches: RouteSwitches): Route[] {
  return [
    ...openRoutes(handlers),
    ...(switches.enableDebuggingHandlers ? debuggingRoutes(handlers, switches) : disabledRoutes()),
  ];
}

/** What the read-only port serves, to anybody. */
export function readOnlyRoutes(handlers: KubeletHandlers): Route[] {
  return [...openRoutes(handlers), ...disabledRoutes()];
}

/** What the port for health checks serves, to anybody. */
export function healthzRoutes(healthz: Handler, ping: Handler): Route[] {
  return [exact("/healthz", healthz), exact("/healthz/ping", ping)];
}

function openRoutes({ healthz, healthChecks, pods, statsSummary, metrics }: KubeletHandlers): Route[] {
  return [
    exact("/healthz", healthz),
    ...[...healthChecks].map(([name, handler]) => exact(`/healthz/${name}`, handler)),
    service("/pods", json(["GET"], "/pods", pods)),
    service("/stats/", json(["GET", "POST"], "/stats/summary", statsSummary)),
    exact("/metrics", metrics.agent),
    exact("/metrics/cadvisor", metrics.cadvisor),
    exact("/metrics/resource", metrics.resource),
    exact("/metrics/probes", metrics.probes),
    exact("/metrics/slis", metrics.slis),
  ];
}

function debuggingRoutes(handlers: KubeletHandlers, switches: RouteSwitches): Route[] {
  const { run, exec, attach, portForward, containerLogs, runningPods, checkpoint, configz } = handlers;
  const container = "{namespace}/{pod}/{container}";
  const containerByUid = "{namespace}/{pod}/{uid}/{container}";
  return [
    service("/run", on(["POST"], `/run/${container}`, run), on(["POST"], `/run/${containerByUid}`, run)),
    service("/exec", stream(`/exec/${container}`, exec), stream(`/exec/${containerByUid}`, exec)),
    service("/attach", stream(`/attach/${container}`, attach), stream(`/attach/${containerByUid}`, attach)),
    service(
      "/portForward",
      stream("/portForward/{namespace}/{pod}", portForward),
      stream("/portForward/{namespace}/{pod}/{uid}", portForward),
    ),
    service("/containerLogs", on(["GET"], `/containerLogs/${container}`, containerLogs)),
    service("/runningpods/", json(["GET"], "/runningpods/", runningPods)),
    ...(switches.checkpoint ? [service("/checkpoint/", json(["POST"], `/checkpoint/${container}`, checkpoint))] : []),
    exact("/configz", configz),
    ...(switches.statusz ? [exact("/statusz", handlers.statusz)] : []),
    ...(switches.flagz ? [exact("/flagz", handlers.flagz)] : []),
    switches.enableSystemLogHandler
      ? service("/logs/", on(["GET"], "/logs/{path*}", handlers.nodeLogs))
      : disabled("/logs/", "logs endpoint is disabled."),
    switches.enableProfilingHandler
      ? service("/debug/pprof/", on(["GET"], "/debug/pprof/{profile*}", handlers.pprof))
      : disabled("/debug/pprof/", "profiling endpoint is disabled."),
    switches.enableDebugFlagsHandler
      ? exact("/debug/flags/v", handlers.verbosity)
      : exact("/debug/flags/v", refusing("flags endpoint is disabled.")),
  ];
}

function disabledRoutes(): Route[] {
  const roots = "/run/ /exec/ /attach/ /portForward/ /containerLogs/ /runningpods/ /debug/pprof/ /logs/".split(" ");
  return roots.map((root) => disabled(root, "Debug endpoints are disabled."));
}

function exact(path: string, handler: Handler): Route {
  return { kind: "exact", path, handler };
}

function disabled(path: string, text: string): Route {
  return { kind: "below", path, handler: refusing(text) };
}

function refusing(text: string): Handler {
  return () => Promise.reject(plainError(405, text));
}

function service(path: string, ...endpoints: Endpoint[]): Route {
  return { kind: "service", path, endpoints };
}

function on(methods: readonly string[], template: string, handler: Handler): Endpoint {
  return { methods, template, handler };
}

function json(methods: readonly string[], template: string, handler: Handler): Endpoint {
  return { methods, template, handler, isJson: true };
}

function stream(template: string, { handle: handler, upgrade }: StreamHandler): Endpoint {
  return { methods: ["GET", "POST"], template, handler, upgrade };
}
