import { uidOf } from "../kube/pod-resources.ts";
import type { Pod } from "../kube/types.ts";
import type { Clock } from "../lib/clock.ts";
import { type Executor, StepError } from "./executor.ts";
import { imageVolumesOf } from "./image-volumes.ts";
import { containerType, type PodMetrics } from "./metrics.ts";
import { specContainers } from "./names.ts";
import type { PodAction } from "./plan.ts";

/** The executor, with its steps counted and timed. */
export function instrumentExecutor(
  executor: Pick<Executor, "execute">,
  metrics: PodMetrics,
  clock: Clock,
): Pick<Executor, "execute"> {
  return {
    execute: async (action, context) => {
      const { pod, observed } = context;
      const note = attemptNotes(action, metrics);
      metrics.stepBegins(uidOf(pod));
      const startedAtMs = clock.monotonic();
      try {
        await executor.execute(action, context);
        note.succeeded(pod);
      } catch (err) {
        note.failed(pod, err);
        throw err;
      } finally {
        const type = operationType(action, observed.containers.length > 0);
        metrics.stepSeconds.observe({ operation_type: type }, (clock.monotonic() - startedAtMs) / 1_000);
      }
    },
  };
}

/** The reference's word for what a step does to a pod. @param hasContainers the pod was begun before */
function operationType({ kind }: PodAction, hasContainers: boolean): "create" | "sync" | "kill" | "terminated" {
  switch (kind) {
    case "SetUpVolumes":
    case "CreateSandbox":
    case "EnsureImage":
    case "ResizePod":
    case "StartContainer":
      return hasContainers ? "sync" : "create";
    case "PreStop":
    case "KillContainer":
    case "StopSandbox":
      return "kill";
    case "RemoveContainer":
    case "RemoveSandbox":
    case "TearDownVolumes":
    case "CleanUp":
      return "terminated";
  }
}

interface Notes {
  succeeded(pod: Pod): void;
  failed(pod: Pod, err: unknown): void;
}

const nothing: Notes = { succeeded: () => {}, failed: () => {} };

/** What a step counts as an attempt to start something. */
function attemptNotes(action: PodAction, metrics: PodMetrics): Notes {
  switch (action.kind) {
    case "CreateSandbox":
      return {
        succeeded: (pod) => sandboxTried(pod, false, metrics),
        failed: (pod) => sandboxTried(pod, true, metrics),
      };
    case "StartContainer":
      return {
        succeeded: (pod) => {
          metrics.startedContainers.inc({ container_type: containerType(pod, action.container) });
          metrics.imageVolumesMounted.inc({}, imageVolumeCount(pod, action.container));
        },
        failed: (pod, err) => failedStart(pod, action.container, err, metrics),
      };
    case "EnsureImage":
      // An image that is there is the beginning of a start, and counted with it; one that cannot be had is its end.
      return {
        succeeded: (pod) => metrics.imageVolumesRequested.inc({}, imageVolumeCount(pod, action.container)),
        failed: (pod, err) => {
          metrics.imageVolumesRequested.inc({}, imageVolumeCount(pod, action.container));
          failedStart(pod, action.container, err, metrics);
        },
      };
    default:
      return nothing;
  }
}

function sandboxTried({ spec }: Pod, hasFailed: boolean, metrics: PodMetrics): void {
  metrics.startedPods.inc({});
  if (hasFailed) metrics.startedPodErrors.inc({});
  if (spec.hostUsers !== false) return;
  metrics.startedUserNamespacedPods.inc({});
  if (hasFailed) metrics.startedUserNamespacedPodErrors.inc({});
}

// A step without a reason of its own was not an attempt: it was called off, or found the pod changed.
function failedStart(pod: Pod, container: string, err: unknown, metrics: PodMetrics): void {
  if (!(err instanceof StepError) || err.reason === "ContainerCreating") return;
  const type = containerType(pod, container);
  metrics.startedContainers.inc({ container_type: type });
  metrics.startedContainerErrors.inc({ container_type: type, code: err.reason });
  metrics.imageVolumeErrors.inc({}, imageVolumeCount(pod, container));
}

function imageVolumeCount(pod: Pod, name: string): number {
  const found = specContainers(pod).find(({ container }) => container.name === name);
  return found === undefined ? 0 : imageVolumesOf(pod, found.container).length;
}
