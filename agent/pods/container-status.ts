import { posix } from "node:path";
import { isSidecar } from "../kube/pod-resources.ts";
import type { Container, ContainerState, ContainerStatus, Pod, PodStatus } from "../kube/types.ts";
import type { ContainerStatus as RuntimeContainer } from "../runtime/port.ts";
import { restartCountOf } from "./container-annotations.ts";
import { containerResources } from "./container-resources.ts";
import { type ContainerKind, specContainers } from "./names.ts";
import { canRestartAll, restartingAllReason } from "./restart-all.ts";
import { initExitCode, restartsAfter, shouldRestart } from "./restart-policy.ts";
import type { StatusInputs } from "./status.ts";
import { rfc3339 } from "../lib/rfc3339.ts";

/** Exit code that stands for "we do not know": 128 + SIGKILL. */
export const unknownExitCode = 137;
const unknownReason = "ContainerStatusUnknown";
// All termination messages of a pod together may be so long; kubelet's limit, which keeps pods small enough for etcd.
const podMessageBytesMax = 12 * 1024;

/**
 * Statuses of the init, regular or ephemeral containers, built from the runtime's view over the last reported one.
 *
 * @param isRestartingAll containers that are missing were removed so that all begin anew
 */
export function containerStatuses(
  kind: ContainerKind,
  inputs: StatusInputs,
  isRestartingAll: boolean,
): ContainerStatus[] {
  const { pod, previous } = inputs;
  const { list, old } = listsOf(kind, pod, previous);
  const statuses = list.map((container) =>
    containerStatus(
      kind,
      container,
      old?.find(({ name }) => name === container.name),
      { ...inputs, isRestartingAll },
    ),
  );
  if (kind === "init") return statuses; // in spec order; the others by name
  return statuses.sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0));
}

function listsOf(kind: ContainerKind, { spec }: Pod, previous: PodStatus): ListPair {
  switch (kind) {
    case "init":
      return { list: spec.initContainers ?? [], old: previous.initContainerStatuses };
    case "regular":
      return { list: spec.containers, old: previous.containerStatuses };
    case "ephemeral":
      return { list: spec.ephemeralContainers ?? [], old: previous.ephemeralContainerStatuses };
  }
}

interface ListPair {
  list: readonly Container[];
  old: readonly ContainerStatus[] | undefined;
}

interface ContainerInputs extends StatusInputs {
  isRestartingAll: boolean;
}

function containerStatus(
  kind: ContainerKind,
  container: Container,
  old: ContainerStatus | undefined,
  inputs: ContainerInputs,
): ContainerStatus {
  const { pod, observed, waiting, replaced } = inputs;
  const [newest, before] = observed.containers.filter(({ name }) => name === container.name);
  const status = newest === undefined ? unseen(kind, container, old, inputs) : seen(newest, old, inputs);
  const mounts = withImages(old?.volumeMounts ?? volumeMounts(container, inputs), newest, inputs);
  if (mounts.length > 0) status.volumeMounts = mounts;
  if (newest !== undefined) {
    status.resources = containerResources(
      container,
      newest,
      inputs.resize?.actual?.containers[container.name],
      isSameInstance(old, status) ? old : undefined,
    );
    const { requests } = container.resources ?? {};
    if (requests !== undefined) status.allocatedResources = requests;
  }
  if (before !== undefined && newest !== undefined) status.lastState = seen(before, undefined, inputs).state ?? {};

  // One that is replaced is shown on its way to its successor: the API server would not let it come back from its end.
  if (newest?.state === "exited" && replaced.has(container.name) && status.state?.terminated !== undefined) {
    status.lastState = status.state;
    status.state = { waiting: { reason: waitingReason(pod) } };
  }
  const why = waiting.get(container.name);
  const isDone = kind === "init" && !isSidecar(container) && newest?.state === "exited" && initExitCode(newest) === 0;
  const willStart =
    newest === undefined
      ? status.state?.waiting !== undefined
      : replaced.has(container.name) || shouldRestart(pod, container, newest);
  if (why !== undefined && !isDone && willStart && newest?.state !== "running") {
    if (status.state?.terminated !== undefined) status.lastState = status.state;
    status.state = { waiting: { reason: why.reason, message: why.message } };
  }
  if (kind !== "ephemeral" && old !== undefined && !mayFollow(pod, container, old, status)) return { ...old };
  if (kind !== "ephemeral") {
    const isRunning = status.state?.running !== undefined;
    const isInit = kind === "init" && !isSidecar(container);
    const started = isRunning && inputs.isStarted(container, newest);
    status.started = started;
    status.ready = isInit
      ? status.state?.terminated?.exitCode === 0
      : isRunning && started && inputs.isReady(container, newest);
  }
  return status;
}

// The API server refuses a whole status in which a container comes back from its end against the restart policy. An init
// container does, when a new sandbox is initialized; it is shown as it ended until it has ended again.
function mayFollow(pod: Pod, container: Container, old: ContainerStatus, { state }: ContainerStatus): boolean {
  const end = old.state?.terminated;
  if (end === undefined || state?.terminated !== undefined) return true;
  if (pod.spec.restartPolicy === "Always" || canRestartAll(pod)) return true;
  return restartsAfter(pod, container, end.exitCode);
}

function isSameInstance(old: ContainerStatus | undefined, { containerID }: ContainerStatus): boolean {
  return old?.containerID === containerID;
}

// The runtime does not know the names of volumes, only we do.
function volumeMounts(
  { volumeMounts: mounts = [] }: Container,
  { observed, hasRecursiveReadOnly }: ContainerInputs,
): NonNullable<ContainerStatus["volumeMounts"]> {
  const isAble = hasRecursiveReadOnly(observed.sandboxes[0]?.runtimeHandler ?? "");
  return mounts.map(({ name, mountPath, readOnly, recursiveReadOnly = "Disabled" }) => {
    if (readOnly !== true) return { name, mountPath };
    const isRecursive = recursiveReadOnly !== "Disabled" && isAble;
    return { name, mountPath, readOnly, recursiveReadOnly: isRecursive ? "Enabled" : "Disabled" };
  });
}

// Which image a volume is of, only the runtime knows, and only once it has mounted it.
function withImages(
  mounts: NonNullable<ContainerStatus["volumeMounts"]>,
  newest: RuntimeContainer | undefined,
  { hasVolumeImages = false }: StatusInputs,
): NonNullable<ContainerStatus["volumeMounts"]> {
  if (!hasVolumeImages || newest === undefined) return mounts;
  return mounts.map((mount) => {
    const path = posix.resolve("/", mount.mountPath);
    const image = newest.mounts.find(({ containerPath }) => containerPath === path)?.image;
    const imageRef = image?.imageRef || image?.image;
    return imageRef === undefined ? mount : { ...mount, volumeStatus: { image: { imageRef } } };
  });
}

// The runtime does not know the container: not made yet, or gone.
function unseen(
  kind: ContainerKind,
  container: Container,
  old: ContainerStatus | undefined,
  { pod, observed, isRestartingAll }: ContainerInputs,
): ContainerStatus {
  if (isRestartingAll && old !== undefined) {
    if (old.state?.waiting === undefined) return removed(container, old);
    if (old.state.waiting.reason === restartingAllReason) return { ...old };
  }
  if (old?.state?.terminated !== undefined) return { ...old };
  const status: ContainerStatus = {
    name: container.name,
    state: { waiting: { reason: waitingReason(pod) } },
    lastState: old?.lastState ?? {},
    ready: false,
    restartCount: old?.restartCount ?? 0,
    image: container.image ?? "",
    imageID: "",
  };
  if (kind === "init" && !isSidecar(container)) {
    const hasRegular = pod.spec.containers.some(({ name }) => observed.containers.some((c) => c.name === name));
    if (hasRegular) {
      status.state = {
        terminated: {
          exitCode: 0,
          reason: "Completed",
          message:
            "Unable to get init container status from container runtime and pod has been initialized, treat it as exited normally",
        },
      };
    }
    return status;
  }
  if (old?.state?.running !== undefined && status.lastState?.terminated === undefined) {
    const message = "The container could not be located when the pod was deleted.  The container used to be Running";
    status.lastState = { terminated: { exitCode: unknownExitCode, reason: unknownReason, message } };
    if (pod.metadata.deletionTimestamp === undefined) status.restartCount += 1;
  }
  return status;
}

function waitingReason({ spec }: Pod): string {
  return (spec.initContainers ?? []).length > 0 ? "PodInitializing" : "ContainerCreating";
}

// Removed by us, so that all containers begin anew.
function removed({ name, image = "" }: Container, { restartCount }: ContainerStatus): ContainerStatus {
  const message = "The container is removed because RestartAllContainers in place";
  return {
    name,
    state: { waiting: { reason: restartingAllReason, message } },
    lastState: { terminated: { exitCode: unknownExitCode, reason: restartingAllReason, message } },
    ready: false,
    restartCount: restartCount + 1,
    image,
    imageID: "",
  };
}

function seen(container: RuntimeContainer, old: ContainerStatus | undefined, inputs: ContainerInputs): ContainerStatus {
  const { runtimeName } = inputs;
  const containerID = `${runtimeName}://${container.id}`;
  let restartCount = Math.max(restartCountOf(container), old?.restartCount ?? 0);
  // Another instance follows one that ended, although nothing was left from which it could have known its number.
  if (old?.state?.terminated !== undefined && old.containerID !== containerID && restartCount === old.restartCount) {
    restartCount += 1;
  }
  const status: ContainerStatus = {
    name: container.name,
    state: stateOf(container, containerID, old, inputs),
    lastState: {},
    ready: false,
    restartCount,
    image: container.image,
    imageID: container.imageRef,
    containerID,
  };
  if (container.state === "unknown" && status.state?.terminated !== undefined) status.restartCount += 1;
  // The instance before this one may be removed already; what was reported about it stays.
  if (old?.containerID === containerID && old.lastState !== undefined) status.lastState = old.lastState;
  else if (old?.state?.terminated !== undefined) status.lastState = old.state;
  else if (old?.lastState?.terminated !== undefined) status.lastState = old.lastState;
  if (inputs.hasStopSignals === true && container.stopSignal !== undefined) status.stopSignal = container.stopSignal;
  if (container.user !== undefined) status.user = { linux: { ...container.user } };
  return status;
}

function stateOf(
  container: RuntimeContainer,
  containerID: string,
  old: ContainerStatus | undefined,
  { pod, terminationMessages, isRestartingAll }: ContainerInputs,
): ContainerState {
  switch (container.state) {
    case "running":
      return { running: { startedAt: rfc3339(container.startedAtMs) } };
    case "exited": {
      const bytesMax = Math.floor(podMessageBytesMax / specContainers(pod).length);
      const message = cut(terminationMessages.get(container.id) ?? container.message, bytesMax);
      return {
        terminated: {
          exitCode: container.exitCode,
          ...(container.reason === "" ? {} : { reason: container.reason }),
          ...(message === "" ? {} : { message }),
          startedAt: formatTime(container.startedAtMs),
          finishedAt: formatTime(container.finishedAtMs),
          containerID,
        },
      };
    }
    case "unknown":
      if (old?.state?.running === undefined) return { waiting: {} };
      return {
        terminated: {
          exitCode: unknownExitCode,
          reason: isRestartingAll ? restartingAllReason : unknownReason,
          message: "The container could not be located when the pod was terminated",
          containerID,
          startedAt: null,
          finishedAt: null,
        },
      };
    case "created":
      return { waiting: {} };
  }
}

// The first bytes of a text, without half a character at the end.
function cut(text: string, bytesMax: number): string {
  const bytes = Buffer.from(text);
  if (bytes.length <= bytesMax) return text;
  let end = bytesMax;
  while (end > 0 && ((bytes[end] ?? 0) & 0xc0) === 0x80) end -= 1; // a byte that goes on with a character
  return bytes.toString("utf8", 0, end);
}

/** RFC 3339 in whole seconds, as the API stores times; null for 0 ("not yet"). */
function formatTime(ms: number): string | null {
  return ms === 0 ? null : rfc3339(ms);
}
