import type { Pod } from "../kube/types.ts";
import type { MetricsRegistry, Sample } from "../lib/metrics.ts";
import type { ContainerStateName, PodSnapshot } from "../runtime/port.ts";
import { isTerminalPhase } from "./status.ts";

/** How far a pod has come, in the reference's words. */
export type PodLifecycle = "sync" | "terminating" | "terminated";

/** What gauges read of one pod's worker. */
export interface WorkerView {
  pod: Pod;
  /** A static pod that a mirror pod on the API server stands for. */
  hasMirror?: boolean;
  /** The API server has it no more. */
  isGone: boolean;
  lifecycle: PodLifecycle;
  observed: PodSnapshot | undefined;
}

const help = {
  running_pods: "Pods with a sandbox that runs.",
  running_containers: "Containers in the runtime, by state.",
  desired_pods: "Pods that the node is told to run.",
  active_pods: "Pods that have not ended.",
  mirror_pods: "Mirror pods on the API server.",
  working_pods: "Pods that are worked on, by how far they are and who wants them.",
  managed_ephemeral_containers: "Ephemeral containers of the node's pods.",
};

type GaugeName = keyof typeof help;

/**
 * Registers gauges that are counted at the time of a scrape, from whatever workers there are then.
 *
 * @returns tells which workers those are; the function that it returns ends that
 */
export function registerPodGauges(registry: MetricsRegistry): (workers: () => Iterable<WorkerView>) => () => void {
  let workers: () => Iterable<WorkerView> = () => [];
  registry.collect("kubelet_running_pods and others", () => {
    const samples = countPods(workers());
    return (Object.keys(help) as GaugeName[]).map((name) => {
      return { name: `kubelet_${name}`, help: help[name], type: "gauge" as const, samples: samples[name] };
    });
  });
  return (followed) => {
    workers = followed;
    return () => {
      workers = () => [];
    };
  };
}

// Every combination that the reference shows, whether there is such a pod or not.
const workingRows: readonly (readonly [config: string, lifecycle: PodLifecycle, isStatic: string])[] = [
  ...(["sync", "terminating", "terminated"] as const).flatMap((lifecycle) => [
    ["desired", lifecycle, ""] as const,
    ["desired", lifecycle, "true"] as const,
  ]),
  ...(["terminating", "terminated"] as const).flatMap((lifecycle) => [
    ["orphan", lifecycle, ""] as const,
    ["orphan", lifecycle, "true"] as const,
  ]),
  ...(["sync", "terminating", "terminated"] as const).map(
    (lifecycle) => ["runtime_only", lifecycle, "unknown"] as const,
  ),
];

/** The gauges' samples. Pure. */
export function countPods(workers: Iterable<WorkerView>): Record<GaugeName, Sample[]> {
  const counts = new Map<string, number>();
  const count = (key: string, by = 1) => counts.set(key, (counts.get(key) ?? 0) + by);
  for (const { pod, hasMirror = false, isGone, lifecycle, observed } of workers) {
    const { annotations = {} } = pod.metadata;
    if (hasMirror) count("mirror");
    const isStatic = (annotations["kubernetes.io/config.source"] ?? "api") === "api" ? "" : "true";
    if (!isGone) count(`desired/${isStatic}`);
    const hasEnded = isGone || lifecycle === "terminated" || isTerminalPhase(pod.status?.phase);
    if (!hasEnded) count(`active/${isStatic}`);
    count(`working/${isGone ? "orphan" : "desired"}/${lifecycle}/${isStatic}`);
    count("ephemeral", pod.spec.ephemeralContainers?.length ?? 0);
    if (observed?.sandboxes.some(({ ready }) => ready) === true) count("running");
    for (const { state } of observed?.containers ?? []) count(`container/${state}`);
  }
  const of = (key: string, labels: Record<string, string> = {}) => ({ labels, value: counts.get(key) ?? 0 });
  const byStatic = (key: string) => ["", "true"].map((isStatic) => of(`${key}/${isStatic}`, { static: isStatic }));
  const states: ContainerStateName[] = ["created", "running", "exited", "unknown"];
  return {
    running_pods: [of("running")],
    running_containers: states
      .filter((state) => counts.has(`container/${state}`))
      .map((state) => of(`container/${state}`, { container_state: state })),
    desired_pods: byStatic("desired"),
    active_pods: byStatic("active"),
    mirror_pods: [of("mirror")],
    working_pods: workingRows.map(([config, lifecycle, isStatic]) =>
      of(`working/${config}/${lifecycle}/${isStatic}`, { config, lifecycle, static: isStatic }),
    ),
    managed_ephemeral_containers: [of("ephemeral")],
  };
}
