import { isSidecar, qosClass } from "../kube/pod-resources.ts";
import type { Container, ContainerStatus, Pod, PodPhase, PodStatus } from "../kube/types.ts";
import type { PodSnapshot, ContainerStatus as RuntimeContainer } from "../runtime/port.ts";
import { disruptionTarget, ownConditionTypes, podConditions } from "./conditions.ts";
import { containerStatuses, unknownExitCode } from "./container-status.ts";
import type { PodEnding } from "./ending.ts";
import { podPhase } from "./phase.ts";
import type { PodResources } from "./resize/allocation.ts";
import { resizeConditions, type ResizeStates } from "./resize/conditions.ts";
import { restartAllTrigger } from "./restart-all.ts";
import { rfc3339 } from "../lib/rfc3339.ts";

export interface StatusInputs {
  pod: Pod;
  observed: PodSnapshot;
  /** Last reported status; before that, the API object's. */
  previous: PodStatus;
  /** Why containers that should run do not, by name. */
  waiting: ReadonlyMap<string, { reason: string; message: string }>;
  /** What exited containers left as their last words, by container ID. */
  terminationMessages: ReadonlyMap<string, string>;
  /** The sandbox and all else that containers need is there. */
  hasSandbox: boolean;
  /** Present addresses of the pod; empty while it has none. */
  podIPs: readonly string[];
  hostIPs: readonly string[];
  runtimeName: string;
  /** All containers are stopped and none will start again. */
  isTerminated: boolean;
  /** Containers whose exited instance is replaced whatever the restart policy says, by name. */
  replaced: ReadonlySet<string>;
  /** True if this runtime handler mounts recursively read-only. */
  hasRecursiveReadOnly(handler: string): boolean;
  /** Shows which images the image volumes of containers are of; default: no. */
  hasVolumeImages?: boolean;
  /** Shows by which signal containers are stopped; default: no. */
  hasStopSignals?: boolean;
  /** Has the condition PodReadyToStartContainers; default: yes. */
  hasReadyToStart?: boolean;
  /** The node ends the pod, and nothing of it runs any more. */
  ending: PodEnding | undefined;
  /** What its containers have of cpu and memory, and resizes that wait or are under way. */
  resize?: { actual: PodResources | undefined; states: ResizeStates };
  isStarted(container: Container, status: RuntimeContainer | undefined): boolean;
  isReady(container: Container, status: RuntimeContainer | undefined): boolean;
}

/**
 * The pod's whole status. Pure. Conditions of others are carried over from `previous`; a terminal phase is never left.
 *
 * @param nowMs Unix ms; becomes start and transition times
 */
export function buildPodStatus(inputs: StatusInputs, nowMs: number): PodStatus {
  const { pod, previous, observed, ending } = inputs;
  if (isTerminalPhase(previous.phase) && previous.containerStatuses === undefined && observed.containers.length === 0) {
    return previous; // never taken, by this agent or the one before it: nothing is to be said of its containers
  }
  const now = rfc3339(nowMs);
  const startTime = previous.startTime ?? now;
  if (ending?.isRejection === true) return rejectedStatus(pod, ending, startTime);
  const { isTerminated, replaced } = inputs;
  const hasTrigger = !isTerminated && restartAllTrigger(pod, observed, ({ name }) => replaced.has(name)) !== undefined;
  const isRestartingAll = !isTerminated && (hasTrigger || saysRestartingAll(previous));
  let initStatuses = containerStatuses("init", inputs, isRestartingAll);
  let statuses = containerStatuses("regular", inputs, isRestartingAll);
  const ephemeral = containerStatuses("ephemeral", inputs, isRestartingAll);
  if (isTerminated) {
    const lastBegun = initStatuses.findLastIndex(hasBegun);
    initStatuses = initStatuses.map((status, index) => (index <= lastBegun ? closed(status) : status));
    if (hasInitialized(pod, initStatuses, statuses)) statuses = statuses.map((status) => closed(status));
  }
  const regularNames = new Set(pod.spec.containers.map(({ name }) => name));
  const sandboxID = observed.sandboxes[0]?.id;
  const hasRegular = observed.containers.some((c) => c.sandboxID === sandboxID && regularNames.has(c.name));
  const computed = podPhase({ pod, initStatuses, statuses, isTerminated, hasRegular, replaced });
  const phase = settledPhase(pod, previous, ending === undefined ? computed : "Failed");
  const isSamePhase = phase === previous.phase;
  const why = isSamePhase ? previous : (ending ?? {});
  const ips = inputs.podIPs.length > 0 ? inputs.podIPs : (previous.podIPs ?? []).map(({ ip }) => ip);
  const foreign = (previous.conditions ?? []).filter(({ type }) => !ownConditionTypes.includes(type));
  const own = podConditions(
    {
      pod,
      phase,
      initStatuses,
      statuses,
      hasSandbox: inputs.hasReadyToStart === false ? undefined : inputs.hasSandbox,
      isRestartingAll: hasTrigger,
      previous: previous.conditions ?? [],
    },
    now,
  );
  const resizes = isTerminated ? [] : resizeConditions(inputs.resize?.states ?? {}, rfc3339);
  // The node's addresses are unknown for a moment after a start of the agent.
  const hostIPs = inputs.hostIPs.length > 0 ? inputs.hostIPs : (previous.hostIPs ?? []).map(({ ip }) => ip);
  const [hostIP] = hostIPs;
  const [podIP] = ips;
  return {
    phase,
    ...observedGeneration(pod, previous),
    conditions: [...own, ...resizes, ...disruptionTarget(pod, isSamePhase ? undefined : ending, foreign, now)],
    ...(why.reason === undefined ? {} : { reason: why.reason }),
    ...(why.message === undefined ? {} : { message: why.message }),
    ...(hostIP === undefined ? {} : { hostIP, hostIPs: hostIPs.map((ip) => ({ ip })) }),
    ...(podIP === undefined ? {} : { podIP, podIPs: ips.map((ip) => ({ ip })) }),
    startTime,
    ...(initStatuses.length === 0 ? {} : { initContainerStatuses: initStatuses }),
    containerStatuses: statuses,
    ...(ephemeral.length === 0 ? {} : { ephemeralContainerStatuses: ephemeral }),
    qosClass: qosClass(pod),
    ...podLevelResources(inputs),
  };
}

function podLevelResources({
  pod: { spec },
  resize,
}: StatusInputs): Pick<PodStatus, "resources" | "allocatedResources"> {
  if (spec.resources === undefined) return {};
  const { requests } = spec.resources;
  return {
    resources: resize?.actual?.pod ?? spec.resources,
    ...(requests === undefined ? {} : { allocatedResources: requests }),
  };
}

// What the scheduler and others said of a pod that was never taken is of no use any more.
function rejectedStatus(pod: Pod, { reason, message }: PodEnding, startTime: string): PodStatus {
  return {
    phase: "Failed",
    reason,
    message,
    startTime,
    qosClass: qosClass(pod),
    ...observedGeneration(pod, {}),
  };
}

// The newest that anyone of us has seen: a watch may bring an older object once more.
function observedGeneration(
  { metadata: { generation } }: Pod,
  previous: PodStatus,
): Pick<PodStatus, "observedGeneration"> {
  if (generation === undefined) return {};
  return { observedGeneration: Math.max(generation, previous.observedGeneration ?? 0) };
}

// The agent may have ended between the removal of the last container and its report.
function saysRestartingAll({ conditions = [] }: PodStatus): boolean {
  return conditions.some(({ type, status }) => type === "AllContainersRestarting" && status === "True");
}

export function isTerminalPhase(phase: PodPhase | undefined): boolean {
  return phase === "Succeeded" || phase === "Failed";
}

function settledPhase(pod: Pod, previous: PodStatus, computed: PodPhase): PodPhase {
  for (const phase of [previous.phase, pod.status?.phase]) {
    if (phase !== undefined && isTerminalPhase(phase)) return phase;
  }
  return computed;
}

// Containers of a pod that never came that far stay as they are: waiting.
function hasInitialized(pod: Pod, inits: readonly ContainerStatus[], statuses: readonly ContainerStatus[]): boolean {
  const last = pod.spec.initContainers?.at(-1);
  if (last === undefined) return true;
  const hasRun = ({ state, lastState }: ContainerStatus) =>
    state?.running !== undefined || state?.terminated !== undefined || lastState?.terminated !== undefined;
  const status = inits.find(({ name }) => name === last.name);
  return (
    statuses.some(hasRun) || status?.state?.terminated?.exitCode === 0 || (isSidecar(last) && status?.started === true)
  );
}

function hasBegun({ state, lastState }: ContainerStatus): boolean {
  return state?.waiting === undefined || lastState?.terminated !== undefined;
}

// At the end every container is terminated, also those of which nothing is known.
function closed(status: ContainerStatus): ContainerStatus {
  if (status.state?.terminated !== undefined) return status;
  const message = "The container could not be located when the pod was terminated";
  const terminated = {
    exitCode: unknownExitCode,
    reason: "ContainerStatusUnknown",
    message,
    startedAt: null,
    finishedAt: null,
  };
  const last = status.lastState?.terminated;
  return {
    ...status,
    state: { terminated: last ?? terminated },
    ...(last === undefined ? {} : { lastState: {} }),
    ready: false,
    started: false,
  };
}
