import { uidOf } from "../kube/pod-resources.ts";
import type { Pod } from "../kube/types.ts";
import { backoffMs } from "../lib/backoff.ts";
import type { Clock } from "../lib/clock.ts";
import type { Logger } from "../lib/log.ts";
import { ignoreAbort } from "../lib/loop.ts";
import { podReference } from "./names.ts";

/** Rest after a failed attempt: as often as the runtime is listed in the end, and sooner at first. */
export const clearRetry = { baseMs: 500, maxMs: 10_000, jitter: 0.2 };

/** What keeps a static pod from being begun. */
export interface Obstacle {
  message: string;
  /** Unix ms. */
  retryAtMs: number;
  failures: number;
}

export interface PredecessorsDeps {
  /** Removes what ran in the pod's place. @returns why that is not gone; undefined if nothing is in the way */
  remove(pod: Pod): Promise<string | undefined>;
  clock: Clock;
  log: Logger;
}

/**
 * Clears the way for static pods: two of one name must not run beside each other, as the one may hold what the other one
 * needs, or write to it.
 */
export class Predecessors {
  readonly #deps: PredecessorsDeps;
  readonly #obstacles = new Map<string, Obstacle>();
  readonly #clearing = new Map<string, AbortController>();

  constructor(deps: PredecessorsDeps) {
    this.#deps = deps;
  }

  /** @returns true if nothing is in the pod's way; false if it went away meanwhile, or `signal` aborted. Never rejects. */
  async clear(pod: Pod, signal: AbortSignal): Promise<boolean> {
    const { remove, clock, log } = this.#deps;
    const uid = uidOf(pod);
    const gone = new AbortController();
    const over = AbortSignal.any([gone.signal, signal]);
    this.#clearing.set(uid, gone);
    let isClear = false;
    for (let failures = 1; !over.aborted; failures += 1) {
      const message = await remove(pod);
      isClear = message === undefined;
      if (message === undefined) break;
      const retryMs = backoffMs(failures, clearRetry);
      if (message !== this.#obstacles.get(uid)?.message) {
        log.warn({ pod: podReference(pod), err: message, retryMs }, "static pod waits for what ran in its place");
      }
      this.#obstacles.set(uid, { message, retryAtMs: clock.now() + retryMs, failures });
      await clock.sleep(retryMs, over).catch(ignoreAbort);
    }
    this.#obstacles.delete(uid);
    this.#clearing.delete(uid);
    return isClear;
  }

  /** The pod is gone: its way need not be cleared any more. */
  leave(podUID: string): void {
    this.#clearing.get(podUID)?.abort();
  }

  obstacle(podUID: string): Obstacle | undefined {
    return this.#obstacles.get(podUID);
  }
}
