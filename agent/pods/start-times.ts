import { isSidecar, uidOf } from "../kube/pod-resources.ts";
import type { Pod, PodStatus } from "../kube/types.ts";
import type { Clock } from "../lib/clock.ts";
import { isTerminalPhase } from "./status.ts";

/** What is measured of a pod's start, in seconds. */
export interface StartSeconds {
  /** From its first sight to the first step of work on it. */
  begun(seconds: number): void;
  /** From its first sight to the first time that our status calls it Running. */
  running(seconds: number): void;
  /**
   * From the pod's creation until the API server shows all its containers running.
   *
   * @param own the same, less pulls and init containers: what the node itself is accountable for; undefined for pods
   *   whose volumes may take any time
   */
  shown(pod: Pod, total: number, own: number | undefined): void;
}

interface Start {
  seenAtMs: number;
  hasBegun: boolean;
  isRunning: boolean;
  isShown: boolean;
  /** Pulls under way, since when there is any, and for how long there has been one or more. */
  pulls: number;
  pullsSinceMs: number;
  pulledMs: number;
}

/**
 * Follows pods from their first sight to the moment when all their containers run. Pods that an earlier agent has begun,
 * and those that had to wait for a place in the cluster, are left out: their start says nothing about this node.
 */
export class StartTimes {
  readonly #clock: Clock;
  readonly #measure: StartSeconds;
  readonly #starts = new Map<string, Start>();

  constructor(clock: Clock, measure: StartSeconds) {
    this.#clock = clock;
    this.#measure = measure;
  }

  /** The API server showed this object. @returns true at the first sight of a pod that is not begun yet */
  seen(pod: Pod): boolean {
    const uid = uidOf(pod);
    const { status = {} } = pod;
    if (isTerminalPhase(status.phase) || wasUnschedulable(status)) {
      this.#starts.delete(uid);
      return false;
    }
    const start = this.#starts.get(uid);
    if (start !== undefined) {
      if (!start.isShown && isAllRunning(pod)) this.#show(pod, start);
      return false;
    }
    if (status.startTime !== undefined) return false;
    const seenAtMs = this.#clock.monotonic();
    const counts = { pulls: 0, pullsSinceMs: 0, pulledMs: 0 };
    this.#starts.set(uid, { seenAtMs, hasBegun: false, isRunning: false, isShown: false, ...counts });
    return true;
  }

  gone(podUID: string): void {
    this.#starts.delete(podUID);
  }

  /** A step of work on the pod begins. */
  begins(podUID: string): void {
    const start = this.#starts.get(podUID);
    if (start === undefined || start.hasBegun) return;
    start.hasBegun = true;
    this.#measure.begun(this.#secondsSince(start.seenAtMs));
  }

  /** An image is pulled for the pod, or that has ended. */
  pull(podUID: string, stage: "began" | "ended"): void {
    const start = this.#starts.get(podUID);
    if (start === undefined) return;
    const now = this.#clock.monotonic();
    if (stage === "began") {
      if (start.pulls === 0) start.pullsSinceMs = now;
      start.pulls += 1;
      return;
    }
    start.pulls -= 1;
    if (start.pulls === 0) start.pulledMs += now - start.pullsSinceMs;
  }

  /** We want the API server to know this status. */
  statusWanted(podUID: string, { phase }: PodStatus): void {
    const start = this.#starts.get(podUID);
    if (start === undefined || start.isRunning || phase !== "Running") return;
    start.isRunning = true;
    this.#measure.running(this.#secondsSince(start.seenAtMs));
  }

  #show(pod: Pod, start: Start): void {
    start.isShown = true;
    const createdAtMs = Date.parse(pod.metadata.creationTimestamp ?? "");
    if (Number.isNaN(createdAtMs)) return;
    const totalMs = this.#clock.now() - createdAtMs;
    const own = isStateful(pod) ? undefined : Math.max(0, totalMs - start.pulledMs - initMs(pod)) / 1_000;
    this.#measure.shown(pod, totalMs / 1_000, own);
  }

  #secondsSince(ms: number): number {
    return (this.#clock.monotonic() - ms) / 1_000;
  }
}

function wasUnschedulable({ conditions = [] }: PodStatus): boolean {
  return conditions.some(({ type, status }) => type === "PodScheduled" && status === "False");
}

function isAllRunning({ spec, status }: Pod): boolean {
  const statuses = status?.containerStatuses ?? [];
  return statuses.length >= spec.containers.length && statuses.every(({ state }) => state?.running?.startedAt);
}

// Set up by the node itself, from what the API server gives.
const quickVolumes = ["emptyDir", "configMap", "secret", "downwardAPI", "projected"];

function isStateful({ spec }: Pod): boolean {
  return (spec.volumes ?? []).some((volume) => !quickVolumes.some((kind) => volume[kind] !== undefined));
}

/** How long the pod's init containers ran, one after the other. */
function initMs({ spec, status }: Pod): number {
  const sidecars = new Set((spec.initContainers ?? []).filter(isSidecar).map(({ name }) => name));
  let sum = 0;
  for (const { name, state } of status?.initContainerStatuses ?? []) {
    const { startedAt, finishedAt } = state?.terminated ?? {};
    const ms = Date.parse(finishedAt ?? "") - Date.parse(startedAt ?? "");
    if (!sidecars.has(name) && ms > 0) sum += ms;
  }
  return sum;
}
