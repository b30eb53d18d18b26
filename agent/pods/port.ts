import type { ResourceContext } from "../kube/pod-resources.ts";
import type { ApiClient, EventRecorder, Store } from "../kube/port.ts";
import type { Node, Pod, ResourceList, RuntimeClass, Service } from "../kube/types.ts";
import type { Clock } from "../lib/clock.ts";
import type { Logger } from "../lib/log.ts";
import type { MetricsRegistry } from "../lib/metrics.ts";
import type { Prober } from "../probes/port.ts";
import type { ImageManager } from "../runtime/images.ts";
import type { Runtime } from "../runtime/port.ts";
import type { ObjectSource, PodVolumes } from "../volumes/port.ts";
import type { AdmissionContext } from "./admission/port.ts";
import type { DeadContainerLimits } from "./container-gc.ts";
import type { CrashBackoffLimits } from "./crash-backoff.ts";
import type { DNSConfig } from "./dns.ts";
import type { PodMetrics } from "./metrics.ts";
import type { PodLimits } from "./resize/actuate.ts";
import type { ResizeMetrics } from "./resize/metrics.ts";
import type { ResizePolicy } from "./resize/evaluate.ts";
import type { MirrorSet, PodSet } from "./sources/port.ts";
import type { TimelineRecorder } from "./timeline-recorder.ts";

/** The index by `metadata.namespace` that the services store must have. */
export const namespaceIndex = "namespace";

/** What the pod workers are made of. Everything they touch outside themselves is here. */
export interface PodDeps {
  clock: Clock;
  log: Logger;
  client: ApiClient;
  recorder: EventRecorder;
  /** Pods that this node is to run. */
  pods: PodSet;
  /** Where static pods are shown; undefined: there is no API server. */
  mirrors?: { pods: MirrorSet; ownNode: Store<Node> };
  /** With {@link namespaceIndex}. */
  services: Store<Service>;
  runtimeClasses: Store<RuntimeClass>;
  runtime: Runtime;
  images: ImageManager;
  volumes: PodVolumes & { readVolumeFile(podUID: string, volumeName: string, path: string): Promise<string> };
  objects: ObjectSource;
  cgroups: PodCgroupPort;
  node: NodeView;
  prober: Prober;
  /** For the families of `/metrics/probes`. */
  probeMetrics: MetricsRegistry;
  /** What the admission of a pod depends on beside the other pods, as it is now. */
  admission(): Omit<AdmissionContext, "others">;
  settings: PodSettings;
  metrics?: PodMetrics;
  resizeMetrics?: ResizeMetrics;
  /** Where what happens to pods is written down for people. */
  timelines?: TimelineRecorder;
}

/** Cgroups of pods, as the workers use them; see node/cgroups.ts. */
export interface PodCgroupPort {
  parentFor(pod: Pod): string;
  ensure(pod: Pod): Promise<void>;
  limitsOf(pod: Pod): PodLimits;
  setLimits(pod: Pod, limits: Partial<PodLimits>): Promise<void>;
  exists(pod: Pod): Promise<boolean>;
  destroy(podUID: string): Promise<void>;
  podUIDsOnDisk(): Promise<ReadonlyMap<string, unknown>>;
}

/** What pods need to know of their node; every answer is the present one. */
export interface NodeView {
  readonly nodeName: string;
  /** "containerd" in container IDs. */
  readonly runtimeName: string;
  /** At most one per family, the primary family first; empty while unknown. */
  hostIPs(): string[];
  allocatable(): ResourceList;
  /** The Node as the API server has it; until it does, as we are about to register it. */
  node(): Node;
  /** True while pods may be synced. */
  isRuntimeReady(): boolean;
  isNetworkReady(): boolean;
  /** Why the network is not ready, for people. */
  networkProblem(): string;
  /** True if the runtime handler ("" is the default one) mounts recursively read-only. */
  hasRecursiveReadOnly(handler: string): boolean;
  /** True if the runtime handler gives pods user namespaces of their own. */
  hasUserNamespaces(handler: string): boolean;
  /** Calls `listener` after any of the above changed. */
  subscribe(listener: () => void): () => void;
}

export interface PodSettings {
  rootDir: string;
  podLogsDir: string;
  /** Where `<pod>_<ns>_<container>-<id>.log` links are; "/var/log/containers". */
  containerLogsDir: string;
  clusterDNS: string[];
  clusterDomain: string;
  /** The host's resolv.conf, read again for each sandbox; undefined when `resolvConf` is "". */
  readResolvConf(): Promise<DNSConfig | undefined>;
  seccompDefault: boolean;
  resources: ResourceContext;
  /** What the managers of CPUs and memory rule out for resizes; swap is in `resources`. */
  staticPolicies: Omit<ResizePolicy, "resources">;
  crashBackoff: CrashBackoffLimits;
  deadContainers: DeadContainerLimits;
  selinuxEnabled: boolean;
  /** IDs that a pod with its own user namespace gets; a multiple of 65536. */
  userNamespaceIDs: number;
  /** Variables may come from files of volumes. */
  envFiles: boolean;
  /** Statuses show with which signal containers are stopped. */
  stopSignals: boolean;
  /** Statuses have the condition PodReadyToStartContainers. */
  readyToStartCondition: boolean;
  /** Statuses show the images of image volumes. */
  imageVolumeWithDigest: boolean;
}
