import { hostname } from "node:os";
import { isIPv6 } from "node:net";
import { skipsNftablesKernelCheck } from "../config/environment.ts";
import { isGateOn } from "../config/feature-gates.ts";
import type { ProxySettings } from "../config/load-proxy.ts";
import { logLevelOf } from "../config/verbosity.ts";
import type { KubeProxyConfiguration } from "../config/proxy-config.ts";
import { createApiClient } from "../kube/client.ts";
import { followOwnNode, followServices, openCluster, type SharedStores, type Surroundings } from "./cluster.ts";
import type { Store } from "../kube/port.ts";
import { endpointSlices, serviceCIDRs } from "../kube/resources.ts";
import type { Node } from "../kube/types.ts";
import type { Clock } from "../lib/clock.ts";
import { ignoreAbort } from "../lib/loop.ts";
import { setLogLevel } from "../lib/log.ts";
import { createEventRecorder } from "../kube/events.ts";
import { hostIPs } from "../node/addresses.ts";
import { nodeNameOf } from "./kubelet-settings.ts";
import { setOOMScore } from "./process-limits.ts";
import { headlessLabel } from "../proxy/endpoints.ts";
import type { ProxyOptions } from "../proxy/options.ts";
import { createProxy, type Proxy } from "../proxy/proxy.ts";
import { createProxyRoleMetrics, startProxyServers } from "./proxy-server.ts";
import { ProxyAttempts } from "./proxy-attempts.ts";
import { watchProxyConfig } from "./proxy-config-file.ts";
import { trimEndpointSlice } from "./trim.ts";

// The reference waits this long for the Node to have addresses, then goes on without.
const nodeIPsTimeoutMs = 30_000;

/** Runs the service proxy as one of the agent's parts. Resolves once it has what it needs and is running. */
export async function startProxyRole(
  settings: ProxySettings,
  surroundings: Surroundings,
  shared?: SharedStores,
): Promise<void> {
  const { clock, log: rootLog, parts, stop } = surroundings;
  const { config, master } = settings;
  const log = rootLog.child({ component: "kube-proxy" });
  const nodeName = nodeNameOf(config.hostnameOverride, hostname());
  // Beside the kubelet role the process is the kubelet's.
  if (shared === undefined) await setOOMScore(config.oomScoreAdj, { log });
  watchProxyConfig({ file: settings.flags.config, isAlone: shared === undefined }, { ...surroundings, log });

  const isSame = master === "" && config.clientConnection.kubeconfig === shared?.kubeconfig;
  const found = shared?.cluster !== undefined && isSame ? { ...shared, cluster: shared.cluster } : undefined;
  const { registry, restClient } = createProxyRoleMetrics(settings, surroundings);
  const { kubeconfig, qps, burst } = config.clientConnection;
  // Connections of our own also beside the kubelet role, so that each role's calls have its name, rate and metrics.
  const access = found?.cluster;
  const identity = access === undefined ? undefined : { access: access.access, subscribe: access.subscribeRetry };
  const cluster = await openCluster(
    { component: "kube-proxy", kubeconfig, server: master, qps, burst, identity, metrics: restClient },
    { ...surroundings, log },
  );
  const services = found?.services ?? followServices(cluster);
  const nodes = found?.ownNode ?? followOwnNode(cluster, nodeName);
  const slices = cluster.follow(endpointSlices, { labelSelector: `!${headlessLabel}`, trim: trimEndpointSlice });

  // A recorder of its own: events say which component saw what.
  const { userAgent } = cluster;
  const { transport } = cluster.client;
  const recorder = createEventRecorder({
    // The recorder has a rate limit of its own.
    client: createApiClient({ transport, userAgent, qps: -1, burst: 0, log, clock }),
    clock,
    log,
    component: "kube-proxy",
    host: nodeName,
    qps,
    burst,
  });
  parts.start("kube-proxy's events", (signal) => recorder.run(signal));

  const running: { proxy?: Proxy; attempts?: ProxyAttempts } = {};
  const { mode, syncPeriodMs } = proxyOptions(config, nodeName, []);
  const servers = startProxyServers(
    {
      settings,
      mode,
      syncPeriodMs,
      nodeName,
      nodes,
      recorder,
      registry,
      setVerbosity: (verbosity) => setLogLevel(rootLog, logLevelOf(verbosity)),
      stats: () => running.proxy?.stats() ?? [],
      hasFailed: () => running.attempts?.hasFailed() ?? false,
    },
    { ...surroundings, log },
  );

  const nodeIPs = await waitForNodeIPs(nodes, nodeName, clock, stop);
  if (nodeIPs.length === 0) log.warn({ node: nodeName }, "the Node has no addresses; going on without");
  const options = proxyOptions(config, nodeName, nodeIPs, { skipsKernelCheck: skipsNftablesKernelCheck() });
  const cidrs = options.mode === "nftables" ? { serviceCIDRs: cluster.follow(serviceCIDRs) } : {};
  const stores = { services, endpointSlices: slices, nodes, ...cidrs };
  const nodeIPsOf = (node: Node) => {
    const ips = hostIPs(node);
    return ips.length === 0 ? [] : proxyNodeIPs(config.bindAddress, ips);
  };
  const proxy = createProxy(options, { ...stores, clock, log, recorder, nodeIPsOf, ...servers });
  running.proxy = proxy;
  const attempts = new ProxyAttempts(proxy, { nodeName, recorder, clock, log });
  running.attempts = attempts;
  // Alone, the process ends with its error, as kube-proxy does, and its supervisor sees it.
  parts.start("kube-proxy", (signal) => (shared === undefined ? proxy.run(signal) : attempts.run(signal)));
}

/** The configuration in the proxy's words. Pure. `nodeIPs` are the Node's, the primary one first. */
export function proxyOptions(
  config: KubeProxyConfiguration,
  nodeName: string,
  nodeIPs: readonly string[],
  { skipsKernelCheck = false } = {},
): ProxyOptions {
  const { conntrack, detectLocal, detectLocalMode, clusterCIDR } = config;
  const mode = config.mode === "nftables" ? "nftables" : "iptables";
  const rules = config[mode];
  return {
    mode,
    nodeName,
    nodeIPs: proxyNodeIPs(config.bindAddress, nodeIPs),
    families: undefined,
    iptablesFlavour: undefined,
    masqueradeBit: rules.masqueradeBit,
    masqueradeAll: rules.masqueradeAll,
    skipsKernelCheck,
    localhostNodePorts: config.iptables.localhostNodePorts,
    allowsExternalIPs: isGateOn(config.featureGates, "AllowServiceExternalIPs"),
    nodePortAddresses: config.nodePortAddresses,
    syncPeriodMs: rules.syncPeriod,
    minSyncPeriodMs: rules.minSyncPeriod,
    detectLocal: {
      mode: detectLocalMode,
      // In NodeCIDR mode the proxy asks the Node for its CIDRs.
      cidrs: detectLocalMode === "ClusterCIDR" ? wordsOf(clusterCIDR) : [],
      bridgeInterface: detectLocal.bridgeInterface,
      interfaceNamePrefix: detectLocal.interfaceNamePrefix,
    },
    conntrack: {
      maxPerCore: conntrack.maxPerCore,
      min: conntrack.min,
      tcpEstablishedTimeoutSeconds: seconds(conntrack.tcpEstablishedTimeout),
      tcpCloseWaitTimeoutSeconds: seconds(conntrack.tcpCloseWaitTimeout),
      tcpBeLiberal: conntrack.tcpBeLiberal,
      udpTimeoutSeconds: seconds(conntrack.udpTimeout),
      udpStreamTimeoutSeconds: seconds(conntrack.udpStreamTimeout),
    },
  };
}

/** A bind address that is no wildcard is the primary one. Without any, loopback stands in. */
function proxyNodeIPs(bindAddress: string, nodeIPs: readonly string[]): string[] {
  const isWildcard = bindAddress === "" || bindAddress === "0.0.0.0" || bindAddress === "::";
  if (!isWildcard) return [bindAddress, ...nodeIPs.filter((ip) => isIPv6(ip) !== isIPv6(bindAddress))];
  if (nodeIPs.length > 0) return [...nodeIPs];
  return [bindAddress === "::" ? "::1" : "127.0.0.1"];
}

async function waitForNodeIPs(
  nodes: Store<Node>,
  nodeName: string,
  clock: Clock,
  stop: AbortSignal,
): Promise<string[]> {
  await nodes.synced(stop);
  let ips: string[] = [];
  const found = new AbortController();
  const unsubscribe = nodes.subscribe(({ object }) => {
    if (object?.metadata.name !== nodeName) return;
    ips = hostIPs(object);
    if (ips.length > 0) found.abort();
  });
  try {
    if (!found.signal.aborted) await clock.sleep(nodeIPsTimeoutMs, AbortSignal.any([stop, found.signal]));
  } catch (err) {
    ignoreAbort(err);
    stop.throwIfAborted();
  } finally {
    unsubscribe();
  }
  return ips;
}

function wordsOf(list: string): string[] {
  return list.split(",").flatMap((word) => (word.trim() === "" ? [] : [word.trim()]));
}

function seconds(ms: number): number {
  return Math.floor(ms / 1_000);
}
