import type { PodEnding } from "./ending.ts";
import type { PodSnapshot } from "../runtime/port.ts";
import type { Termination } from "./local.ts";
import { isAlive } from "./plan.ts";

// kubelet's floor for the whole pod's grace.
const graceSecondsMin = 1;

/** How a pod's end stands: whether it has begun, for what reason and within which grace. It is never taken back. */
export class PodEnd {
  #termination: Termination | undefined;
  #reason: PodEnding | undefined;
  #isStopped = false;
  #areVolumesGone = false;
  #isCleanedUp = false;
  readonly #stopped = Promise.withResolvers<void>();

  /** Since when the pod has to stop; undefined while it may run. */
  get termination(): Termination | undefined {
    return this.#termination;
  }

  /** Why the node ends the pod; undefined if it does not, or only carries out what others decided. */
  get reason(): PodEnding | undefined {
    return this.#reason;
  }

  /** The node ends the pod. The first reason counts. */
  because(reason: PodEnding): void {
    this.#reason ??= reason;
  }

  /** @returns true if the end begins now, with this grace; false if it has begun before */
  begin(graceSeconds: number, nowMs: number): boolean {
    if (this.#termination !== undefined) return false;
    this.#termination = { sinceMs: nowMs, graceSeconds: Math.max(graceSecondsMin, graceSeconds) };
    return true;
  }

  /** A grace under way only ever shrinks, and begins anew with that. */
  shorten(seconds: number, nowMs: number): void {
    if (this.#termination === undefined) return;
    const graceSeconds = Math.max(graceSecondsMin, seconds);
    if (graceSeconds < this.#termination.graceSeconds) this.#termination = { sinceMs: nowMs, graceSeconds };
  }

  /** @param isStill nothing of the pod runs, and nothing is on its way */
  observed(isStill: boolean): void {
    this.#isStopped = this.#termination !== undefined && isStill;
    if (this.#isStopped) this.settle();
  }

  /** True while the pod stops or has stopped and nothing of it runs. */
  get isStopped(): boolean {
    return this.#isStopped;
  }

  /** Its volumes were torn down, and nothing was seen since that could use them. */
  get areVolumesGone(): boolean {
    return this.#areVolumesGone;
  }

  /** Nothing of it is left on the node but what the runtime remembers. */
  get isCleanedUp(): boolean {
    return this.#isCleanedUp;
  }

  volumesTornDown(): void {
    this.#areVolumesGone = true;
  }

  cleanedUp(): void {
    this.#isCleanedUp = true;
    this.settle();
  }

  /**
   * Begins the clean-up anew if something runs that it should have found stopped: a step that ended late, or somebody else's
   * doing.
   *
   * @returns true if all had been cleaned up
   */
  reopen({ containers, sandboxes }: PodSnapshot): boolean {
    const wasCleanedUp = this.#isCleanedUp && sandboxes.some(({ ready }) => ready);
    if (wasCleanedUp) this.#isCleanedUp = false;
    if (wasCleanedUp || containers.some(isAlive)) this.#areVolumesGone = false;
    return wasCleanedUp;
  }

  /** Nobody has to wait for the pod any longer. */
  settle(): void {
    this.#stopped.resolve();
  }

  /** Resolves when nothing of the pod runs any more, for good. */
  async settled(): Promise<void> {
    await this.#stopped.promise;
  }
}
