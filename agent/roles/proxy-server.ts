import { arch, platform } from "node:os";
import { isGateOn, listFeatureGates } from "../config/feature-gates.ts";
import { proxyConfigz, type ProxySettings } from "../config/load-proxy.ts";
import { splitHostPort } from "../config/validate-proxy.ts";
import { createRestClientMetrics, type RestClientMetrics } from "../kube/metrics.ts";
import type { EventRecorder, Store } from "../kube/port.ts";
import type { Node } from "../kube/types.ts";
import { errnoOf } from "../lib/errno.ts";
import { MetricsRegistry } from "../lib/metrics.ts";
import { registerProcessMetrics } from "../lib/metrics-process.ts";
import { goArch } from "../node/facts.ts";
import { hostPort } from "../proxy/ip.ts";
import type { ServeHealthChecks } from "../proxy/health-check-ports.ts";
import { healthAnswer, isNodeEligible, judgeProxyHealth } from "../proxy/health.ts";
import { createProxyMetrics, type ProxyMetrics } from "../proxy/metrics.ts";
import type { ProxyOptions } from "../proxy/options.ts";
import type { Proxy } from "../proxy/proxy.ts";
import { healthCheckRoutes, healthRoutes, metricsRoutes, type ProxyHandlers } from "../proxy/routes.ts";
import { proxyFlagValues } from "../server/flag-values.ts";
import { createConfigzHandler } from "../server/handlers/configz.ts";
import { createHealthHandlers, pingCheck } from "../server/handlers/healthz.ts";
import { createPprofHandler } from "../server/handlers/pprof.ts";
import { createVerbosityHandler } from "../server/handlers/verbosity.ts";
import { createFlagzHandler, createStatuszHandler } from "../server/handlers/z-pages.ts";
import { ListenerConnections } from "../server/listener.ts";
import { healthCheckPortCheckMs, proxyBindRetryMs } from "../server/limits.ts";
import { createOwnMetricsHandlers } from "../server/metrics/handlers.ts";
import { registerBuild } from "../server/metrics/identity.ts";
import { HealthSLIs } from "../server/metrics/slis.ts";
import { bindFailure, type Place, runPlainServer, runRetrying, warnOfFlood } from "../server/plain.ts";
import { sendText } from "../server/respond.ts";
import type { Route } from "../server/router.ts";
import { kubeletVersion } from "../version.ts";
import type { Surroundings } from "./cluster.ts";
import { processStartMs } from "./kubelet-metrics.ts";

/** What the proxy role's parts count with. Nothing of the kubelet role's is in it. */
export interface ProxyRoleMetrics {
  /** For /metrics. */
  readonly registry: MetricsRegistry;
  readonly restClient: RestClientMetrics;
}

/** Makes the role's metrics, and measures the process until the agent ends. */
export function createProxyRoleMetrics(
  { config }: ProxySettings,
  { clock, parts }: Pick<Surroundings, "clock" | "parts">,
): ProxyRoleMetrics {
  const registry = new MetricsRegistry();
  const ofProcess = registerProcessMetrics(registry, { processStartMs: processStartMs() });
  parts.defer("kube-proxy's measuring of the event loop", () => ofProcess.close());
  const featureGates = listFeatureGates(config.featureGates);
  registerBuild(registry, { platform: `${platform()}/${goArch(arch())}`, featureGates });
  return { registry, restClient: createRestClientMetrics(registry, clock) };
}

type ServerSurroundings = Pick<Surroundings, "clock" | "log" | "parts">;

export interface ProxyServersOptions {
  readonly settings: ProxySettings;
  readonly mode: ProxyOptions["mode"];
  readonly syncPeriodMs: number;
  readonly nodeName: string;
  readonly nodes: Store<Node>;
  readonly recorder: EventRecorder;
  readonly registry: MetricsRegistry;
  /** Takes the number that `-v` takes. */
  readonly setVerbosity: (verbosity: number) => void;
  /** The proxy's; none before it begins. */
  readonly stats: Proxy["stats"];
  /** The proxy could not begin, and waits before it tries again. */
  readonly hasFailed: () => boolean;
}

/** What the proxy needs of its servers. */
export interface ProxyServers {
  readonly observer: ProxyMetrics["observer"];
  readonly serveHealthChecks: ServeHealthChecks;
}

/**
 * Starts the servers of health and metrics as parts of the agent. They answer before anything else works. An address that
 * cannot be listened on is tried again, or ends the agent if the configuration says so.
 */
export function startProxyServers(options: ProxyServersOptions, surroundings: ServerSurroundings): ProxyServers {
  const { settings, mode, registry, stats } = options;
  const { healthzBindAddress, metricsBindAddress } = settings.config;
  const { clock, log, parts } = surroundings;
  const metrics = createProxyMetrics(registry, mode, stats);
  startHealthServer(healthzBindAddress, metrics, options, surroundings);
  const address = placeOf(metricsBindAddress);
  if (address !== undefined) {
    const { config } = settings;
    const isOn = (gate: string) => isGateOn(config.featureGates, gate);
    const { enableProfiling } = config;
    const switches = { enableProfiling, statusz: isOn("ComponentStatusz"), flagz: isOn("ComponentFlagz") };
    const routes = metricsRoutes(handlersOf(options, surroundings), switches);
    const server = { what: "metrics server", event: "FailedToStartMetricServer", address, routes };
    parts.start("kube-proxy's metrics server", (signal) => serveAlways(server, options, surroundings, signal));
  }

  // One bound for all of these ports: their number is up to the cluster.
  const times = { checkMs: healthCheckPortCheckMs };
  const connections = new ListenerConnections(warnOfFlood("health check ports", clock, log));
  return {
    observer: metrics.observer,
    serveHealthChecks: async (place, answer, signal, onListening) => {
      const routes = healthCheckRoutes(answer);
      const name = "health check port";
      await runPlainServer({ name, ...place, routes, connections, times, clock, log }, signal, onListening);
    },
  };
}

function startHealthServer(
  bindAddress: string,
  metrics: ProxyMetrics,
  options: ProxyServersOptions,
  surroundings: ServerSurroundings,
): void {
  const { nodeName, nodes, stats, hasFailed, syncPeriodMs } = options;
  const { clock, parts } = surroundings;
  const address = placeOf(bindAddress);
  if (address === undefined) return;
  let node: Node | undefined;
  const ask = (path: "healthz" | "livez") => {
    const health = judgeProxyHealth(stats(), syncPeriodMs, hasFailed());
    const answer = healthAnswer(health, clock.now(), path === "healthz" ? isNodeEligible(node) : undefined);
    metrics.healthAsked(path, answer.status);
    return answer;
  };
  const routes = healthRoutes(
    () => ask("healthz"),
    () => ask("livez"),
  );
  const server = { what: "proxy healthz", event: "FailedToStartProxierHealthcheck", address, routes };
  parts.start("kube-proxy's health server", async (signal) => {
    // A Node that is gone counts as it was: its own deletion has been heard before.
    const unsubscribe = nodes.subscribe(({ object }) => {
      if (object?.metadata.name === nodeName) node = object;
    });
    try {
      await serveAlways(server, options, surroundings, signal);
    } finally {
      unsubscribe();
    }
  });
}

interface AddressedServer {
  readonly what: string;
  /** Reason of the event when the address cannot be had. */
  readonly event: string;
  readonly address: Place;
  readonly routes: readonly Route[];
}

async function serveAlways(
  { what, event, address, routes }: AddressedServer,
  { settings, nodeName, recorder }: ProxyServersOptions,
  { clock, log }: ServerSurroundings,
  signal: AbortSignal,
): Promise<void> {
  const { bindAddressHardFail } = settings.config;
  let toldMessage = "";
  const failure = (err: unknown) => {
    const message = bindFailure(what, address, err);
    // Once for a row of equal failures: they come every few seconds.
    if (message !== toldMessage) {
      recorder.event({ kind: "Node", name: nodeName, uid: nodeName }, "Warning", event, message, "StartKubeProxy");
    }
    toldMessage = message;
    return message;
  };
  const run = async (stop: AbortSignal) => {
    await runOnBothFamilies(address, (place) =>
      runPlainServer({ name: what, ...place, routes, clock, log }, stop, ({ address: host, port }) => {
        toldMessage = "";
        log.info({ address: hostPort(host, port) }, `${what} is listening`);
      }),
    );
  };
  if (bindAddressHardFail) {
    await run(signal).catch((err: unknown) => {
      throw new Error(failure(err), { cause: err });
    });
    return;
  }
  const onFailure = (err: unknown) => log.error({ err: failure(err), retryMs: proxyBindRetryMs }, "trying again");
  await runRetrying(run, { retryMs: proxyBindRetryMs, onFailure, clock }, signal);
}

/** A wildcard of IPv4 means both families, as it does in Go, where the machine has both. */
async function runOnBothFamilies(place: Place, run: (place: Place) => Promise<void>): Promise<void> {
  if (place.host !== "0.0.0.0") return await run(place);
  try {
    await run({ ...place, host: "::" });
  } catch (err) {
    if (!["EAFNOSUPPORT", "EADDRNOTAVAIL"].includes(errnoOf(err) ?? "")) throw err;
    await run(place);
  }
}

/** @returns undefined if the server is switched off */
function placeOf(address: string): Place | undefined {
  const parts = splitHostPort(address);
  return parts === undefined ? undefined : { host: parts.host, port: Number(parts.port) };
}

function handlersOf(
  { settings, mode, registry, setVerbosity }: ProxyServersOptions,
  { clock }: ServerSurroundings,
): ProxyHandlers {
  const slis = new HealthSLIs();
  const { healthz, healthChecks } = createHealthHandlers([pingCheck], (name, isHealthy) =>
    slis.record(name, isHealthy),
  );
  return {
    healthz,
    ping: healthChecks.get(pingCheck.name) ?? healthz,
    ...createOwnMetricsHandlers({ registry, slis, processStartMs: processStartMs() }),
    proxyMode: ({ response }) => {
      sendText(response, 200, mode, { "X-Content-Type-Options": "nosniff" });
      return Promise.resolve();
    },
    configz: createConfigzHandler(() => proxyConfigz(settings.config)),
    statusz: createStatuszHandler({
      component: "kube-proxy",
      clock,
      startedAtMs: processStartMs(),
      version: kubeletVersion,
      paths: ["/configz", "/debug", "/flagz", "/healthz", "/metrics", "/proxyMode", "/statusz"],
    }),
    flagz: createFlagzHandler(proxyFlagValues(settings), "kube-proxy"),
    pprof: createPprofHandler({ clock, args: process.argv }),
    verbosity: createVerbosityHandler(setVerbosity),
  };
}
