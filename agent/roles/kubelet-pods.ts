import { isGateOn } from "../config/feature-gates.ts";
import type { KubeletSettings } from "../config/load-kubelet.ts";
import { createProber } from "../probes/run.ts";
import { absentApi } from "../kube/absent.ts";
import type { EventRecorder, Store } from "../kube/port.ts";
import { quantityValue } from "../kube/quantity.ts";
import type { Node, NodeSelectorTerm, RuntimeClass, Service } from "../kube/types.ts";
import { isSwapControllerAvailable } from "../node/cgroup-detect.ts";
import { tickOnList } from "../server/health.ts";
import { matchesTerms } from "../pods/admission/node-affinity.ts";
import { createLogRotation } from "../pods/log-rotation.ts";
import { createPodManager, type HeldPods } from "../pods/manager.ts";
import { nodeReference, podReference } from "../pods/names.ts";
import { resolvConfProblem } from "../pods/resolv-conf.ts";
import type { TimelineRecorder } from "../pods/timeline-recorder.ts";
import { instrumentPLEG } from "../runtime/instrumented.ts";
import { createClaimResolver } from "../volumes/claims.ts";
import type { CSIVolumes } from "../volumes/csi/kind.ts";
import { createPodVolumes, type VolumeManager } from "../volumes/manager.ts";
import type { ExpansionDeps } from "../volumes/kind.ts";
import { cacheTTLMs, createObjectSource, type OwnedObjectSource } from "../volumes/object-source.ts";
import type { Cluster, Surroundings } from "./cluster.ts";
import type { NodeCredentials } from "./kubelet-credentials.ts";
import { startImageCollection } from "./kubelet-image-garbage.ts";
import { openImages } from "./kubelet-images.ts";
import type { StartedNode } from "./kubelet-node.ts";
import type { KubeletMetrics } from "./kubelet-metrics.ts";
import { openProjectedKind } from "./kubelet-projected.ts";
import { startSources } from "./kubelet-sources.ts";
import { declaredFeatures, podSettings, resourceContext } from "./kubelet-settings.ts";
import { keepQOSWeights } from "./qos-weights.ts";

export interface StartPodsOptions extends StartedNode {
  settings: KubeletSettings;
  recorder: EventRecorder;
  /** undefined: there is no API server. */
  cluster: Cluster | undefined;
  ownNode: Store<Node>;
  services: Store<Service>;
  runtimeClassStore: Store<RuntimeClass>;
  selinuxEnabled: boolean;
  measures: KubeletMetrics;
  timelines: TimelineRecorder;
  nodeCredentials: NodeCredentials;
  csi: Pick<CSIVolumes, "kind">;
}

/** Runs the pods that are bound to the node. Resolves with them when the workers are running. */
export async function startPods(
  options: StartPodsOptions,
  surroundings: Surroundings,
): Promise<{ held: HeldPods; volumes: VolumeManager }> {
  const { settings, cluster, ownNode, facts, runtime, nodeView, cgroupTree, cgroups, timelines } = options;
  const { clock, log, parts, health } = surroundings;
  const recorder = timelines.events(options.recorder);
  const { version: cgroupVersion } = cgroupTree;
  const swapControllerAvailable = await isSwapControllerAvailable(cgroupVersion);
  const resources = resourceContext(settings, facts, { cgroupVersion, swapControllerAvailable });
  const objects = openObjects(options, surroundings);
  const volumes = openVolumes({ ...options, recorder }, objects, surroundings);
  const images = await openImages({ ...options, recorder }, surroundings);

  const { nodeName } = nodeView;
  const sources = startSources({ settings, nodeName, recorder, cluster, ownNode }, surroundings);
  const declared = declaredFeatures(settings.config);
  const manager = createPodManager({
    clock,
    log,
    client: cluster?.client ?? absentApi,
    recorder,
    pods: sources,
    ...(cluster === undefined ? {} : { mirrors: { pods: sources.mirrors, ownNode } }),
    services: options.services,
    runtimeClasses: options.runtimeClassStore,
    runtime: timelines.sandboxes(
      tickOnList(instrumentPLEG(runtime, options.measures.registry, clock), health.syncLoop),
    ),
    images,
    volumes,
    objects,
    cgroups,
    node: nodeView,
    prober: createProber(runtime),
    probeMetrics: options.measures.probes,
    metrics: timelines.metrics(options.measures.pods),
    resizeMetrics: options.measures.resizes,
    timelines,
    admission: () => ({
      node: nodeView.node(),
      pressures: [],
      allowedUnsafeSysctls: settings.config.allowedUnsafeSysctls,
      kernelVersion: facts.kernelVersion,
      isAppArmorEnabled: facts.isAppArmorEnabled,
      declaredFeatures: declared,
      knowsPodLevelResources: isGateOn(settings.config.featureGates, "PodLevelResources"),
      unsupportedByRuntime: (pod) => runtime.unsupported?.(pod),
      isShuttingDown: false,
    }),
    settings: podSettings(settings, { selinuxEnabled: options.selinuxEnabled, resources }),
  });
  parts.start("QoS weights", (signal) =>
    keepQOSWeights({ cgroups, pods: sources, given: manager.held.given, clock, log }, signal),
  );
  await checkResolvConf(options, log);
  health.syncLoop.tick(); // from here on it counts how long the runtime has not been listed
  parts.start("pods", (signal) => manager.run(signal));
  startLogRotation(options, manager.held, surroundings);
  const { pruneRecords } = images;
  startImageCollection({ ...options, recorder, sources, held: manager.held, pruneRecords }, surroundings);
  return { held: manager.held, volumes };
}

// Once: pods keep trying with a file that is wrong, and it may be mended meanwhile.
async function checkResolvConf(
  { settings: { config }, recorder, nodeView }: StartPodsOptions,
  log: Surroundings["log"],
): Promise<void> {
  const problem = await resolvConfProblem(config.resolvConf, config.clusterDomain);
  if (problem === undefined) return;
  log.warn({ resolvConf: config.resolvConf, problem }, "pods cannot use the node's resolv.conf as it is");
  recorder.event(nodeReference(nodeView.nodeName), "Warning", "CheckLimitsForResolvConf", problem);
}

function startLogRotation(
  { settings: { config }, runtime }: StartPodsOptions,
  held: HeldPods,
  { clock, log, parts }: Surroundings,
): void {
  const rotation = createLogRotation({
    runtime,
    isKnown: (podUID) => held.list().some((pod) => pod.metadata.uid === podUID),
    podLogsDir: config.podLogsDir,
    maxSizeBytes: quantityValue(config.containerLogMaxSize),
    maxFiles: config.containerLogMaxFiles,
    maxWorkers: config.containerLogMaxWorkers,
    intervalMs: config.containerLogMonitorInterval,
    clock,
    log,
  });
  parts.start("log rotation", (signal) => rotation.run(signal));
}

function openObjects(
  { settings: { config }, cluster, nodeView }: StartPodsOptions,
  { clock, log, parts }: Surroundings,
): OwnedObjectSource {
  const { configMapAndSecretChangeDetectionStrategy: strategy, syncFrequency: syncFrequencyMs } = config;
  const api =
    cluster === undefined ? { client: undefined } : { client: cluster.client, startInformer: cluster.startInformer };
  const objects = createObjectSource({
    ...api,
    clock,
    log,
    strategy,
    syncFrequencyMs,
    ttlMs: () => cacheTTLMs(nodeView.node()),
  });
  parts.defer("watches of ConfigMaps and Secrets", () => objects.close());
  return objects;
}

function openVolumes(options: StartPodsOptions, objects: OwnedObjectSource, surroundings: Surroundings): VolumeManager {
  const { settings, cluster, nodeView, selinuxEnabled, recorder, measures, timelines, ownNode } = options;
  const { clock, log, parts } = surroundings;
  const { flags, config } = settings;
  const shared = { featureGates: config.featureGates, ownNode, recorder, registry: measures.registry };
  const { nodeName } = nodeView;
  const projected = cluster === undefined ? [] : [openProjectedKind({ ...shared, nodeName, cluster }, surroundings)];
  const kinds = [...projected, options.csi.kind];
  const matchesNode = (terms: readonly NodeSelectorTerm[]) => matchesTerms(terms, nodeView.node());
  const claims = cluster === undefined ? {} : { claims: createClaimResolver({ client: cluster.client, matchesNode }) };
  const event: ExpansionDeps["event"] = (about, ...what) => recorder.event(about, ...what);
  const volumes = createPodVolumes({
    ...claims,
    expansion: { client: cluster?.client, nodeName, clock, log, event },
    rootDir: flags.rootDir,
    client: cluster?.client,
    objects,
    clock,
    log,
    nodeAllocatable: () => nodeView.allocatable(),
    selinuxEnabled,
    kinds,
    metrics: measures.volumes,
    onEvent: (pod, type, reason, message) => recorder.event(podReference(pod), type, reason, message),
    onVolumeEvent: ({ metadata: { name, uid = "" } }, type, reason, message) =>
      recorder.event({ apiVersion: "v1", kind: "PersistentVolume", name, uid }, type, reason, message),
    onSetUp: (pod, volume) => timelines.volume(pod, volume),
  });
  parts.defer("volumes", () => volumes.close());
  return volumes;
}
