import { isSidecar } from "../kube/pod-resources.ts";
import type { Container, Pod } from "../kube/types.ts";
import type { ContainerStatus } from "../runtime/port.ts";
import { failsPod, initExitCode } from "./restart-policy.ts";

export interface InitProgress {
  /** Regular containers may run. */
  isInitialized: boolean;
  /** Init containers to start now: the next one, and sidecars that died. */
  start: Container[];
}

/**
 * How far initialisation has come, from the containers of the present sandbox (newest first).
 * The last init container that has a status decides: the ones before it have done their part.
 *
 * @param isStarted whether a running sidecar has started as far as its probe and hook say
 */
export function nextInit(
  pod: Pod,
  inSandbox: readonly ContainerStatus[],
  isStarted: (container: Container, status: ContainerStatus) => boolean,
): InitProgress {
  const inits = pod.spec.initContainers ?? [];
  const newestOf = (name: string) => inSandbox.find((container) => container.name === name);
  const hasRegular = pod.spec.containers.some(({ name }) => {
    const state = newestOf(name)?.state;
    return state === "running" || state === "created";
  });
  if (hasRegular) {
    return { isInitialized: true, start: inits.filter((init) => isSidecar(init) && !isUp(newestOf(init.name))) };
  }
  const last = inits.findLastIndex(({ name }) => newestOf(name) !== undefined);
  const current = inits[last];
  if (current === undefined) return { isInitialized: inits.length === 0, start: inits.slice(0, 1) };

  const start = inits.slice(0, last).filter((init) => isSidecar(init) && !isUp(newestOf(init.name)));
  const status = newestOf(current.name);
  const isDone = isSidecar(current) ? status?.state === "running" && isStarted(current, status) : hasSucceeded(status);
  if (isDone) {
    const next = inits[last + 1];
    return { isInitialized: next === undefined, start: next === undefined ? start : [...start, next] };
  }
  if (status?.state === "running") return { isInitialized: false, start };
  const isOver = status?.state === "exited" && failsPod(pod, current, initExitCode(status));
  if (isOver) return { isInitialized: false, start: [] };
  return { isInitialized: false, start: [...start, current] };
}

function isUp(status: ContainerStatus | undefined): boolean {
  return status?.state === "running";
}

function hasSucceeded(status: ContainerStatus | undefined): boolean {
  return status?.state === "exited" && initExitCode(status) === 0;
}
