import type { AddressInfo } from "node:net";
import type { KubeletConfiguration } from "../config/kubelet-config.ts";
import type { Clock } from "../lib/clock.ts";
import { untilAborted } from "../lib/loop.ts";
import { messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import type { MetricsRegistry } from "../lib/metrics.ts";
import type { Authenticator } from "./auth/authenticator.ts";
import type { Authorizer } from "./auth/authorizer.ts";
import { createHealthHandlers, pingCheck } from "./handlers/healthz.ts";
import { type ConnectionTimes, connectionTimes, healthzRetryMs } from "./limits.ts";
import { ListenerConnections, runListener } from "./listener.ts";
import { type Place, type PlainServerOptions, runPlainServer, runRetrying, warnOfFlood } from "./plain.ts";
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
  const listening = (name: ListenerName) => (address: AddressInfo) => {
    log.info({ listener: name, address: address.address, port: address.port }, "kubelet API is listening");
    options.onListening?.(name, address);
  };
  const servePlain = (name: ListenerName, place: Place, what: Pick<PlainServerOptions, "routes" | "metrics">) => {
    const { times } = options;
    return (signal: AbortSignal) =>
      runPlainServer({ name, ...place, ...what, times, clock, log }, signal, listening(name));
  };

  const { address: host, port, readOnlyPort, healthzPort, healthzBindAddress } = config;
  if (config.enableServer) {
    const auth = { authenticator, authorizer };
    const routes = kubeletRoutes(handlers, config);
    const times = { ...connectionTimes, ...options.times };
    listeners.push(async (signal) => {
      const connections = new ListenerConnections(warnOfFlood("kubelet", clock, log));
      const onTrusted: RequestPathOptions["onTrusted"] = (socket) => connections.trust(socket);
      const path = new RequestPath({ routes, serverType: "readwrite", auth, metrics, clock, log, onTrusted });
      await runListener({ host, port, tls, path, connections, times, clock, log }, signal, listening("kubelet"));
    });
    if (readOnlyPort > 0) {
      const place = { host, port: readOnlyPort };
      listeners.push(servePlain("readOnly", place, { routes: readOnlyRoutes(handlers), metrics }));
    }
  }
  if (healthzPort > 0) {
    const { healthz, healthChecks } = createHealthHandlers([pingCheck]);
    const routes = healthzRoutes(healthz, healthChecks.get(pingCheck.name) ?? healthz);
    const place = { host: healthzBindAddress, port: healthzPort };
    const run = servePlain("healthz", place, { routes });
    const onFailure = (err: unknown) => {
      log.error({ ...place, err: messageOf(err), retryMs: healthzRetryMs }, "cannot serve /healthz: trying again");
    };
    listeners.push((signal) => runRetrying(run, { retryMs: healthzRetryMs, onFailure, clock }, signal));
  }
  return { run: (signal) => runAll(listeners, signal) };
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
