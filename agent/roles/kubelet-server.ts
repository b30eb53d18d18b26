import { isGateOn } from "../config/feature-gates.ts";
import { kubeletConfigz, type KubeletSettings } from "../config/load-kubelet.ts";
import { ConfigError } from "../config/problems.ts";
import { readTlsSettings } from "../config/tls.ts";
import { logLevelOf } from "../config/verbosity.ts";
import { createApiClient, type KubeClient } from "../kube/client.ts";
import { ensureSelfSigned } from "../kube/certificates/self-signed.ts";
import { createServingCertificate } from "../kube/certificates/serving.ts";
import type { EventRecorder, Store } from "../kube/port.ts";
import type { Node, Pod } from "../kube/types.ts";
import { hasCode } from "../lib/errors.ts";
import { setLogLevel } from "../lib/log.ts";
import { type Collector, defaultBuckets, type MetricsRegistry } from "../lib/metrics.ts";
import { podReference } from "../pods/names.ts";
import { createAuthenticator } from "../server/auth/authenticator.ts";
import { createAuthorizer } from "../server/auth/authorizer.ts";
import { certificateFromFiles } from "../server/auth/certificate-files.ts";
import { type ClientCA, loadClientCA } from "../server/auth/client-ca.ts";
import { kubeletFlagValues } from "../server/flag-values.ts";
import { createCheckpointHandler } from "../server/handlers/checkpoint.ts";
import { createConfigzHandler } from "../server/handlers/configz.ts";
import { createHealthHandlers } from "../server/handlers/healthz.ts";
import { createPodsHandler, createRunningPodsHandler } from "../server/handlers/pods.ts";
import { createPprofHandler } from "../server/handlers/pprof.ts";
import { createVerbosityHandler } from "../server/handlers/verbosity.ts";
import { createFlagzHandler, createStatuszHandler } from "../server/handlers/z-pages.ts";
import { createContainerLogsHandler } from "../server/logs/container-logs.ts";
import { createNodeLogsHandler } from "../server/logs/node-logs.ts";
import { createMetricsHandlers } from "../server/metrics/handlers.ts";
import { HealthSLIs } from "../server/metrics/slis.ts";
import type { ServedPods, ServingCertificate } from "../server/port.ts";
import type { KubeletHandlers } from "../server/routes.ts";
import { createKubeletServer } from "../server/server.ts";
import { createStreaming } from "../server/streaming/streaming.ts";
import type { Stats } from "../stats/port.ts";
import type { StatsOfVolume } from "../stats/volume-figures.ts";
import { createStats } from "../stats/stats.ts";
import { kubeletVersion } from "../version.ts";
import type { Cluster, Surroundings } from "./cluster.ts";
import { processStartMs } from "./kubelet-metrics.ts";
import type { StartedNode } from "./kubelet-node.ts";

export interface StartServerOptions extends StartedNode {
  /** How a volume of a claim is measured. */
  measureVolume: StatsOfVolume;
  settings: KubeletSettings;
  nodeName: string;
  /** undefined: there is no API server. */
  cluster: Cluster | undefined;
  ownNode: Store<Node>;
  recorder: EventRecorder;
  pods: ServedPods;
  /** The agent's own metrics, for /metrics. */
  metrics: MetricsRegistry;
  /** Those of /metrics/probes. */
  probes: Collector;
}

/** Serves the kubelet's API as a part of the agent. Rejects with ConfigError if it cannot be as configured. */
export async function startServer(options: StartServerOptions, surroundings: Surroundings): Promise<Stats> {
  try {
    return await start(options, surroundings);
  } catch (err) {
    if (hasCode(err, "Invalid")) throw new ConfigError([err.message]);
    throw err;
  }
}

async function start(options: StartServerOptions, surroundings: Surroundings): Promise<Stats> {
  const { settings, nodeName, metrics } = options;
  const { config } = settings;
  const { clock, log, parts, stop } = surroundings;
  const { options: tlsOptions, warnings } = readTlsSettings(config);
  for (const warning of warnings) log.warn({ warning }, "configuration");
  const stats = await openStats(options, surroundings);
  const clientCA = await openClientCA(settings, surroundings);
  const certificate = await openCertificate(options, surroundings);
  const { anonymous, webhook } = config.authentication;
  const shared = { clock, log, metrics, stop };
  const tokenReviews = openReviewClient(options, surroundings);
  const authenticator = createAuthenticator({
    ...shared,
    clientCA,
    readsCertificateUID: isGateOn(config.featureGates, "AllowParsingUserUIDFromCertAuth"),
    tokens:
      webhook.enabled && tokenReviews !== undefined ? { api: tokenReviews, cacheTTLMs: webhook.cacheTTL } : undefined,
    allowsAnonymous: anonymous.enabled,
  });
  const { mode, webhook: caches } = config.authorization;
  const authorizer = createAuthorizer({
    ...shared,
    mode,
    nodeName,
    api: openReviewClient(options, surroundings),
    authorizedTTLMs: caches.cacheAuthorizedTTL,
    unauthorizedTTLMs: caches.cacheUnauthorizedTTL,
  });
  const isOn = (gate: string) => isGateOn(config.featureGates, gate);
  const server = createKubeletServer({
    config: {
      ...config,
      checkpoint: isOn("ContainerCheckpoint"),
      statusz: isOn("ComponentStatusz"),
      flagz: isOn("ComponentFlagz"),
    },
    tls: { options: tlsOptions, certificate, ...(clientCA === undefined ? {} : { clientCA }) },
    authenticator,
    authorizer,
    handlers: handlersOf(options, stats, surroundings),
    metrics,
    clock,
    log,
  });
  parts.start("kubelet API", (signal) => server.run(signal));
  return stats;
}

// With a rate limit of its own: strangers with wrong tokens must not use up what pods need, nor what reviews of access do.
function openReviewClient(
  { settings: { config }, cluster }: StartServerOptions,
  { clock, log }: Surroundings,
): KubeClient | undefined {
  if (cluster === undefined) return undefined;
  const { client, userAgent } = cluster;
  const { transport } = client;
  return createApiClient({ transport, userAgent, qps: config.kubeAPIQPS, burst: config.kubeAPIBurst, log, clock });
}

async function openStats(options: StartServerOptions, { clock, log, parts }: Surroundings): Promise<Stats> {
  const { settings, nodeName, pods, runtime, facts, cgroupDriver } = options;
  const { flags, config } = settings;
  const { cgroupRoot, cgroupsPerQOS, kubeletCgroups, systemCgroups, podLogsDir, volumeStatsAggPeriod } = config;
  const collectionSeconds = options.metrics.histogram(
    "kubelet_volume_metric_collection_duration_seconds",
    "Time to measure a volume, by who measured it.",
    defaultBuckets,
    ["metric_source"],
  );
  const stats = await createStats({
    nodeName,
    startedAtMs: processStartMs(),
    pods,
    runtime,
    facts,
    cgroups: { driver: cgroupDriver, cgroupRoot, cgroupsPerQOS },
    systemCgroups: { kubeletCgroups, runtimeCgroups: flags.runtimeCgroups, systemCgroups },
    rootDir: flags.rootDir,
    podLogsDir,
    volumeStatsAggPeriodMs: volumeStatsAggPeriod,
    statsOf: options.measureVolume,
    ...(isGateOn(config.featureGates, "CSIVolumeHealth") ? { onAbnormal: abnormalVolumes(options.recorder) } : {}),
    onMeasured: (source, seconds) => collectionSeconds.observe({ metric_source: source }, seconds),
    clock,
    log,
  });
  parts.start("stats", (signal) => stats.run(signal));
  return stats;
}

function abnormalVolumes(recorder: EventRecorder): (pod: Pod, volume: string, message: string) => void {
  return (pod, volume, message) => {
    recorder.event(podReference(pod), "Warning", "VolumeConditionAbnormal", `Volume ${volume}: ${message}`);
  };
}

async function openClientCA({ config }: KubeletSettings, deps: Surroundings): Promise<ClientCA | undefined> {
  const { clientCAFile: file } = config.authentication.x509;
  if (file === "") return undefined;
  const { clock, log, parts } = deps;
  const reload = isGateOn(config.featureGates, "ReloadKubeletClientCAFile");
  const clientCA = await loadClientCA({ file, reload, clock, log });
  parts.start("client CA file", (signal) => clientCA.run(signal));
  return clientCA;
}

async function openCertificate(
  { settings: { flags, config }, nodeName, ownNode, cluster, metrics }: StartServerOptions,
  { clock, log, parts }: Surroundings,
): Promise<ServingCertificate> {
  const { tlsCertFile, tlsPrivateKeyFile, featureGates, serverTLSBootstrap } = config;
  const { certDir } = flags;
  const hasFiles = tlsCertFile !== "" && tlsPrivateKeyFile !== "";
  if (serverTLSBootstrap && cluster !== undefined) {
    const { client, startInformer } = cluster;
    const allowsDNSOnly = isGateOn(featureGates, "AllowDNSOnlyNodeCSR");
    const configured = hasFiles ? { configured: { cert: tlsCertFile, key: tlsPrivateKeyFile } } : {};
    const manager = createServingCertificate(
      { certDir, nodeName, nodeStore: ownNode, client, startInformer, allowsDNSOnly, metrics, ...configured },
      { clock, log },
    );
    await manager.load();
    parts.start("serving certificate", (signal) => manager.run(signal));
    return manager;
  }
  const { cert, key } = hasFiles
    ? { cert: tlsCertFile, key: tlsPrivateKeyFile }
    : await ensureSelfSigned({ certDir, hostname: nodeName }, { clock, log });
  const reload = isGateOn(featureGates, "ReloadKubeletServerCertificateFile");
  const files = await certificateFromFiles(cert, key, { reload, clock, log });
  parts.start("serving certificate files", (signal) => files.run(signal));
  return files;
}

function handlersOf(
  { settings, pods, runtime, metrics, probes }: StartServerOptions,
  stats: Stats,
  { clock, log, health }: Surroundings,
): KubeletHandlers {
  const { flags, config } = settings;
  const { featureGates, enableSystemLogQuery: enableQuery } = config;
  const slis = new HealthSLIs();
  const { metrics: agent, ...others } = createMetricsHandlers({
    registry: metrics,
    probes,
    resource: () => stats.resourceMetrics(),
    cadvisor: () => stats.cadvisorMetrics(),
    slis,
    processStartMs: processStartMs(),
  });
  const splitStreams = isGateOn(featureGates, "PodLogsQuerySplitStreams");
  const extendWebSockets = isGateOn(featureGates, "ExtendWebSocketsToKubelet");
  return {
    ...createHealthHandlers(health.checks, (name, isHealthy) => slis.record(name, isHealthy)),
    ...createStreaming({ pods, runtime, clock, metrics, extendWebSockets }),
    metrics: { agent, ...others },
    pods: createPodsHandler(pods),
    runningPods: createRunningPodsHandler(runtime),
    statsSummary: stats.handler,
    containerLogs: createContainerLogsHandler({ pods, runtime, clock, log, splitStreams }),
    nodeLogs: createNodeLogsHandler({ clock, log, enableQuery }),
    configz: createConfigzHandler(() => kubeletConfigz(config)),
    checkpoint: createCheckpointHandler({ pods, runtime, rootDir: flags.rootDir, clock }),
    pprof: createPprofHandler({ clock, args: process.argv }),
    verbosity: createVerbosityHandler((verbosity) => setLogLevel(log, logLevelOf(verbosity))),
    statusz: createStatuszHandler({
      clock,
      startedAtMs: processStartMs(),
      version: kubeletVersion,
      paths: statuszPaths,
    }),
    flagz: createFlagzHandler(kubeletFlagValues(settings)),
  };
}

// First segments of what is served at exact paths, as the reference lists them.
const statuszPaths = ["/configz", "/debug", "/flagz", "/healthz", "/metrics", "/statusz"];
