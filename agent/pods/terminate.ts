import { isSidecar } from "../kube/pod-resources.ts";
import type { Pod } from "../kube/types.ts";
import type { ContainerStatus, PodSnapshot } from "../runtime/port.ts";
import type { PodLocal, Termination } from "./local.ts";
import { type Kill, wantHook, wantKill } from "./kill.ts";
import { isAlive, isAnyStarting, type PlanBuilder, wantIdleSandboxesRemoved, wantSandboxesStopped } from "./plan.ts";

/**
 * The end of a pod, and once the API server has let go of it, of what is left in the runtime:
 *
 *   containers ──┬─► sandboxes ──┬─► cgroup ──(object gone)──► records of containers, then of sandboxes
 *                └─► volumes ────┘
 *
 * Sidecars stop after regular containers, the last declared first. Volumes wait for the sandboxes where one of these may
 * still hold them.
 */
export function decideTermination(
  pod: Pod,
  observed: PodSnapshot,
  local: PodLocal,
  termination: Termination,
  plan: PlanBuilder,
): void {
  const alive = observed.containers.filter(isAlive);
  const next = nextToStop(pod, alive, termination, plan.nowMs);
  for (const status of alive) {
    const { graceSeconds, sinceMs } = termination;
    const kill: Kill = { status, graceSeconds, why: `Stopping container ${status.name}` };
    // Sidecars come late: they have what the others left of the pod's grace. Their hooks begin with the others'.
    const ofPod: Kill = isSidecarName(pod, status.name) || local.hooks.has(status.id) ? { ...kill, sinceMs } : kill;
    if (next.includes(status)) wantKill(ofPod, pod, local, plan);
    else wantHook(ofPod, pod, local, plan);
  }
  if (alive.length > 0) {
    const deadlineMs = termination.sinceMs + termination.graceSeconds * 1000;
    if (deadlineMs > plan.nowMs) plan.wakeAt(deadlineMs); // sidecars wait no longer than that
    return;
  }
  if (isAnyStarting(local) || plan.isRunning("sandbox")) return; // its end wakes us, and shows whether there is something to stop
  const isSandboxLeft = wantSandboxesStopped(observed, local, plan);
  const areVolumesFree = !isSandboxLeft || areVolumesFreeEarly(pod, observed, local);
  if (!local.areVolumesGone && areVolumesFree && !plan.isRunning("volumes")) {
    plan.want({ kind: "TearDownVolumes" }); // but not while they are set up: the two must not meet
  }
  if (isSandboxLeft || !local.areVolumesGone) return;
  if (!local.isCleanedUp) {
    plan.want({ kind: "CleanUp" });
    return;
  }
  if (!local.isGone) {
    wantIdleSandboxesRemoved(observed, plan);
    return;
  }
  for (const { id } of observed.containers) plan.want({ kind: "RemoveContainer", containerID: id });
  if (observed.containers.length > 0) return;
  for (const { id } of observed.sandboxes) plan.want({ kind: "RemoveSandbox", sandboxID: id });
  plan.isFinished = observed.sandboxes.length === 0;
}

// The pause container of an ordinary sandbox mounts nothing of the pod's. Other kinds of sandbox may: a virtual machine is
// given the volumes as a whole. And in a PID namespace that is not its own, what a container began may outlive it. A
// container that never ran may have mounts all the same, and may yet be started by a call that was given up.
function areVolumesFreeEarly(
  { spec }: Pod,
  { containers }: PodSnapshot,
  { hasPlainContainers }: Pick<PodLocal, "hasPlainContainers">,
): boolean {
  if (!hasPlainContainers || (spec.runtimeClassName ?? "") !== "") return false;
  if (spec.shareProcessNamespace === true || spec.hostPID === true) return false;
  return containers.every(({ state }) => state === "exited");
}

function isSidecarName(pod: Pod, name: string): boolean {
  return (pod.spec.initContainers ?? []).some((container) => container.name === name && isSidecar(container));
}

function nextToStop(
  pod: Pod,
  alive: readonly ContainerStatus[],
  termination: Termination,
  nowMs: number,
): readonly ContainerStatus[] {
  const sidecars = (pod.spec.initContainers ?? []).filter(isSidecar).map(({ name }) => name);
  const isOver = nowMs >= termination.sinceMs + termination.graceSeconds * 1000;
  if (sidecars.length === 0 || isOver) return alive;
  // They serve the regular containers. For init containers and somebody's debugging session nobody waits.
  const others = alive.filter(({ name }) => !sidecars.includes(name));
  if (others.some(({ name }) => pod.spec.containers.some((container) => container.name === name))) return others;
  const last = sidecars.findLast((name) => alive.some((container) => container.name === name));
  return [...others, ...alive.filter(({ name }) => name === last)];
}
