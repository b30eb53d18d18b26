import type { Container, ContainerStatus, Pod } from "../../../agent/kube/types.ts";
import { duration } from "./duration.ts";

export interface PodRow {
  ready: number;
  total: number;
  status: string;
  restarts: string;
  readinessGates: string;
}

/** What `kubectl get pods` says of a pod: containers ready, the one word for its state, restarts. Pure. */
export function podRow(pod: Pod, nowMs: number): PodRow {
  const { spec, status = {} } = pod;
  const isSidecar = (c: Container | undefined) => c?.restartPolicy === "Always";
  const sidecars = (spec.initContainers ?? []).filter(isSidecar);
  const initOf = (name: string) => spec.initContainers?.find((c) => c.name === name);
  const initStatuses = status.initContainerStatuses ?? [];
  const statuses = status.containerStatuses ?? [];

  let text = status.reason || status.phase || "Unknown";
  let ready = 0;
  let counted: ContainerStatus[] = [];
  let initText: string | undefined;
  for (const [i, init] of initStatuses.entries()) {
    const isRestartable = isSidecar(initOf(init.name));
    counted.push(init);
    if (init.state?.terminated?.exitCode === 0) continue;
    if (isRestartable && init.started === true) {
      if (init.ready) ready++;
      continue;
    }
    initText = initReason(init, i, spec.initContainers?.length ?? 0);
    break;
  }
  if (initText !== undefined) {
    text = initText;
  } else {
    // Past initialization only the sidecars' restarts count beside the containers'.
    counted = [...counted.filter((s) => isSidecar(initOf(s.name))), ...statuses];
    let hasRunning = false;
    for (const container of statuses.toReversed()) {
      const { waiting, terminated, running } = container.state ?? {};
      if (waiting?.reason) {
        text = waiting.reason;
      } else if (terminated !== undefined) {
        text = terminated.reason || exitText(terminated);
      } else if (container.ready && running !== undefined) {
        hasRunning = true;
        ready++;
      }
    }
    // A pod with one container done and others running goes on running.
    if (text === "Completed" && hasRunning) {
      const isReady = status.conditions?.some((c) => c.type === "Ready" && c.status === "True") === true;
      text = isReady ? "Running" : "NotReady";
    }
  }
  if (pod.metadata.deletionTimestamp !== undefined) {
    if (status.reason === "NodeLost") {
      text = "Unknown";
    } else if (status.phase !== "Succeeded" && status.phase !== "Failed") {
      text = "Terminating";
    }
  }
  const gates = spec.readinessGates ?? [];
  const passed = gates.filter((g) => status.conditions?.some((c) => c.type === g.conditionType && c.status === "True"));
  return {
    ready,
    total: spec.containers.length + sidecars.length,
    status: text,
    restarts: restartText(counted, nowMs),
    readinessGates: gates.length === 0 ? "<none>" : `${passed.length}/${gates.length}`,
  };
}

function initReason({ state }: ContainerStatus, index: number, total: number): string {
  if (state?.terminated !== undefined) return `Init:${state.terminated.reason || exitText(state.terminated)}`;
  const reason = state?.waiting?.reason ?? "";
  return reason !== "" && reason !== "PodInitializing" ? `Init:${reason}` : `Init:${index}/${total}`;
}

function exitText({ signal, exitCode }: { signal?: number; exitCode: number }): string {
  return signal !== undefined && signal !== 0 ? `Signal:${signal}` : `ExitCode:${exitCode}`;
}

function restartText(statuses: readonly ContainerStatus[], nowMs: number): string {
  const restarts = statuses.reduce((sum, s) => sum + s.restartCount, 0);
  const ends = statuses
    .map((s) => s.lastState?.terminated?.finishedAt)
    .filter((t) => typeof t === "string")
    .map((t) => Date.parse(t));
  return restarts === 0 || ends.length === 0
    ? String(restarts)
    : `${restarts} (${duration(nowMs - Math.max(...ends))} ago)`;
}
