import type { Pod, PodStatus } from "../kube/types.ts";
import type { Clock } from "../lib/clock.ts";
import { type Counter, defaultBuckets, type Gauge, type Histogram, type MetricsRegistry } from "../lib/metrics.ts";
import type { ContainerStatus, PodSnapshot } from "../runtime/port.ts";
import { type ContainerKind, specContainers } from "./names.ts";
import { registerPodGauges, type WorkerView } from "./metrics-gauges.ts";
import { StartTimes } from "./start-times.ts";

type ContainerType = "container" | "init_container" | "ephemeral_container";

/** What the parts that run pods count. Each is told what happened; none has to keep anything for it. */
export interface PodMetrics {
  startedPods: Counter;
  startedPodErrors: Counter;
  startedUserNamespacedPods: Counter;
  startedUserNamespacedPodErrors: Counter;
  startedContainers: Counter<"container_type">;
  startedContainerErrors: Counter<"container_type" | "code">;
  /** Hooks over HTTPS that got their way without TLS. */
  hookFallbacks: Counter;
  /** Sleep hooks that did not last as long as they say. */
  sleepsCutShort: Counter;
  /** Time of one step of work on a pod. */
  stepSeconds: Histogram<"operation_type">;
  /** From wanting a status to the API server having it. */
  statusSeconds: Histogram;
  orphanedPods: Counter;
  /** Pods that were taken away and came back under the same UID; "true": static ones. */
  restartedPods: Counter<"static">;
  /** Of the last sweep. */
  cleanedVolumes: Gauge;
  cleanedVolumeErrors: Gauge;
  /** A pod was not taken, for this reason. */
  rejected(reason: string): void;
  preemptions: Counter<"preemption_signal">;
  /** Image volumes that containers asked for, got, and could not get. */
  imageVolumesRequested: Counter;
  imageVolumesMounted: Counter;
  imageVolumeErrors: Counter;
  /** The API server showed this pod. */
  seen(pod: Pod): void;
  /** The API server has it no more. */
  gone(podUID: string): void;
  /** A step of work on the pod begins. */
  stepBegins(podUID: string): void;
  pull(podUID: string, stage: "began" | "ended"): void;
  statusWanted(podUID: string, status: PodStatus): void;
  /** The runtime was looked at. @param before absent: for the first time */
  looked(pod: Pod, before: PodSnapshot | undefined, now: PodSnapshot): void;
  /** Gauges are read from these workers from now on. @returns ends it */
  follow(workers: () => Iterable<WorkerView>): () => void;
}

// Reasons that have a time series of their own; the reference's.
const ownReasons: ReadonlySet<string> = new Set([
  "AppArmor",
  "Evicted",
  "InvalidNodeInfo",
  "NodeShutdown",
  "OutOfcpu",
  "OutOfephemeral-storage",
  "OutOfmemory",
  "OutOfpods",
  "PodFeatureUnsupported",
  "PodLevelResourcesNotSupported",
  "PodOSNotSupported",
  "PodOSSelectorNodeLabelDoesNotMatch",
  "SupplementalGroupsPolicyNotSupported",
  "SysctlForbidden",
  "TopologyAffinityError",
  "UnexpectedAdmissionError",
  "VolumeAttachmentLimitExceeded",
]);

function rejectionLabel(reason: string): string {
  if (ownReasons.has(reason)) return reason;
  return reason.startsWith("OutOf") ? "OutOfExtendedResources" : "Other";
}

// The reference's, in seconds.
const startBuckets = [
  0.5, 1, 2, 3, 4, 5, 6, 8, 10, 20, 30, 45, 60, 120, 180, 240, 300, 360, 480, 600, 900, 1200, 1800, 2700, 3600,
];
const statusBuckets = [0.01, 0.05, 0.1, 0.5, 1, 5, 10, 20, 30, 45, 60];
const countBuckets = [1, 2, 4, 8, 16];

const containerTypes: Record<ContainerKind, ContainerType> = {
  init: "init_container",
  regular: "container",
  ephemeral: "ephemeral_container",
};

/** The label that tells kinds of containers apart. A container that the pod no longer has counts as a regular one. */
export function containerType(pod: Pod, name: string): ContainerType {
  const found = specContainers(pod).find(({ container }) => container.name === name);
  return containerTypes[found?.kind ?? "regular"];
}

/** Registers the kubelet's metrics about pods. */
export function createPodMetrics(registry: MetricsRegistry, clock: Clock): PodMetrics {
  const counter = (name: string, help: string) => registry.counter(`kubelet_${name}`, help);
  const seconds = (name: string, help: string, buckets = defaultBuckets) =>
    registry.histogram(`kubelet_${name}`, help, buckets);

  const perPod = registry.histogram(
    "kubelet_containers_per_pod_count",
    "Regular containers of pods, as they arrive.",
    countBuckets,
  );
  const terminated = registry.counter("kubelet_terminated_containers_total", "Containers that ended, by how.", [
    "container_type",
    "exit_code",
    "reason",
  ]);
  const begun = seconds("pod_worker_start_duration_seconds", "Time from a pod's first sight to the first work on it.");
  const running = seconds(
    "pod_start_duration_seconds",
    "Time from a pod's first sight to its first container running.",
    startBuckets,
  );
  const total = seconds(
    "pod_start_total_duration_seconds",
    "Time from a pod's creation until all its containers are seen running.",
    startBuckets,
  );
  const own = seconds(
    "pod_start_sli_duration_seconds",
    "The same, less image pulls and init containers, for pods without slow kinds of volumes.",
    startBuckets,
  );
  const first = new FirstNetworkPod(registry);
  const starts = new StartTimes(clock, {
    begun: (value) => begun.observe({}, value),
    running: (value) => running.observe({}, value),
    shown: (pod, all, ours) => {
      total.observe({}, all);
      if (ours === undefined) return;
      own.observe({}, ours);
      first.note(pod, ours);
    },
  });
  const restarted = registry.counter("kubelet_restarted_pods_total", "Pods made anew under the same UID.", ["static"]);
  for (const isStatic of ["", "true"]) restarted.inc({ static: isStatic }, 0);

  const rejected = registry.counter("kubelet_admission_rejections_total", "Pods that the node did not take, by why.", [
    "reason",
  ]);

  return {
    startedPods: counter("started_pods_total", "Sandboxes that were to be run."),
    startedPodErrors: counter("started_pods_errors_total", "Sandboxes that could not be run."),
    startedUserNamespacedPods: counter(
      "started_user_namespaced_pods_total",
      "Sandboxes with a user namespace of their own that were to be run.",
    ),
    startedUserNamespacedPodErrors: counter(
      "started_user_namespaced_pods_errors_total",
      "Sandboxes with a user namespace of their own that could not be run.",
    ),
    startedContainers: registry.counter("kubelet_started_containers_total", "Containers that were to be started.", [
      "container_type",
    ]),
    startedContainerErrors: registry.counter(
      "kubelet_started_containers_errors_total",
      "Containers that could not be started, by the reason that their status shows.",
      ["container_type", "code"],
    ),
    hookFallbacks: counter(
      "lifecycle_handler_http_fallbacks_total",
      "Lifecycle hooks over HTTPS whose servers speak plain HTTP, and were asked that way.",
    ),
    sleepsCutShort: counter(
      "sleep_action_terminated_early_total",
      "Sleep hooks that ended before their time, with their container or its grace period.",
    ),
    stepSeconds: registry.histogram(
      "kubelet_pod_worker_duration_seconds",
      "Time of one step of work on a pod: volumes, sandbox, image, start (create or sync), stop (kill), removal (terminated).",
      defaultBuckets,
      ["operation_type"],
    ),
    statusSeconds: seconds(
      "pod_status_sync_duration_seconds",
      "Time from a change of a pod's status until the API server has it.",
      statusBuckets,
    ),
    restartedPods: restarted,
    rejected: (reason) => rejected.inc({ reason: rejectionLabel(reason) }),
    preemptions: registry.counter("kubelet_preemptions", "Pods that went for critical ones, by what these lacked.", [
      "preemption_signal",
    ]),
    imageVolumesRequested: counter("image_volume_requested_total", "Image volumes that containers asked for."),
    imageVolumesMounted: counter("image_volume_mounted_succeed_total", "Image volumes that started containers have."),
    imageVolumeErrors: counter(
      "image_volume_mounted_errors_total",
      "Image volumes of containers whose images were not had, or that could not be started.",
    ),
    orphanedPods: counter("orphaned_runtime_pods_total", "Pods found running although nobody wants them."),
    cleanedVolumes: registry.gauge("kubelet_orphan_pod_cleaned_volumes", "Pods whose remains the last sweep found."),
    cleanedVolumeErrors: registry.gauge(
      "kubelet_orphan_pod_cleaned_volumes_errors",
      "Pods whose remains the last sweep could not remove.",
    ),
    seen: (pod) => {
      if (starts.seen(pod)) perPod.observe({}, pod.spec.containers.length);
    },
    gone: (uid) => starts.gone(uid),
    stepBegins: (uid) => starts.begins(uid),
    pull: (uid, stage) => starts.pull(uid, stage),
    statusWanted: (uid, status) => starts.statusWanted(uid, status),
    looked: (pod, before, now) => {
      for (const { name, exitCode, reason } of newlyExited(before, now)) {
        terminated.inc({ container_type: containerType(pod, name), exit_code: String(exitCode), reason });
      }
    },
    follow: registerPodGauges(registry),
  };
}

/** Containers that have ended since the look before. Nothing is known of what ended before the first look. Pure. */
export function newlyExited(before: PodSnapshot | undefined, now: PodSnapshot): ContainerStatus[] {
  if (before === undefined) return [];
  const known = new Set(before.containers.flatMap(({ id, state }) => (state === "exited" ? [id] : [])));
  return now.containers.filter(({ id, state }) => state === "exited" && !known.has(id));
}

/** The first pod with a network of its own: what it took longer than others says something about the network plugin. */
class FirstNetworkPod {
  #seconds: number | undefined;

  constructor(registry: MetricsRegistry) {
    registry.gaugeOf(
      "kubelet_first_network_pod_start_sli_duration_seconds",
      "Start of the first pod with a network of its own, less image pulls and init containers.",
      () => this.#seconds,
    );
  }

  note({ spec }: Pod, seconds: number): void {
    if (spec.hostNetwork !== true) this.#seconds ??= seconds;
  }
}
