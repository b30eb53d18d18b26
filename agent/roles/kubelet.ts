import { hostname } from "node:os";
import type { KubeletSettings } from "../config/load-kubelet.ts";
import { absentApi, emptyStore } from "../kube/absent.ts";
import { createApiClient } from "../kube/client.ts";
import { createEventRecorder } from "../kube/events.ts";
import type { EventRecorder } from "../kube/port.ts";
import { runtimeClasses, services } from "../kube/resources.ts";
import type { Pod, Service } from "../kube/types.ts";
import { namespaceIndex } from "../pods/port.ts";
import type { VolumeManager } from "../volumes/manager.ts";
import { createVolumeMeasures } from "../volumes/measure.ts";
import { isSELinuxEnabled, prepareRoot } from "../volumes/root-dir.ts";
import { followOwnNode, openCluster, type SharedStores, type Surroundings } from "./cluster.ts";
import { type Explained, startExplaining } from "./kubelet-explain.ts";
import { openNodeCredentials } from "./kubelet-credentials.ts";
import { startCSIVolumes } from "./kubelet-csi.ts";
import { openIdentity } from "./kubelet-identity.ts";
import { createKubeletMetrics, type KubeletMetrics, registerNodeMetrics } from "./kubelet-metrics.ts";
import { startNode } from "./kubelet-node.ts";
import { startPlugins } from "./kubelet-plugins.ts";
import { startPods } from "./kubelet-pods.ts";
import { startServer } from "./kubelet-server.ts";
import { containerLogsDir, nodeNameOf } from "./kubelet-settings.ts";
import { checkStandalone, logEvents } from "./standalone.ts";
import { setOOMScore, setOpenFilesMax } from "./process-limits.ts";
import { trimService } from "./trim.ts";

/** What the kubelet role has from the beginning. */
export interface KubeletStores extends SharedStores {
  measures: KubeletMetrics;
  explained: Explained;
}

/** Opens the way to the API server and starts to follow what both roles need. Rejects with ConfigError. */
export async function openKubeletStores(
  { flags, config }: KubeletSettings,
  surroundings: Surroundings,
): Promise<KubeletStores> {
  const { kubeconfig } = flags;
  const measures = createKubeletMetrics(surroundings);
  if (kubeconfig === "") checkStandalone({ flags, config });
  const explained = await startExplaining({ flags, config }, surroundings);
  if (kubeconfig === "") {
    surroundings.log.info("no --kubeconfig: running alone, with static pods only");
    return { cluster: undefined, kubeconfig, measures, explained, ownNode: emptyStore(), services: emptyStore() };
  }
  const nodeName = nodeNameOf(flags.hostnameOverride, hostname());
  const identity = await openIdentity({ flags, config }, { nodeName, measures }, surroundings);
  const { kubeAPIQPS: qps, kubeAPIBurst: burst } = config;
  const cluster = await openCluster(
    { component: "kubelet", kubeconfig, server: "", qps, burst, identity, metrics: measures.restClient },
    surroundings,
  );
  const byNamespace = ({ metadata }: Service) => [metadata.namespace ?? ""];
  return {
    cluster,
    kubeconfig,
    measures,
    explained,
    ownNode: followOwnNode(cluster, nodeName),
    services: cluster.follow(services, { trim: trimService, indexes: { [namespaceIndex]: byNamespace } }),
  };
}

/**
 * Runs the kubelet role as parts of the agent. Resolves when all of them are running, which takes until the container
 * runtime answers and the API server has told what it knows of the node.
 */
export async function startKubelet(
  settings: KubeletSettings,
  stores: KubeletStores,
  surroundings: Surroundings,
): Promise<void> {
  const { flags, config } = settings;
  const { clock, log } = surroundings;
  const { explained } = stores;
  const { timelines } = explained;
  const client = stores.cluster?.client ?? absentApi;
  const nodeCredentials = await openNodeCredentials({ settings, client, measures: stores.measures }, surroundings);
  await Promise.all([setOOMScore(config.oomScoreAdj, { log }), setOpenFilesMax(config.maxOpenFiles, { log })]);
  const nodeName = nodeNameOf(flags.hostnameOverride, hostname());
  const recorder = startEvents(settings, stores, nodeName, surroundings);
  const runtimeClassStore = stores.cluster?.follow(runtimeClasses) ?? emptyStore();
  const selinuxEnabled = await isSELinuxEnabled();
  await prepareRoot(flags.rootDir, { podLogsDir: config.podLogsDir, containerLogsDir, selinuxEnabled, log });
  explained.stage = "the container runtime to answer";

  const plugins = startPlugins({ settings, nodeName, ...stores }, surroundings);
  const { storage } = plugins;
  const csi = await startCSIVolumes({ settings, nodeName, recorder, plugins, selinuxEnabled, ...stores }, surroundings);
  const node = await startNode(
    { settings, nodeName, recorder, storage, csi, nodeCredentials, ...stores },
    surroundings,
  );
  const { registry: metrics, probes } = stores.measures;
  const shared = { settings, nodeName, metrics, ...stores, ...node };
  // Served before any pod runs: whoever sets up the node asks for its health while the API server may be a pod of its own.
  const pods = {
    list: () => explained.pods?.list() ?? [],
    find: (namespace: string, name: string) => explained.pods?.find(namespace, name),
    status: (pod: Pod) => explained.pods?.status(pod),
  };
  const running: { volumes?: VolumeManager } = {};
  const measureVolume = createVolumeMeasures({
    rootDir: flags.rootDir,
    volumes: { mounted: (podUID, name) => running.volumes?.mounted(podUID, name) },
    drivers: plugins.csiDrivers,
  });
  const server = { ...shared, recorder, pods, measureVolume, probes: () => probes.families() };
  const stats = await startServer(server, surroundings);
  const { version: cgroupVersion } = node.cgroupTree;
  registerNodeMetrics(metrics, clock, { nodeName, cgroupVersion, gates: config.featureGates, stats });
  const { held, volumes } = await startPods(
    { ...shared, recorder, runtimeClassStore, selinuxEnabled, nodeCredentials, timelines, csi },
    surroundings,
  );
  explained.pods = held;
  running.volumes = volumes;
}

function startEvents(
  { config }: KubeletSettings,
  { cluster, measures }: KubeletStores,
  nodeName: string,
  { clock, log, parts }: Surroundings,
): EventRecorder {
  if (cluster === undefined) return logEvents(log);
  const { client: shared, userAgent } = cluster;
  // The main client's connections, but not its rate limit: the recorder has its own.
  const { transport } = shared;
  const client = createApiClient({ transport, userAgent, qps: -1, burst: 0, log, clock, metrics: measures.restClient });
  const { eventRecordQPS: qps, eventBurst: burst } = config;
  const recorder = createEventRecorder({ client, clock, log, component: "kubelet", host: nodeName, qps, burst });
  parts.start("events", (signal) => recorder.run(signal));
  return recorder;
}
