import { uidOf } from "../../kube/pod-resources.ts";
import type { EventRecorder } from "../../kube/port.ts";
import type { Pod } from "../../kube/types.ts";
import type { Clock } from "../../lib/clock.ts";
import { podReference } from "../names.ts";
import { inProgressState, pendingState, type ResizeStates, reportedStates, resizeMessage } from "./conditions.ts";
import type { ResizeMetrics } from "./metrics.ts";

export interface ResizeReportsDeps {
  clock: Clock;
  recorder: EventRecorder;
  metrics?: ResizeMetrics;
}

/** What is said of resizes: the pods' conditions, and an event with each change of them. */
export class ResizeReports {
  readonly #deps: ResizeReportsDeps;
  readonly #states = new Map<string, ResizeStates>();
  /** When resizes that are under way were accepted, on the clock that never goes back. */
  readonly #acceptedAtMs = new Map<string, number>();

  constructor(deps: ResizeReportsDeps) {
    this.#deps = deps;
    deps.metrics?.follow(() => this.#states.values());
  }

  of(podUID: string): ResizeStates {
    return this.#states.get(podUID) ?? {};
  }

  /** Goes on where the agent before this one was. @param isPending the pod still waits for a resize */
  resume(pod: Pod, isPending: boolean): void {
    const { pending, ...rest } = reportedStates(pod);
    this.#states.set(uidOf(pod), isPending && pending !== undefined ? { ...rest, pending } : rest);
  }

  forget(podUID: string): void {
    this.#states.delete(podUID);
    this.#acceptedAtMs.delete(podUID);
  }

  /** The pod waits for a resize; undefined: it does not. @returns whether that is news */
  pending(pod: Pod, why: { reason: "Deferred" | "Infeasible"; message: string } | undefined): boolean {
    const uid = uidOf(pod);
    const { pending: old, ...rest } = this.of(uid);
    const { generation } = pod.metadata;
    if (why === undefined) {
      if (old === undefined) return false;
      this.#states.set(uid, rest);
      return true;
    }
    const pending = pendingState(old, { ...why, generation }, this.#deps.clock.now());
    if (pending === old) return false;
    this.#states.set(uid, { ...rest, pending });
    this.#event(pod, "Warning", `Resize${why.reason}`, resizeMessage(why.reason, pod, generation, why.message));
    return true;
  }

  /** The pod is given what it asks for. What was to be said of a resize before this one is over. */
  accepted(pod: Pod): void {
    const { clock } = this.#deps;
    const { generation } = pod.metadata;
    const inProgress = inProgressState(undefined, { reason: "", message: "", generation }, clock.now());
    this.#states.set(uidOf(pod), { inProgress });
    this.#acceptedAtMs.set(uidOf(pod), clock.monotonic());
    this.#event(pod, "Normal", "ResizeStarted", resizeMessage("started", pod, generation));
  }

  /** A look at the pod, which has the resources that it was given. @param isDue not all of them have arrived yet */
  observed(pod: Pod, isDue: boolean): void {
    const uid = uidOf(pod);
    const { inProgress: old, ...rest } = this.of(uid);
    const { generation } = pod.metadata;
    if (isDue) {
      const inProgress = inProgressState(old, { reason: "", message: "", generation }, this.#deps.clock.now());
      if (inProgress !== old) this.#states.set(uid, { ...rest, inProgress });
      return;
    }
    if (old === undefined) return;
    this.#states.set(uid, rest);
    this.#measure(uid, true);
    this.#acceptedAtMs.delete(uid);
    this.#event(pod, "Normal", "ResizeCompleted", resizeMessage("completed", pod, old.generation));
  }

  /** An attempt to give a pod what is its own failed; it is made again. */
  failed(pod: Pod, message: string): void {
    const uid = uidOf(pod);
    const { inProgress: old, ...rest } = this.of(uid);
    const next = { reason: "Error", message, generation: pod.metadata.generation };
    const inProgress = inProgressState(old, next, this.#deps.clock.now());
    this.#measure(uid, false);
    if (inProgress === old) return;
    this.#states.set(uid, { ...rest, inProgress });
    this.#event(pod, "Warning", "ResizeError", resizeMessage("error", pod, inProgress.generation, message));
  }

  #measure(uid: string, isSuccess: boolean): void {
    const { clock, metrics } = this.#deps;
    const acceptedAtMs = this.#acceptedAtMs.get(uid);
    if (acceptedAtMs !== undefined) metrics?.took(clock.monotonic() - acceptedAtMs, isSuccess);
  }

  #event(pod: Pod, type: "Normal" | "Warning", reason: string, message: string): void {
    this.#deps.recorder.event(podReference(pod), type, reason, message);
  }
}
