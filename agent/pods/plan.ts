import type { ContainerStatus, PodSnapshot } from "../runtime/port.ts";
import type { PodLocal } from "./local.ts";

/** One step toward what the pod wants. Plain data; the worker carries it out. */
export type PodAction =
  | { kind: "SetUpVolumes" }
  | { kind: "CreateSandbox"; attempt: number }
  | { kind: "EnsureImage"; container: string }
  /** Gives running containers and the pod's cgroup the resources that are the pod's now. */
  | { kind: "ResizePod" }
  /** `createdID`: an instance that was made but never started (the agent died in between). */
  | { kind: "StartContainer"; container: string; sandboxID: string; createdID: string | undefined }
  /** Says why the container is stopped, then runs its preStop hook for `graceSeconds` at most. */
  | {
      kind: "PreStop";
      containerID: string;
      container: string;
      graceSeconds: number;
      why: string;
      /** As of {@link KillAction}: the container may end within its hook. */
      replaces?: true;
    }
  | KillAction
  | { kind: "StopSandbox"; sandboxID: string }
  | { kind: "RemoveContainer"; containerID: string; keepsLogs?: boolean }
  | { kind: "RemoveSandbox"; sandboxID: string }
  | { kind: "TearDownVolumes" }
  /** Removes the pod's cgroup, and lets go of what the node keeps for it. */
  | { kind: "CleanUp" };

export interface KillAction {
  kind: "KillContainer";
  containerID: string;
  container: string;
  graceSeconds: number;
  /** What is left of the grace for this container; absent: all of it. */
  timeoutSeconds?: number;
  why: string;
  /** An earlier step has said why already. */
  isAnnounced?: true;
  /** Another instance starts in its place whatever the restart policy says. */
  replaces?: true;
}

/** The key under which an action's attempt is remembered: equal keys are the same work. */
export function actionKey(action: PodAction): string {
  switch (action.kind) {
    case "SetUpVolumes":
      return "volumes";
    case "CreateSandbox":
      return "sandbox";
    case "EnsureImage":
      return `image/${action.container}`;
    case "ResizePod":
      return "resize";
    case "StartContainer":
      return `start/${action.container}`;
    case "PreStop":
      return `prestop/${action.containerID}`;
    case "KillContainer":
      return `kill/${action.containerID}/${action.graceSeconds}`;
    case "StopSandbox":
      return `stop/${action.sandboxID}`;
    case "RemoveContainer":
      return `remove/${action.containerID}`;
    case "RemoveSandbox":
      return `remove/${action.sandboxID}`;
    case "TearDownVolumes":
      return "teardown";
    case "CleanUp":
      return "cleanup";
  }
}

/** ID of the container or sandbox that the step with this key is about; undefined for steps about something else. */
export function instanceOf(key: string): string | undefined {
  const [kind = "", id] = key.split("/");
  return ["prestop", "kill", "stop", "remove"].includes(kind) ? id : undefined;
}

export interface Plan {
  /** To begin now, in this order. Work that is under way or rests after a failure is left out. */
  actions: PodAction[];
  /** Unix ms of the next look although nothing happens; undefined: none needed. */
  wakeAtMs: number | undefined;
  /** Containers in crash backoff: when they start again. */
  backoff: Map<string, { untilMs: number; delayMs: number }>;
  /** Nothing is left to be done for this pod, ever. */
  isFinished: boolean;
}

/** Collects actions and leaves out what is running or resting. */
export class PlanBuilder implements Plan {
  readonly actions: PodAction[] = [];
  readonly backoff = new Map<string, { untilMs: number; delayMs: number }>();
  wakeAtMs: number | undefined = undefined;
  isFinished = false;
  readonly nowMs: number;
  readonly #local: PodLocal;

  constructor(local: PodLocal, nowMs: number) {
    this.#local = local;
    this.nowMs = nowMs;
  }

  /** Wants `action`. @returns whether it is under way (also: begins now), rests after a failure, or is neither */
  want(action: PodAction): "underWay" | "resting" {
    const attempt = this.#local.attempts.get(actionKey(action));
    if (attempt?.state === "running") return "underWay";
    if (attempt?.state === "failed" && attempt.retryAtMs > this.nowMs) {
      this.wakeAt(attempt.retryAtMs);
      return "resting";
    }
    this.actions.push(action);
    return "underWay";
  }

  isRunning(key: string): boolean {
    return this.#local.attempts.get(key)?.state === "running";
  }

  wakeAt(ms: number): void {
    this.wakeAtMs = Math.min(this.wakeAtMs ?? Number.POSITIVE_INFINITY, ms);
  }
}

/** True for a container that has to be stopped before the pod can be called stopped. */
export function isAlive({ state }: ContainerStatus): boolean {
  return state === "running" || state === "unknown";
}

/** True while a container is being started: what it will look like is not known yet. */
export function isAnyStarting({ attempts }: PodLocal): boolean {
  return [...attempts].some(([key, { state }]) => state === "running" && key.startsWith("start/"));
}

/** Removes sandboxes of which nothing is left but themselves. The newest stays: it shows the pod's attempts. */
export function wantIdleSandboxesRemoved({ sandboxes, containers }: PodSnapshot, plan: PlanBuilder): void {
  for (const { id, ready } of sandboxes.slice(1)) {
    if (ready || containers.some(({ sandboxID }) => sandboxID === id)) continue;
    plan.want({ kind: "RemoveSandbox", sandboxID: id });
  }
}

/**
 * Stops every sandbox that was not stopped before. One that died by itself is no exception: its addresses and the rules of
 * its host ports go only when the runtime is told to stop it.
 *
 * @returns whether there is still one to be stopped
 */
export function wantSandboxesStopped({ sandboxes }: PodSnapshot, local: PodLocal, plan: PlanBuilder): boolean {
  const left = sandboxes.filter(({ id, ready }) => ready || !local.stoppedSandboxes.has(id));
  for (const { id } of left) plan.want({ kind: "StopSandbox", sandboxID: id });
  return left.length > 0;
}
