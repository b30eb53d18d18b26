import { isSidecar, volumeNamesOf } from "../kube/pod-resources.ts";
import type { Container, Pod } from "../kube/types.ts";
import type { ContainerStatus, PodSnapshot, SandboxStatus } from "../runtime/port.ts";
import { annotations } from "./container-annotations.ts";
import { containerHash } from "./container-hash.ts";
import { lastCrash, restartAtMs } from "./crash-backoff.ts";
import { nextInit } from "./init-containers.ts";
import { type Kill, wantKill } from "./kill.ts";
import type { PodLocal } from "./local.ts";
import { graceSecondsOf } from "./names.ts";
import {
  isAlive,
  isAnyStarting,
  type Plan,
  PlanBuilder,
  wantIdleSandboxesRemoved,
  wantSandboxesStopped,
} from "./plan.ts";
import { isResizeDue, needsRestart } from "./resize/actuate.ts";
import { resizableContainers } from "./resize/allocation.ts";
import { restartAll, restartAllTrigger } from "./restart-all.ts";
import { policyOf, restartsAfter, shouldRestart } from "./restart-policy.ts";
import { sandboxState } from "./sandbox.ts";
import { decideTermination } from "./terminate.ts";

/**
 * Next actions for one pod. Pure: same inputs, same plan.
 *
 *   volumes ──────────────┐
 *   image(s) ─────────────┼─► start containers in order: init one by one, then regular ones
 *   cgroup+sandbox ───────┘
 *
 * @param pod      the pod as the API server has it, or had it last
 * @param observed the runtime's view, newest first
 * @param nowMs    Unix ms
 */
export function decide(pod: Pod, observed: PodSnapshot, local: PodLocal, nowMs: number): Plan {
  const plan = new PlanBuilder(local, nowMs);
  for (const { id, state } of observed.containers) {
    if (state === "exited" && local.condemned.has(id)) plan.want({ kind: "RemoveContainer", containerID: id });
  }
  if (local.terminating !== undefined) decideTermination(pod, observed, local, local.terminating, plan);
  else if (local.isRuntimeReady) decideRunning(pod, observed, local, plan);
  return plan;
}

function decideRunning(pod: Pod, observed: PodSnapshot, local: PodLocal, plan: PlanBuilder): void {
  if (!local.isNetworkReady && pod.spec.hostNetwork !== true) return; // the worker says so and is woken when it changes
  const state = sandboxState(pod, observed);
  if (state.kind === "ready") {
    const trigger = restartAllTrigger(pod, observed, ({ id }) => local.replaced.has(id));
    if (trigger !== undefined) {
      restartAll(pod, trigger, observed, local, plan);
      return;
    }
    if (local.volumes !== "ready") plan.want({ kind: "SetUpVolumes" });
    decideContainers(pod, observed, state.sandbox, local, plan);
    prune(pod, observed, local, plan);
    return;
  }
  if (state.attempt > 0 && stopRemains(pod, observed, local, plan)) return;
  if (!wantsNewSandbox(pod, observed, state.attempt, local)) return;
  if (local.volumes !== "ready") plan.want({ kind: "SetUpVolumes" });
  plan.want({ kind: "CreateSandbox", attempt: state.attempt });
  for (const container of firstContainers(pod)) wantImage(container, local, plan);
}

/** True when all regular containers have ended for good: what is left, such as sidecars, only has to be stopped. */
export function isOver(pod: Pod, { containers }: PodSnapshot, local: Pick<PodLocal, "replaced" | "finished">): boolean {
  return pod.spec.containers.every((container) => {
    const newest = containers.find(({ name }) => name === container.name);
    if (newest === undefined) return local.finished.has(container.name);
    if (newest.state !== "exited" || local.replaced.has(newest.id)) return false;
    return !restartsAfter(pod, container, newest.exitCode);
  });
}

// Before a sandbox is replaced, everything of the old one stops. True while something is left.
function stopRemains(pod: Pod, observed: PodSnapshot, local: PodLocal, plan: PlanBuilder): boolean {
  const alive = observed.containers.filter(isAlive);
  for (const status of alive) {
    const why = `Stopping container ${status.name}`;
    wantKill({ status, graceSeconds: graceSecondsOf(pod), why }, pod, local, plan);
  }
  if (alive.length > 0) return true;
  return wantSandboxesStopped(observed, local, plan);
}

function wantsNewSandbox(pod: Pod, observed: PodSnapshot, attempt: number, { finished }: PodLocal): boolean {
  if (pod.spec.restartPolicy === "Never" && attempt > 0 && observed.containers.length > 0) return false;
  const regular = pod.spec.containers;
  const toStart = regular.filter((container) => {
    const newest = observed.containers.find(({ name }) => name === container.name);
    return newest === undefined ? !finished.has(container.name) : shouldRestart(pod, container, newest);
  });
  if (toStart.length > 0) return true;
  // Nothing to start, but initialisation never came to its end: begin it again.
  const hasRun = (name: string) => finished.has(name) || observed.containers.some((status) => status.name === name);
  return !regular.some(({ name }) => hasRun(name));
}

function firstContainers(pod: Pod): Container[] {
  const [init] = pod.spec.initContainers ?? [];
  return init === undefined ? pod.spec.containers : [init];
}

function decideContainers(
  pod: Pod,
  observed: PodSnapshot,
  sandbox: SandboxStatus,
  local: PodLocal,
  plan: PlanBuilder,
): void {
  const inSandbox = observed.containers.filter(({ sandboxID }) => sandboxID === sandbox.id);
  const starts: Container[] = [];
  const init = nextInit(pod, inSandbox, (container, status) => hasStarted(container, status, local, plan));
  // One that the runtime lost track of is killed first.
  starts.push(...init.start.filter(({ name }) => inSandbox.find((c) => c.name === name)?.state !== "unknown"));
  if (init.isInitialized) {
    for (const container of pod.spec.containers) {
      const newest = observed.containers.find(({ name }) => name === container.name);
      const isDue =
        newest === undefined
          ? !local.finished.has(container.name)
          : !isAlive(newest) && mayStartAgain(pod, container, newest, local);
      if (isDue) starts.push(container);
    }
  }
  killUnfit(pod, inSandbox, local, plan);
  const resize = wantResize(pod, inSandbox, local, plan);
  // Who debugs a pod does not hold it up: these are not in line with the others.
  for (const container of pod.spec.ephemeralContainers ?? []) {
    const isNew = !observed.containers.some(({ name }) => name === container.name);
    if (isNew) startInOrder([container], observed, sandbox, local, plan);
  }
  // What starts now may need the room that the pod's cgroup is about to get.
  if (resize !== "underWay") startInOrder(starts, observed, sandbox, local, plan);
}

// Containers that have to be restarted for it stop first; the pod's cgroup may shrink then, too.
function wantResize(
  pod: Pod,
  inSandbox: readonly ContainerStatus[],
  { resize }: PodLocal,
  plan: PlanBuilder,
): "none" | "underWay" | "resting" {
  if (resize === undefined || !isResizeDue(pod, resize, inSandbox)) return "none";
  // One that is being made gets what it was to have when that began; as long as it does not run, nothing can be changed.
  const isBeingMade = resizableContainers(pod.spec).some(
    ({ name }) =>
      plan.isRunning(`start/${name}`) && inSandbox.find((status) => status.name === name)?.state !== "running",
  );
  if (isBeingMade) return "underWay";
  const isInTheWay = restartables(pod).some((container) => {
    const status = inSandbox.find(({ name }) => name === container.name);
    return status?.state === "running" && resizeRestarts(container, resize);
  });
  return isInTheWay ? "underWay" : plan.want({ kind: "ResizePod" });
}

function resizeRestarts(container: Container, resize: PodLocal["resize"]): boolean {
  const actual = resize?.actual?.containers[container.name];
  return actual !== undefined && needsRestart(container, container.resources, actual);
}

function restartables({ spec }: Pod): Container[] {
  return [...(spec.initContainers ?? []).filter(isSidecar), ...spec.containers];
}

function mayStartAgain(pod: Pod, container: Container, newest: ContainerStatus, { replaced }: PodLocal): boolean {
  return replaced.has(newest.id) || shouldRestart(pod, container, newest);
}

// By its startup probe, and once its postStart hook is over.
function hasStarted(container: Container, { id }: ContainerStatus, local: PodLocal, plan: PlanBuilder): boolean {
  if (plan.isRunning(`start/${container.name}`)) return false;
  return container.startupProbe === undefined || local.verdict(container.name, id, "Startup") === "success";
}

// Containers start one after another, each with its postStart hook: one that still pulls or starts holds back those behind it, one that rests does not.
function startInOrder(
  starts: readonly Container[],
  observed: PodSnapshot,
  sandbox: SandboxStatus,
  local: PodLocal,
  plan: PlanBuilder,
): void {
  let isHeldBack = isAnyStarting(local);
  for (const container of starts) {
    const newest = observed.containers.find(({ name }) => name === container.name);
    const createdID = newest?.state === "created" && newest.sandboxID === sandbox.id ? newest.id : undefined;
    if (plan.isRunning(`start/${container.name}`)) continue;
    if (newest?.state === "exited") {
      const crash = local.crash.get(container.name);
      const untilMs = backoffUntilMs(newest, observed, local, plan.nowMs);
      if (crash !== undefined && untilMs > plan.nowMs) {
        plan.backoff.set(container.name, { untilMs, delayMs: crash.delayMs });
        plan.wakeAt(untilMs);
        continue;
      }
    }
    const image = createdID === undefined ? wantImage(container, local, plan) : "present";
    if (image === "resting") continue;
    if (image === "underWay" || isHeldBack || waitsForVolumes(container, local)) {
      isHeldBack = true;
      continue;
    }
    if (
      plan.want({ kind: "StartContainer", container: container.name, sandboxID: sandbox.id, createdID }) === "underWay"
    ) {
      isHeldBack = true;
    }
  }
}

function waitsForVolumes(container: Container, { volumes, awaitedVolumes }: PodLocal): boolean {
  return volumes === "unknown" || volumeNamesOf(container).some((name) => awaitedVolumes.has(name));
}

function backoffUntilMs(newest: ContainerStatus, observed: PodSnapshot, local: PodLocal, nowMs: number): number {
  const crash = local.crash.get(newest.name);
  const atMs = (status: ContainerStatus) => restartAtMs(crash, local.endedAtMs.get(status.id) ?? status.finishedAtMs);
  const counting = lastCrash(newest, observed, local);
  // Whether there is a backoff, the crash before decides; if there is, it begins with the stop.
  return counting === undefined || atMs(counting) <= nowMs ? nowMs : atMs(newest);
}

function wantImage(container: Container, local: PodLocal, plan: PlanBuilder): "present" | "underWay" | "resting" {
  if (local.images.get(container.name)?.wanted === container.image) return "present";
  return plan.want({ kind: "EnsureImage", container: container.name });
}

// Stops what has to run anew: its definition changed, or a probe says that it is of no use as it is.
function killUnfit(pod: Pod, inSandbox: readonly ContainerStatus[], local: PodLocal, plan: PlanBuilder): void {
  for (const container of restartables(pod)) {
    const status = inSandbox.find(({ name, state }) => name === container.name && state === "running");
    const unfit = status === undefined ? undefined : whyUnfit(pod, container, status, local);
    if (unfit !== undefined) wantKill(unfit, pod, local, plan);
  }
  for (const status of inSandbox) {
    // A container that the runtime lost track of is stopped before its successor starts.
    if (status.state === "unknown") {
      const why = `Container ${status.name} is in "unknown" state, try killing it before restart`;
      wantKill({ status, graceSeconds: graceSecondsOf(pod), why }, pod, local, plan);
    }
  }
}

function whyUnfit(pod: Pod, container: Container, status: ContainerStatus, local: PodLocal): Kill | undefined {
  const { name } = container;
  const what = pod.spec.initContainers?.includes(container) === true ? "Init container" : "Container";
  const hash = status.annotations[annotations.hash];
  if (hash !== undefined && hash !== containerHash(container)) {
    const why = `${what} ${name} definition changed, will be restarted`;
    return { status, graceSeconds: graceSecondsOf(pod), why, replaces: true };
  }
  for (const [type, probe] of [
    ["Startup", container.startupProbe],
    ["Liveness", container.livenessProbe],
  ] as const) {
    if (probe === undefined || local.verdict(name, status.id, type) !== "failure") continue;
    const isRestarted = policyOf(pod, container) !== "Never";
    const why = `${what} ${name} failed ${type.toLowerCase()} probe${isRestarted ? ", will be restarted" : ""}`;
    const graceSeconds = probe.terminationGracePeriodSeconds ?? graceSecondsOf(pod);
    return { status, graceSeconds, why, ...(isRestarted ? { replaces: true } : {}) };
  }
  if (resizeRestarts(container, local.resize)) {
    const why = `Container ${name} resize requires restart`;
    return { status, graceSeconds: graceSecondsOf(pod), why, replaces: true };
  }
  return undefined;
}

// Of each container some dead instances are kept (their logs, their exit codes), of an init container one: only the newest
// says how far the pod has come. Sandboxes without containers go.
function prune({ spec }: Pod, observed: PodSnapshot, local: PodLocal, plan: PlanBuilder): void {
  const inits = new Set((spec.initContainers ?? []).map(({ name }) => name));
  const dead = new Map<string, number>();
  const newestOf = (name: string) => observed.containers.find((container) => container.name === name);
  for (const { id, name, state } of observed.containers) {
    // Nobody starts it any more.
    if (state === "created" && newestOf(name)?.id !== id) plan.want({ kind: "RemoveContainer", containerID: id });
    if (state !== "exited") continue;
    const newer = dead.get(name) ?? 0;
    if (newer >= (inits.has(name) ? 1 : local.deadContainersMax) && !local.condemned.has(id)) {
      plan.want({ kind: "RemoveContainer", containerID: id });
    }
    // Until its successor is there, the crash before one that is replaced is needed to tell a crash loop.
    const isReplacedNow = local.replaced.has(id) && newestOf(name)?.id === id;
    if (!isReplacedNow) dead.set(name, newer + 1);
  }
  wantIdleSandboxesRemoved(observed, plan);
}
