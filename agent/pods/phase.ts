import { isSidecar } from "../kube/pod-resources.ts";
import type { ContainerStatus, Pod, PodPhase } from "../kube/types.ts";
import { failsPod, restartsAfter } from "./restart-policy.ts";

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
  /** A regular container exists in the present sandbox. */
  hasRegular: boolean;
  /** Containers that start again whatever the restart policy says, by name. */
  replaced: ReadonlySet<string>;
}

/** The pod's phase from its containers' statuses; see the table of kubelet's getPhase. */
export function podPhase(inputs: PhaseInputs): PodPhase {
  const counts = count(inputs);
  const { running, waiting, stopped, succeeded, unknown } = counts;
  if (counts.isInitFailed) return "Failed";
  if (counts.pendingInit > 0 || (counts.pendingSidecar > 0 && !inputs.hasRegular) || waiting > 0) {
    return inputs.isTerminated ? "Failed" : "Pending";
  }
  if (running > 0 && unknown === 0) return "Running";
  if (running === 0 && stopped > 0 && unknown === 0) {
    if (inputs.isTerminated) return stopped === succeeded ? "Succeeded" : "Failed";
    if (counts.isRestartable) return "Running";
    return stopped === succeeded ? "Succeeded" : "Failed";
  }
  return inputs.isTerminated ? "Failed" : "Pending";
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
    const exitCode = exitCodeOf(status);
    if (isSidecar(container)) {
      if (status?.state?.running !== undefined) {
        counts.running += 1;
        if (status.started !== true) counts.pendingSidecar += 1;
      } else if (status === undefined) counts.unknown += 1;
      else if (status.state?.terminated === undefined && exitCode === undefined) {
        counts.waiting += 1;
        counts.pendingSidecar += 1;
      }
    } else if (status?.state?.running !== undefined || exitCode === undefined) counts.pendingInit += 1;
    else if (exitCode !== 0) {
      if (failsPod(pod, container, exitCode)) counts.isInitFailed = true;
      else counts.pendingInit += 1;
    }
  }
  for (const container of pod.spec.containers) {
    const status = statuses.find(({ name }) => name === container.name);
    if (status === undefined) counts.unknown += 1;
    else if (status.state?.running !== undefined) counts.running += 1;
    else {
      const exitCode = exitCodeOf(status);
      if (exitCode === undefined) {
        counts.waiting += 1;
        continue;
      }
      counts.stopped += 1;
      if (status.state?.terminated !== undefined && exitCode === 0) counts.succeeded += 1;
      if (replaced.has(container.name) || restartsAfter(pod, container, exitCode)) counts.isRestartable = true;
    }
  }
  return counts;
}

// Code of the last exit: of the container itself, or of the instance before the one it waits to become.
function exitCodeOf(status: ContainerStatus | undefined): number | undefined {
  return status?.state?.terminated?.exitCode ?? status?.lastState?.terminated?.exitCode;
}
