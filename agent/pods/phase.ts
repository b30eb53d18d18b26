import { isSidecar, isStaticPod } from "../kube/pod-resources.ts";
import type { ContainerStateTerminated, ContainerStatus, Pod, PodPhase } from "../kube/types.ts";
import { restartingAllReason } from "./restart-all.ts";
import { failsPod, initExitCode, restartsAfter } from "./restart-policy.ts";

interface Counts {
  running: number;
  waiting: number;
  stopped: number;
  succeeded: number;
  unknown: number;
  pendingInit: number;
  pendingSidecar: number;
  isInitFailed: boolean;
  isRestartable: boolean;
}

export interface PhaseInputs {
  pod: Pod;
  initStatuses: readonly ContainerStatus[];
  statuses: readonly ContainerStatus[];
  /** All containers are stopped for good. */
  isTerminated: boolean;
  /** A regular container exists in the present sandbox: it is initialized, even if sidecars start again. */
  hasRegular: boolean;
  /** Containers that start again whatever the restart policy says, by name. */
  replaced: ReadonlySet<string>;
}

/**
 * The pod's phase from its containers' statuses; see the table of kubelet's getPhase. A pod that is over has a terminal one,
 * but for a static pod, whose file is still there.
 */
export function podPhase(inputs: PhaseInputs): PodPhase {
  const counts = count(inputs);
  const isOver = inputs.isTerminated && !isStaticPod(inputs.pod);
  const { running, waiting, stopped, succeeded, unknown } = counts;
  if (counts.isInitFailed) return "Failed";
  if (counts.pendingInit > 0 || (counts.pendingSidecar > 0 && !inputs.hasRegular) || waiting > 0) {
    return isOver ? "Failed" : "Pending";
  }
  if (running > 0 && unknown === 0) return "Running";
  if (running === 0 && stopped > 0 && unknown === 0) {
    if (isOver) return stopped === succeeded ? "Succeeded" : "Failed";
    if (counts.isRestartable) return "Running";
    return stopped === succeeded ? "Succeeded" : "Failed";
  }
  return isOver ? "Failed" : "Pending";
}

function count({ pod, initStatuses, statuses, replaced }: PhaseInputs): Counts {
  const counts: Counts = {
    running: 0,
    waiting: 0,
    stopped: 0,
    succeeded: 0,
    unknown: 0,
    pendingInit: 0,
    pendingSidecar: 0,
    isInitFailed: false,
    isRestartable: false,
  };
  for (const container of pod.spec.initContainers ?? []) {
    const status = initStatuses.find(({ name }) => name === container.name);
    const last = lastExit(status);
    if (isSidecar(container)) {
      if (status?.state?.running !== undefined) {
        counts.running += 1;
        if (status.started !== true) counts.pendingSidecar += 1;
      } else if (status === undefined) counts.unknown += 1;
      else if (last === undefined) {
        counts.waiting += 1;
        counts.pendingSidecar += 1;
      }
    } else if (status?.state?.running !== undefined || last === undefined) counts.pendingInit += 1;
    // One that failed and is tried again does not count: the containers behind it say what the pod is.
    else if (last.reason !== restartingAllReason && failsPod(pod, container, initExitCode(last))) {
      counts.isInitFailed = true;
    }
  }
  for (const container of pod.spec.containers) {
    const status = statuses.find(({ name }) => name === container.name);
    if (status === undefined) counts.unknown += 1;
    else if (status.state?.running !== undefined) counts.running += 1;
    else {
      const last = lastExit(status);
      if (last === undefined) {
        counts.waiting += 1;
        continue;
      }
      counts.stopped += 1;
      if (status.state?.terminated !== undefined && last.exitCode === 0) counts.succeeded += 1;
      const isReplaced = replaced.has(container.name) || last.reason === restartingAllReason;
      if (isReplaced || restartsAfter(pod, container, last.exitCode)) counts.isRestartable = true;
    }
  }
  return counts;
}

// The last exit: of the container itself, or of the instance before the one it waits to become.
function lastExit(status: ContainerStatus | undefined): ContainerStateTerminated | undefined {
  return status?.state?.terminated ?? status?.lastState?.terminated;
}
