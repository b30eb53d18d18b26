import { isSidecar } from "../kube/pod-resources.ts";
import type { ContainerStatus, Pod, PodStatus } from "../kube/types.ts";
import { isTerminalPhase } from "./status.ts";

/**
 * A pod's state in a word, as `kubectl get pods` has it, but that a running pod that is not ready says so: "Running",
 * "NotReady", "ContainerCreating", "CrashLoopBackOff", "Init:ErrImagePull", "Terminating", "Completed" …
 */
export function podStateWord({ metadata, spec }: Pod, status: PodStatus): string {
  const { phase = "Pending", reason } = status;
  if (isTerminalPhase(phase)) return reason ?? (phase === "Succeeded" ? "Completed" : phase);
  if (metadata.deletionTimestamp !== undefined) return "Terminating";
  const init = waitingReason(status.initContainerStatuses);
  if (init !== undefined) return `Init:${init}`;
  const inits = spec.initContainers ?? [];
  const statuses = status.initContainerStatuses ?? [];
  const done = inits.filter((container) => {
    const own = statuses.find(({ name }) => name === container.name);
    return isSidecar(container) ? own?.started === true : own?.ready === true;
  });
  if (phase === "Pending" && statuses.length > 0 && done.length < inits.length) {
    return `Init:${done.length}/${inits.length}`;
  }
  const waiting = waitingReason(status.containerStatuses);
  if (waiting !== undefined) return waiting;
  if (phase !== "Running") return firstReason(status) ?? phase;
  const isReady = status.conditions?.some(({ type, status: is }) => type === "Ready" && is === "True");
  return isReady === true ? "Running" : "NotReady";
}

// What every container says before it has begun tells nothing.
const ordinary = ["ContainerCreating", "PodInitializing"];

function waitingReason(statuses: readonly ContainerStatus[] | undefined): string | undefined {
  for (const { state } of statuses ?? []) {
    const { reason } = state?.waiting ?? {};
    if (reason !== undefined && !ordinary.includes(reason)) return reason;
  }
  return undefined;
}

function firstReason({ containerStatuses = [] }: PodStatus): string | undefined {
  return containerStatuses.flatMap(({ state }) => state?.waiting?.reason ?? [])[0];
}
