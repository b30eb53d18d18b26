import { isSidecar } from "../kube/pod-resources.ts";
import type { Container, ContainerState, ContainerStatus, Pod, PodStatus } from "../kube/types.ts";
import type { ContainerStatus as RuntimeContainer } from "../runtime/port.ts";
import { restartCountOf } from "./container-annotations.ts";
import type { ContainerKind } from "./names.ts";
import { shouldRestart } from "./restart-policy.ts";
import type { StatusInputs } from "./status.ts";

/** Exit code that stands for "we do not know": 128 + SIGKILL. */
export const unknownExitCode = 137;
const unknownReason = "ContainerStatusUnknown";

/** Statuses of the init, regular or ephemeral containers, built from the runtime's view over the last reported one. */
export function containerStatuses(kind: ContainerKind, inputs: StatusInputs): ContainerStatus[] {
  const { pod, previous } = inputs;
  const { list, old } = listsOf(kind, pod, previous);
  const statuses = list.map((container) =>
    containerStatus(
      kind,
      container,
      old?.find(({ name }) => name === container.name),
      inputs,
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

function containerStatus(
  kind: ContainerKind,
  container: Container,
  old: ContainerStatus | undefined,
  inputs: StatusInputs,
): ContainerStatus {
  const { pod, observed, waiting, replaced } = inputs;
  const [newest, before] = observed.containers.filter(({ name }) => name === container.name);
  const status = newest === undefined ? unseen(kind, container, old, inputs) : seen(newest, old, inputs);
  if (before !== undefined && newest !== undefined) status.lastState = seen(before, undefined, inputs).state ?? {};

  const why = waiting.get(container.name);
  const isDone = kind === "init" && !isSidecar(container) && newest?.state === "exited" && newest.exitCode === 0;
  const willStart =
    newest === undefined
      ? status.state?.waiting !== undefined
      : replaced.has(container.name) || shouldRestart(pod, container, newest);
  if (why !== undefined && !isDone && willStart && newest?.state !== "running") {
    if (status.state?.terminated !== undefined) status.lastState = status.state;
    status.state = { waiting: { reason: why.reason, message: why.message } };
  }
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

// The runtime does not know the container: not made yet, or gone.
function unseen(
  kind: ContainerKind,
  container: Container,
  old: ContainerStatus | undefined,
  { pod, observed }: StatusInputs,
): ContainerStatus {
  if (old?.state?.terminated !== undefined) return { ...old };
  const reason = (pod.spec.initContainers ?? []).length > 0 ? "PodInitializing" : "ContainerCreating";
  const status: ContainerStatus = {
    name: container.name,
    state: { waiting: { reason } },
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

function seen(container: RuntimeContainer, old: ContainerStatus | undefined, inputs: StatusInputs): ContainerStatus {
  const { runtimeName } = inputs;
  const containerID = `${runtimeName}://${container.id}`;
  const restartCount = Math.max(restartCountOf(container), old?.restartCount ?? 0);
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
  if (container.user !== undefined) status.user = { linux: { ...container.user } };
  return status;
}

function stateOf(
  container: RuntimeContainer,
  containerID: string,
  old: ContainerStatus | undefined,
  { terminationMessages }: StatusInputs,
): ContainerState {
  switch (container.state) {
    case "running":
      return { running: { startedAt: formatSeconds(container.startedAtMs) } };
    case "exited": {
      const message = terminationMessages.get(container.id) ?? container.message;
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
          reason: unknownReason,
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

/** RFC 3339 in whole seconds, as the API stores times; null for 0 ("not yet"). */
function formatTime(ms: number): string | null {
  return ms === 0 ? null : formatSeconds(ms);
}

/** RFC 3339 in whole seconds of a Unix time in ms. */
export function formatSeconds(ms: number): string {
  return `${new Date(ms).toISOString().slice(0, 19)}Z`;
}
