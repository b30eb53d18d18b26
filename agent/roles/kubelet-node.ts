import type { KubeletSettings } from "../config/load-kubelet.ts";
import { ConfigError } from "../config/problems.ts";
import { createApiClient, type KubeClient } from "../kube/client.ts";
import type { EventRecorder, Store } from "../kube/port.ts";
import type { Node } from "../kube/types.ts";
import { messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { nodeAllocatable, nodeCapacity, reservationProblem, resourceList } from "../node/capacity.ts";
import { detectCgroupTree } from "../node/cgroup-detect.ts";
import type { CgroupDriver } from "../node/cgroup-names.ts";
import type { CgroupTree } from "../node/cgroup-tree.ts";
import { createCgroups, type PodCgroups } from "../node/cgroups.ts";
import { type NodeFacts, readNodeFacts } from "../node/facts.ts";
import { describeHardware } from "../node/hardware.ts";
import { createImageCache } from "../node/images.ts";
import { createLeaseRenewer } from "../node/lease.ts";
import { createLocalNode, type LocalNode } from "../node/local-node.ts";
import { instrumentCgroups } from "../node/metrics.ts";
import { createNodeAgent, type NodeAgentDeps, type NodeSettings } from "../node/registration.ts";
import { createRuntimeHealth } from "../node/runtime-health.ts";
import { createSliceManager } from "../node/systemd.ts";
import { createNodeView } from "../node/view.ts";
import type { NodeView } from "../pods/port.ts";
import { instrumentRuntime } from "../runtime/instrumented.ts";
import type { Runtime } from "../runtime/port.ts";
import type { CSIVolumes } from "../volumes/csi/kind.ts";
import type { Cluster, Surroundings } from "./cluster.ts";
import { type ConnectedRuntime, connectRuntime } from "./connect-runtime.ts";
import type { NodeCredentials } from "./kubelet-credentials.ts";
import { startIptablesChains } from "./kubelet-iptables.ts";
import type { KubeletMetrics } from "./kubelet-metrics.ts";
import type { StorageReadiness } from "./kubelet-plugins.ts";
import { cgroupOptions, nodeSettings } from "./kubelet-settings.ts";

export interface StartNodeOptions {
  settings: KubeletSettings;
  nodeName: string;
  recorder: EventRecorder;
  /** undefined: there is no API server. */
  cluster: Cluster | undefined;
  ownNode: Store<Node>;
  measures: KubeletMetrics;
  storage: StorageReadiness;
  nodeCredentials: Pick<NodeCredentials, "find">;
  /** What must not be detached. */
  csi: Pick<CSIVolumes, "volumesInUse" | "subscribeInUse">;
}

/** The node's side of the kubelet role, running. */
export interface StartedNode {
  facts: NodeFacts;
  runtime: Runtime;
  nodeView: NodeView;
  cgroupTree: CgroupTree;
  cgroups: PodCgroups;
  cgroupDriver: CgroupDriver;
}

/** Finds out what the machine is, registers it, keeps its status and lease, and makes the cgroups for pods. */
export async function startNode(options: StartNodeOptions, surroundings: Surroundings): Promise<StartedNode> {
  const { settings, nodeName, measures, nodeCredentials } = options;
  const { clock, log, parts, stop } = surroundings;
  const { flags, config } = settings;
  const [facts, cgroupTree, connected] = await Promise.all([
    readNodeFacts({ rootDir: flags.rootDir }),
    detectCgroupTree(),
    connectRuntime(settings, { nodeName, nodeCredentials, clock, log }, stop),
  ]);
  const { runtimeName } = connected;
  const runtime = instrumentRuntime(connected.runtime, measures.registry, clock);
  await logHardware(log);
  parts.defer("runtime connection", () => runtime.close());
  const ofNode = nodeSettings(settings, nodeName);
  const capacity = nodeCapacity(facts, ofNode);
  const problem = reservationProblem(capacity, ofNode.reservations);
  if (problem !== undefined) throw new ConfigError([problem]);

  if (config.makeIPTablesUtilChains) startIptablesChains(surroundings);
  const health = createRuntimeHealth({ runtime, clock, log, cniConfDirs: [flags.cniConfDir] });
  const images = createImageCache({ service: runtime.images, clock, log });
  parts.start("image list", (signal) => images.run(signal));
  parts.start("runtime health", (signal) => health.run(signal));
  const local = () => ({ storageProblem: options.storage.problem(), volumesInUse: options.csi.volumesInUse() });
  const shared = { settings: ofNode, facts, health, runtime, images: () => images.images, local };
  const { cluster } = options;
  const known =
    cluster === undefined
      ? keepLocally({ ...shared, podCIDR: config.podCIDR }, surroundings)
      : register({ ...options, cluster, shared }, surroundings);

  const bare = await openCgroups({ settings, ofNode, facts, cgroupTree, connected }, surroundings);
  const cgroups = instrumentCgroups(bare, measures.registry, clock);
  const allocatable = resourceList(nodeAllocatable(capacity, ofNode.reservations));
  const view = createNodeView({ nodeName, agent: known, health, nodeStore: options.ownNode, now: () => clock.now() });
  // Both are known here before the Node and the runtime's health say them.
  const nodeView: NodeView = {
    ...view,
    runtimeName,
    allocatable: () => known.node().status?.allocatable ?? allocatable,
    node: () => options.ownNode.get(nodeName) ?? known.node(),
    subscribe: (listener) => {
      const stops = [view.subscribe(listener), known.subscribe(listener)];
      return () => {
        for (const end of stops) end();
      };
    },
  };
  const cgroupDriver = connected.cgroupDriver ?? config.cgroupDriver;
  return { facts, runtime, nodeView, cgroupTree, cgroups, cgroupDriver };
}

/** The Node as far as it is known here, and who wants to hear when that changes before the API server says it. */
type KnownNode = Pick<LocalNode, "node" | "subscribe">;
type OfNode = Pick<NodeAgentDeps, "settings" | "facts" | "health" | "runtime" | "images" | "local">;

function keepLocally(deps: OfNode & { podCIDR: string }, { clock, log, parts }: Surroundings): KnownNode {
  const local = createLocalNode({ ...deps, clock, log });
  parts.start("node", (signal) => local.run(signal));
  return local;
}

function register(
  options: StartNodeOptions & { cluster: Cluster; shared: OfNode },
  surroundings: Surroundings,
): KnownNode {
  const { settings, nodeName, recorder, cluster, ownNode, measures, storage, csi, shared } = options;
  const { clock, log, parts, stop } = surroundings;
  const client = openHeartbeatClient(options, surroundings);
  const listeners = new Set<() => void>();
  const agent = createNodeAgent({
    ...shared,
    client,
    nodeStore: ownNode,
    startup: measures.startup,
    onInitial: () => {
      for (const listener of [...listeners]) listener();
    },
    clock,
    log,
    recorder,
  });
  const { nodeLeaseDurationSeconds: durationSeconds } = settings.config;
  const lease = createLeaseRenewer({ client, nodeName, durationSeconds, clock, log });
  const wake = () => agent.wake();
  const wakeUps = [cluster.subscribeRetry(wake), storage.subscribe(wake), csi.subscribeInUse(wake)];
  parts.defer("node's wake-ups", () => {
    for (const end of wakeUps) end();
  });
  parts.start("node status", (signal) => agent.run(signal));
  parts.start("node lease", (signal) => lease.run(signal));
  agent.registered(stop).then(
    () => lease.wake(),
    () => {}, // the agent stops
  );
  return {
    node: () => agent.node(),
    subscribe: (listener) => {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
  };
}

/** A client with connections of its own: a request that hangs elsewhere must not make the node look dead. */
function openHeartbeatClient(
  { settings: { config }, cluster: { access, userAgent }, measures }: StartNodeOptions & { cluster: Cluster },
  { clock, log, parts }: Surroundings,
): KubeClient {
  const metrics = measures.restClient;
  const timeoutMs = Math.min(config.nodeStatusUpdateFrequency, config.nodeLeaseDurationSeconds * 1_000);
  const client = createApiClient({ access, userAgent, qps: -1, burst: 0, log, clock, timeoutMs, metrics });
  parts.defer("heartbeat connection", () => client[Symbol.asyncDispose]());
  return client;
}

async function openCgroups(
  options: {
    settings: KubeletSettings;
    ofNode: NodeSettings;
    facts: NodeFacts;
    cgroupTree: CgroupTree;
    connected: ConnectedRuntime;
  },
  { clock, log, parts }: Surroundings,
): Promise<PodCgroups> {
  const { settings, ofNode, facts, cgroupTree: tree, connected } = options;
  const ofCgroups = cgroupOptions(settings, ofNode, facts, connected.cgroupDriver);
  const needsSystemd = ofCgroups.cgroupsPerQOS && ofCgroups.driver === "systemd";
  const slices = needsSystemd ? await createSliceManager({ clock }) : undefined;
  if (slices !== undefined) parts.defer("systemd connection", () => slices.close());
  const cgroups = createCgroups(ofCgroups, { tree, clock, log, ...(slices === undefined ? {} : { slices }) });
  await cgroups.setUp();
  return cgroups;
}

// At debug verbosity only: the description costs 12 MB that stay with the process.
async function logHardware(log: Logger): Promise<void> {
  if (!log.isLevelEnabled("debug")) return;
  const hardware = await describeHardware().catch((err: unknown) => ({ err: messageOf(err) }));
  log.debug({ hardware }, "machine");
}
