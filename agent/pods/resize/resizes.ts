import { join } from "node:path";
import { uidOf } from "../../kube/pod-resources.ts";
import type { Container, Pod } from "../../kube/types.ts";
import type { Clock, Timer } from "../../lib/clock.ts";
import { messageOf } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import type { AdmissionContext } from "../admission/port.ts";
import {
  changedResources,
  hasResources,
  isSameResources,
  type PodResources,
  resizableContainers,
  resourcesOf,
  withResources,
} from "./allocation.ts";
import { ResourceCheckpoint } from "./checkpoint.ts";
import type { ResizeStates } from "./conditions.ts";
import { evaluateResize, givesBack, inTurn, type PendingResize, type ResizePolicy } from "./evaluate.ts";
import { type RetryTrigger, requestedChanges } from "./metrics.ts";
import { ResizeReports, type ResizeReportsDeps } from "./reports.ts";

// The reference's periods, for what no event tells: until all sources are known, and from then on.
export const firstRetryMs = 30_000;
export const retryMs = 180_000;

// So many different outcomes of failed attempts are remembered; each is a change that somebody made to the spec meanwhile.
export const attemptsMax = 8;

export interface ResizesDeps extends ResizeReportsDeps {
  clock: Clock;
  log: Logger;
  rootDir: string;
  policy: ResizePolicy;
  /** What an evaluation depends on beside the other pods, as it is now. */
  admission(): Omit<AdmissionContext, "others">;
  /** Pods that use the node, as their sources have them. */
  active(): readonly Pod[];
  /** The pod's worker has to look at it again. */
  onChange(podUID: string): void;
}

/** How far a pod has come to what it was given. */
export interface ResizeProgress {
  /** What its containers have; undefined if nothing is known. */
  readonly actual: PodResources | undefined;
  /** Where the attempt to give it the rest begins: before anything of it was done. */
  readonly from: PodResources | undefined;
  /**
   * What attempts that did not come to their end were to give it, also those of an agent that was killed in one: parts of
   * the pod may have that, whatever it is to have now. Absent if there were none.
   */
  readonly attempted?: readonly PodResources[];
}

/**
 * What the node's pods have of cpu and memory, and who gets what next:
 *
 *     spec (wanted) ──evaluate──► given, on disk ──worker──► actual, on disk
 *                  └► deferred: again when something may have made room; infeasible: with the next spec
 *
 * Everything that runs a pod works with what it was given; the pod gets there by and by. Both are kept over restarts, so
 * that an agent which was killed goes on where it was.
 */
export class Resizes {
  readonly #deps: ResizesDeps;
  /** Decided, and reserved for the pod; on disk but for those in `#effective`. */
  readonly #given: ResourceCheckpoint;
  /** What counts for a pod while what it is given next is not yet on disk. */
  readonly #effective = new Map<string, PodResources>();
  readonly #actual: ResourceCheckpoint;
  /** What pods had before an attempt that failed: from there it is made again, whatever was started meanwhile. */
  readonly #unfinished = new Map<string, PodResources>();
  readonly #attempted = new Map<string, readonly PodResources[]>();
  readonly #pending = new Set<string>();
  readonly #reports: ResizeReports;
  #isOpen = false;
  #retry: Timer | undefined;

  constructor(deps: ResizesDeps) {
    this.#deps = deps;
    const { rootDir, clock, log } = deps;
    this.#given = new ResourceCheckpoint(join(rootDir, "allocated_pods_state"), { clock, log });
    this.#actual = new ResourceCheckpoint(join(rootDir, "actuated_pods_state"), { clock, log });
    this.#reports = new ResizeReports(deps);
  }

  /** Reads what an agent before this one left. Never rejects. */
  async load(): Promise<void> {
    await Promise.all([this.#given.load(), this.#actual.load()]);
    for (const [uid, given] of this.#given.entries()) {
      const actual = this.#actual.get(uid);
      if (actual !== undefined && !isSameResources(given, actual)) this.#attempted.set(uid, [given]);
    }
  }

  /** All pods are known: resizes are evaluated from now on, and what is left of other pods is forgotten. */
  open(isKnown: (podUID: string) => boolean): void {
    this.#isOpen = true;
    this.#given.keepOnly(isKnown);
    this.#actual.keepOnly(isKnown);
    for (const uid of this.#attempted.keys()) if (!isKnown(uid)) this.#attempted.delete(uid);
    this.evaluate("pods_added");
  }

  /** Ends the timer and writes what is not on disk yet. */
  async close(): Promise<void> {
    this.#retry?.cancel();
    await Promise.all([this.#given.flush(), this.#actual.flush()]);
  }

  /** The pod was let in: what it asks for is its own, unless it had something before the agent began. */
  admitted(pod: Pod): void {
    const uid = uidOf(pod);
    const wanted = resourcesOf(pod);
    if (!hasResources(wanted)) return;
    const given = this.#given.get(uid);
    if (given === undefined) {
      this.#given.set(uid, wanted);
      this.#given.saveSoon();
      return;
    }
    const isPending = !isSameResources(wanted, given);
    if (isPending) this.#pending.add(uid);
    this.#reports.resume(pod, isPending);
  }

  /** The source has another object for the pod. */
  updated(before: Pod, pod: Pod): void {
    const [old, wanted] = [resourcesOf(before), resourcesOf(pod)];
    if (isSameResources(old, wanted)) return;
    this.#deps.metrics?.requested(requestedChanges(old, wanted));
    if (this.#given.get(uidOf(pod)) === undefined) return;
    this.#pending.add(uidOf(pod));
    this.evaluate("pod_updated");
  }

  /** The pod uses nothing of the node any more. */
  ended(podUID: string): void {
    this.#leave(podUID);
    this.evaluate("pod_terminated");
  }

  /** Nothing is left of the pod. */
  removed(podUID: string): void {
    this.#leave(podUID);
    this.#effective.delete(podUID);
    this.#settled(podUID);
    this.#given.delete(podUID);
    this.#actual.delete(podUID);
    this.evaluate("pods_removed");
  }

  #leave(podUID: string): void {
    this.#pending.delete(podUID);
    this.#reports.forget(podUID);
  }

  /** With the resources that are reserved for it: what others see of it. */
  reserved(pod: Pod): Pod {
    return withResources(pod, this.#given.get(uidOf(pod)));
  }

  /** With the resources that it was given: what it runs with. */
  given(pod: Pod): Pod {
    const uid = uidOf(pod);
    return withResources(pod, this.#effective.get(uid) ?? this.#given.get(uid));
  }

  /** How far the pod has come to what it was given; undefined for a pod without resources. */
  progress(podUID: string): ResizeProgress | undefined {
    if (this.#given.get(podUID) === undefined) return undefined;
    const actual = this.#actual.get(podUID);
    const attempted = this.#attempted.get(podUID);
    return { actual, from: this.#unfinished.get(podUID) ?? actual, ...(attempted === undefined ? {} : { attempted }) };
  }

  states(podUID: string): ResizeStates {
    return this.#reports.of(podUID);
  }

  /** Decides about all resizes that wait. */
  evaluate(trigger: RetryTrigger): void {
    if (this.#pending.size === 0) return;
    // Each round that makes room ends a resize: this comes to an end.
    let why = trigger;
    while (this.#isOpen && this.#round(why)) why = "pod_resized";
    this.#retryLater();
  }

  #retryLater(): void {
    this.#retry?.cancel();
    if (this.#pending.size === 0) return;
    const inMs = this.#isOpen ? retryMs : firstRetryMs;
    this.#retry = this.#deps.clock.after(inMs, () => this.evaluate("periodic_retry"));
  }

  // @returns whether a pod gave something back that another one waits for
  #round(trigger: RetryTrigger): boolean {
    const { active, metrics } = this.#deps;
    const pods = new Map(active().map((pod) => [uidOf(pod), pod]));
    let hasRoomMade = false;
    for (const resize of inTurn([...this.#pending].flatMap((uid) => this.#pendingResize(pods.get(uid), uid)))) {
      const { pod, given } = resize;
      const uid = uidOf(pod);
      if (isSameResources(resourcesOf(pod), resourcesOf(given))) {
        this.#pending.delete(uid);
        if (!this.#effective.has(uid)) this.#say(pod, undefined);
        continue;
      }
      const verdict = this.#evaluated(resize, pods);
      if (verdict.kind === "deferred") {
        this.#say(pod, { reason: "Deferred", message: verdict.message });
        continue;
      }
      this.#pending.delete(uid);
      if (verdict.kind === "infeasible") {
        metrics?.infeasible(verdict.detail);
        this.#say(pod, { reason: "Infeasible", message: verdict.message });
        continue;
      }
      if (this.#reports.of(uid).pending?.reason === "Deferred") metrics?.deferredAccepted(trigger);
      if (givesBack(resize) && this.#pending.size > 0) hasRoomMade = true;
      void this.#accept(pod);
    }
    return hasRoomMade;
  }

  #pendingResize(pod: Pod | undefined, uid: string): PendingResize[] {
    if (pod === undefined || pod.metadata.deletionTimestamp !== undefined) {
      if (pod !== undefined) this.#pending.delete(uid);
      return [];
    }
    return [{ pod, given: this.reserved(pod), sinceMs: this.#reports.of(uid).pending?.sinceMs }];
  }

  #evaluated({ pod, given }: PendingResize, pods: ReadonlyMap<string, Pod>) {
    const others = [...pods.values()].filter((other) => other !== pod).map((other) => this.reserved(other));
    return evaluateResize(pod, given, { ...this.#deps.admission(), others }, this.#deps.policy);
  }

  #say(pod: Pod, why: Parameters<ResizeReports["pending"]>[1]): void {
    if (this.#reports.pending(pod, why)) this.#deps.onChange(uidOf(pod));
  }

  // It counts for others at once, and for the pod itself when it is on disk. Never rejects.
  async #accept(pod: Pod): Promise<void> {
    const uid = uidOf(pod);
    const before = this.#effective.get(uid) ?? this.#given.get(uid);
    const wanted = resourcesOf(pod);
    if (before !== undefined) this.#effective.set(uid, before);
    this.#given.set(uid, wanted);
    try {
      await this.#given.save();
    } catch (err) {
      if (this.#given.get(uid) !== wanted) return; // gone, or given something else meanwhile
      this.#deps.log.error({ podUID: uid, err: messageOf(err) }, "accepted resize not saved, trying again later");
      if (before !== undefined) this.#given.set(uid, before);
      this.#effective.delete(uid);
      this.#pending.add(uid);
      this.#retryLater();
      return;
    }
    if (this.#given.get(uid) !== wanted) return;
    this.#effective.delete(uid);
    this.#reports.accepted(pod);
    this.#deps.onChange(uid);
  }

  /** The worker looked at its pod, which has the resources that it was given. @param isDue not all of them have arrived yet */
  observed(pod: Pod, isDue: boolean): void {
    // Making sure of what nobody has written down is no resize that anyone asked for.
    if (isDue && this.progress(uidOf(pod))?.from === undefined) return;
    this.#reports.observed(pod, isDue);
  }

  /** An attempt to give a pod what is its own failed; it is made again. */
  failed(pod: Pod, message: string): void {
    const from = this.progress(uidOf(pod))?.from;
    if (from !== undefined) this.#unfinished.set(uidOf(pod), from);
    this.#noteAttempt(uidOf(pod), resourcesOf(pod));
    this.#reports.failed(pod, message);
  }

  #noteAttempt(podUID: string, resources: PodResources): void {
    const before = this.#attempted.get(podUID) ?? [];
    if (before.some((one) => isSameResources(one, resources))) return;
    this.#attempted.set(podUID, [...before, resources].slice(-attemptsMax));
  }

  #settled(podUID: string): void {
    this.#unfinished.delete(podUID);
    this.#attempted.delete(podUID);
  }

  /** The pod's cgroup was made. One that was there before, and what runs in it, stays what it is. */
  cgroupMade(pod: Pod): void {
    const uid = uidOf(pod);
    if (this.#given.get(uid) === undefined || this.#actual.get(uid) !== undefined) return;
    this.#actual.set(uid, resourcesOf(pod));
    this.#actual.saveSoon();
  }

  /**
   * A container is about to be made with these resources. Resolves when that may be done: where it had others before, the
   * next agent must not take them for what it has.
   */
  async starting(pod: Pod, { name, resources = {} }: Container): Promise<void> {
    const uid = uidOf(pod);
    const isKnown = this.#given.get(uid) !== undefined;
    if (!isKnown || !resizableContainers(pod.spec).some((container) => container.name === name)) return;
    const old = this.#actual.get(uid) ?? withPodLevel({ containers: {} }, pod);
    const had = old.containers[name];
    this.#actual.set(uid, { ...old, containers: { ...old.containers, [name]: resources } });
    if (had === undefined || changedResources(had, resources).length === 0) this.#actual.saveSoon();
    else await this.#actual.save();
  }

  /** The pod has all that it was given. Resolves when that is on disk. */
  async completed(pod: Pod): Promise<void> {
    const uid = uidOf(pod);
    if (this.#given.get(uid) === undefined) return;
    this.#actual.set(uid, resourcesOf(pod));
    await this.#actual.save();
    this.#settled(uid);
  }
}

function withPodLevel(resources: PodResources, { spec }: Pod): PodResources {
  return spec.resources === undefined ? resources : { ...resources, pod: spec.resources };
}
