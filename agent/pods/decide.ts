import { isSidecar } from "../kube/pod-resources.ts";
import type { Container, Pod } from "../kube/types.ts";
import type { ContainerStatus, PodSnapshot, SandboxStatus } from "../runtime/port.ts";
import { annotations } from "./container-annotations.ts";
import { containerHash } from "./container-hash.ts";
import { restartAtMs } from "./crash-backoff.ts";
import { nextInit } from "./init-containers.ts";
import type { PodLocal } from "./local.ts";
import { isAlive, type Plan, PlanBuilder } from "./plan.ts";
import { restartsAfter, shouldRestart } from "./restart-policy.ts";
import { sandboxState } from "./sandbox.ts";
import { decideTermination } from "./terminate.ts";

// kubelet's grace for a pod whose spec says nothing.
const graceSecondsDefault = 30;

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
  if (local.terminating !== undefined) decideTermination(pod, observed, local, local.terminating, plan);
  else if (local.isRuntimeReady) decideRunning(pod, observed, local, plan);
  return plan;
}

function decideRunning(pod: Pod, observed: PodSnapshot, local: PodLocal, plan: PlanBuilder): void {
  if (!local.isNetworkReady && pod.spec.hostNetwork !== true) return; // the worker says so and is woken when it changes
  const state = sandboxState(pod, observed);
  if (state.kind === "ready") {
    if (local.volumes !== "ready") plan.want({ kind: "SetUpVolumes" });
    decideContainers(pod, observed, state.sandbox, local, plan);
    prune(observed, plan);
    return;
  }
  if (state.attempt > 0 && stopRemains(pod, observed, plan)) return;
  if (!wantsNewSandbox(pod, observed, state.attempt)) return;
  if (local.volumes !== "ready") plan.want({ kind: "SetUpVolumes" });
  plan.want({ kind: "CreateSandbox", attempt: state.attempt });
  for (const container of firstContainers(pod)) wantImage(container, local, plan);
}

/** True when all regular containers have ended for good: what is left, such as sidecars, only has to be stopped. */
export function isOver(pod: Pod, { containers }: PodSnapshot): boolean {
  return pod.spec.containers.every((container) => {
    const newest = containers.find(({ name }) => name === container.name);
    return newest?.state === "exited" && !restartsAfter(pod, container, newest.exitCode);
  });
}

// Before a sandbox is replaced, everything of the old one stops. True while something is left.
function stopRemains(pod: Pod, observed: PodSnapshot, plan: PlanBuilder): boolean {
  const alive = observed.containers.filter(isAlive);
  const graceSeconds = pod.spec.terminationGracePeriodSeconds ?? graceSecondsDefault;
  for (const { id, name } of alive) {
    plan.want({
      kind: "KillContainer",
      containerID: id,
      container: name,
      graceSeconds,
      why: `Stopping container ${name}`,
    });
  }
  if (alive.length > 0) return true;
  const ready = observed.sandboxes.filter((sandbox) => sandbox.ready);
  for (const { id } of ready) plan.want({ kind: "StopSandbox", sandboxID: id });
  return ready.length > 0;
}

function wantsNewSandbox(pod: Pod, observed: PodSnapshot, attempt: number): boolean {
  if (pod.spec.restartPolicy === "Never" && attempt > 0 && observed.containers.length > 0) return false;
  const regular = pod.spec.containers;
  const toStart = regular.filter((container) => {
    const newest = observed.containers.find(({ name }) => name === container.name);
    return newest === undefined || shouldRestart(pod, container, newest);
  });
  if (toStart.length > 0) return true;
  // Nothing to start, but initialisation never came to its end: begin it again.
  return !regular.some(({ name }) => observed.containers.some((container) => container.name === name));
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
  for (const container of pod.spec.ephemeralContainers ?? []) {
    if (!observed.containers.some(({ name }) => name === container.name)) starts.push(container);
  }
  const init = nextInit(pod, inSandbox);
  // One that the runtime lost track of is killed first.
  starts.push(...init.start.filter(({ name }) => inSandbox.find((c) => c.name === name)?.state !== "unknown"));
  if (init.isInitialized) {
    for (const container of pod.spec.containers) {
      const newest = observed.containers.find(({ name }) => name === container.name);
      if (newest === undefined || (!isAlive(newest) && shouldRestart(pod, container, newest))) starts.push(container);
    }
  }
  killChanged(pod, inSandbox, plan);
  startInOrder(starts, observed, sandbox, local, plan);
}

// Containers start one after another: one that still pulls or starts holds back those behind it, one that rests does not.
function startInOrder(
  starts: readonly Container[],
  observed: PodSnapshot,
  sandbox: SandboxStatus,
  local: PodLocal,
  plan: PlanBuilder,
): void {
  let isHeldBack = false;
  for (const container of starts) {
    const newest = observed.containers.find(({ name }) => name === container.name);
    const createdID = newest?.state === "created" && newest.sandboxID === sandbox.id ? newest.id : undefined;
    if (plan.isRunning(`start/${container.name}`)) {
      isHeldBack = true;
      continue;
    }
    if (newest?.state === "exited") {
      const crash = local.crash.get(container.name);
      const untilMs = restartAtMs(crash, newest.finishedAtMs);
      if (crash !== undefined && untilMs > plan.nowMs) {
        plan.backoff.set(container.name, { untilMs, delayMs: crash.delayMs });
        plan.wakeAt(untilMs);
        continue;
      }
    }
    const image = createdID === undefined ? wantImage(container, local, plan) : "present";
    if (image === "resting") continue;
    if (image === "underWay" || isHeldBack || local.volumes === "unknown") {
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

function wantImage(container: Container, local: PodLocal, plan: PlanBuilder): "present" | "underWay" | "resting" {
  if (local.images.get(container.name)?.wanted === container.image) return "present";
  return plan.want({ kind: "EnsureImage", container: container.name });
}

function killChanged(pod: Pod, inSandbox: readonly ContainerStatus[], plan: PlanBuilder): void {
  const graceSeconds = pod.spec.terminationGracePeriodSeconds ?? graceSecondsDefault;
  const restartable = [...(pod.spec.initContainers ?? []).filter(isSidecar), ...pod.spec.containers];
  for (const container of restartable) {
    const running = inSandbox.find(({ name, state }) => name === container.name && state === "running");
    const hash = running?.annotations[annotations.hash];
    if (running === undefined || hash === undefined || hash === containerHash(container)) continue;
    const why = `Container ${container.name} definition changed, will be restarted`;
    plan.want({ kind: "KillContainer", containerID: running.id, container: container.name, graceSeconds, why });
  }
  for (const { id, name, state } of inSandbox) {
    // A container that the runtime lost track of is stopped before its successor starts.
    if (state === "unknown") {
      const why = `Container ${name} is in "unknown" state, try killing it before restart`;
      plan.want({ kind: "KillContainer", containerID: id, container: name, graceSeconds, why });
    }
  }
}

// Of each container one dead instance is kept (its log, its exit code); sandboxes without containers go.
function prune(observed: PodSnapshot, plan: PlanBuilder): void {
  const seen = new Set<string>();
  for (const { id, name, state } of observed.containers) {
    if (state !== "exited") continue;
    if (seen.has(name)) plan.want({ kind: "RemoveContainer", containerID: id });
    seen.add(name);
  }
  for (const { id, ready } of observed.sandboxes.slice(1)) {
    if (!ready && !observed.containers.some(({ sandboxID }) => sandboxID === id)) {
      plan.want({ kind: "RemoveSandbox", sandboxID: id });
    }
  }
}
