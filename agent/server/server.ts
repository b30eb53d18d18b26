import type { AddressInfo } from "node:net";
import type { KubeletConfiguration } from "../config/kubelet-config.ts";
import type { Clock } from "../lib/clock.ts";
import { ignoreAbort, untilAborted } from "../lib/loop.ts";
import { messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import type { MetricsRegistry } from "../lib/metrics.ts";
import type { Authenticator } from "./auth/authenticator.ts";
import type { Authorizer } from "./auth/authorizer.ts";
import { createHealthHandlers, pingCheck } from "./handlers/healthz.ts";
import { type ConnectionTimes, connectionTimes, floodWarningMs, healthzRetryMs } from "./limits.ts";
import { ListenerConnections, type ListenerOptions, runListener } from "./listener.ts";
import { RequestPath, type RequestPathOptions } from "./request-path.ts";
import { createRequestMetrics } from "./request-metrics.ts";
import { type KubeletHandlers, healthzRoutes, kubeletRoutes, readOnlyRoutes, type RouteSwitches } from "./routes.ts";
import type { KubeletTls } from "./tls-context.ts";

/** Fields of the kubelet's configuration that say where and what is served. */
export type ServerConfig = RouteSwitches &
  Pick<
    KubeletConfiguration,
    "enableServer" | "address" | "port" | "readOnlyPort" | "healthzPort" | "healthzBindAddress"
  >;

/** `kubelet`: the secure port; `readOnly` and `healthz`: the plain ones that need no credentials. */
export type ListenerName = "kubelet" | "readOnly" | "healthz";

export interface KubeletServerOptions {
  readonly config: ServerConfig;
  readonly tls: KubeletTls;
  readonly authenticator: Authenticator;
  readonly authorizer: Authorizer;
  readonly handlers: KubeletHandlers;
  readonly metrics: MetricsRegistry;
  readonly clock: Clock;
  readonly log: Logger;
  /** Other than {@link connectionTimes}; for tests. */
  readonly times?: Partial<ConnectionTimes>;
  /** Called for each listener when it accepts connections. */
  onListening?(name: ListenerName, address: AddressInfo): void;
}

/** The kubelet's HTTP API. */
export interface KubeletServer {
  /**
   * Serves until `signal` aborts, and resolves when every connection is closed. Rejects when the kubelet's port or the
   * read-only one cannot be listened on; the port for health checks is tried again and again instead.
   */
  run(signal: AbortSignal): Promise<void>;
}

/** Makes the kubelet's HTTP API on its up to three ports. Nothing listens before `run`. */
export function createKubeletServer(options: KubeletServerOptions): KubeletServer {
  const { config, tls, authenticator, authorizer, handlers, clock, log } = options;
  const metrics = createRequestMetrics(options.metrics, clock);
  const listeners: ((signal: AbortSignal) => Promise<void>)[] = [];
  const serve = (
    name: ListenerName,
    place: Pick<ListenerOptions, "host" | "port" | "tls">,
    path: Omit<RequestPathOptions, "clock" | "log" | "onTrusted">,
  ) => {
    return async (signal: AbortSignal) => {
      const connections = new ListenerConnections(warnOfFlood(name, clock, log));
      const onTrusted: RequestPathOptions["onTrusted"] = (socket) => connections.trust(socket);
      const requestPath = new RequestPath({ ...path, clock, log, onTrusted });
      const times = { ...connectionTimes, ...options.times };
      await runListener({ ...place, path: requestPath, connections, times, clock, log }, signal, (address) => {
        log.info({ listener: name, address: address.address, port: address.port }, "kubelet API is listening");
        options.onListening?.(name, address);
      });
    };
  };

  const { address: host, port, readOnlyPort, healthzPort, healthzBindAddress } = config;
  if (config.enableServer) {
    const routes = kubeletRoutes(handlers, config);
    const auth = { authenticator, authorizer };
    listeners.push(serve("kubelet", { host, port, tls }, { routes, serverType: "readwrite", auth, metrics }));
    if (readOnlyPort > 0) {
      const open = { routes: readOnlyRoutes(handlers), serverType: "readonly", auth: undefined, metrics } as const;
      listeners.push(serve("readOnly", { host, port: readOnlyPort }, open));
    }
  }
  if (healthzPort > 0) {
    const { healthz, healthChecks } = createHealthHandlers([pingCheck]);
    const routes = healthzRoutes(healthz, healthChecks.get(pingCheck.name) ?? healthz);
    const place = { host: healthzBindAddress, port: healthzPort };
    const run = serve("healthz", place, { routes, serverType: "readonly", auth: undefined, metrics: undefined });
    listeners.push(retrying(run, place, options));
  }
  return { run: (signal) => runAll(listeners, signal) };
}

/** @returns says in the log that connections are closed to make room, but not for each of them */
function warnOfFlood(name: ListenerName, clock: Clock, log: Logger): () => void {
  let warnedAtMs = Number.NEGATIVE_INFINITY;
  return () => {
    if (clock.monotonic() - warnedAtMs < floodWarningMs) return;
    warnedAtMs = clock.monotonic();
    log.warn({ listener: name }, "many connections of strangers: closing the oldest of the address that has most");
  };
}

/** Listens again after a failure: a port that is taken now may be free in a moment. */
function retrying(
  run: (signal: AbortSignal) => Promise<void>,
  place: { host: string; port: number },
  { clock, log }: Pick<KubeletServerOptions, "clock" | "log">,
): (signal: AbortSignal) => Promise<void> {
  return async (signal) => {
    while (!signal.aborted) {
      try {
        await run(signal);
      } catch (err) {
        log.error({ ...place, err: messageOf(err), retryMs: healthzRetryMs }, "cannot serve /healthz: trying again");
        await clock.sleep(healthzRetryMs, signal).catch(ignoreAbort);
      }
    }
  };
}

/** Runs all until `signal` aborts. One that fails stops the others, and is what this rejects with. */
async function runAll(runs: readonly ((signal: AbortSignal) => Promise<void>)[], signal: AbortSignal): Promise<void> {
  const failed = new AbortController();
  const stop = AbortSignal.any([signal, failed.signal]);
  const results = await Promise.allSettled(
    runs.map((run) =>
      run(stop).catch((err: unknown) => {
        failed.abort();
        throw err;
      }),
    ),
  );
  const failure = results.find((result) => result.status === "rejected");
  if (failure !== undefined) throw failure.reason;
  // enableServer: false and no port for health checks: there is nothing to serve, but the part still runs.
  if (runs.length === 0) await untilAborted(signal);
}
