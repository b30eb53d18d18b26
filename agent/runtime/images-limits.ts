import { AgentError } from "../lib/errors.ts";

/**
 * Lets `burst` pulls begin at once and `perSecond` after that. `perSecond` 0: no limit.
 * Like kubelet, a pull that finds the bucket empty fails at once; its backoff brings it back. One that goes on with another credential
 * waits: it could never come to its last credentials if it had to begin with the first each time.
 */
export class PullRate {
  readonly #perSecond: number;
  readonly #burst: number;
  #tokens: number;
  #filledAtMs: number | undefined;

  constructor(perSecond: number, burst: number) {
    this.#perSecond = perSecond;
    this.#burst = burst;
    this.#tokens = burst;
  }

  /** @param nowMs monotonic: a machine's clock that is set back would stop the refill */
  tryTake(nowMs: number): boolean {
    if (this.#perSecond <= 0) return true;
    this.#fill(nowMs);
    if (this.#tokens < 1) return false;
    this.#tokens -= 1;
    return true;
  }

  /** For a pull under way that asks the registry once more: takes one in any case. @returns ms until it may be used */
  reserve(nowMs: number): number {
    if (this.#perSecond <= 0) return 0;
    this.#fill(nowMs);
    this.#tokens -= 1;
    return this.#tokens >= 0 ? 0 : (-this.#tokens / this.#perSecond) * 1000;
  }

  #fill(nowMs: number): void {
    const elapsedMs = Math.max(0, nowMs - (this.#filledAtMs ?? nowMs));
    this.#tokens = Math.min(this.#burst, this.#tokens + (elapsedMs / 1000) * this.#perSecond);
    this.#filledAtMs = nowMs;
  }
}

/** At most `width` at a time, first come first served. */
export class Turns {
  #free: number;
  readonly #waiting: (() => void)[] = [];

  constructor(width: number) {
    this.#free = width;
  }

  /** Runs `work` when it is its turn. Rejects with Canceled if `signal` aborts while it waits. */
  async run<T>(work: () => Promise<T>, signal: AbortSignal): Promise<T> {
    if (this.#free > 0) this.#free -= 1;
    else await this.#wait(signal);
    try {
      return await work();
    } finally {
      const next = this.#waiting.shift();
      if (next === undefined) this.#free += 1;
      else next(); // hands the turn over
    }
  }

  async #wait(signal: AbortSignal): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      if (signal.aborted) {
        reject(new AgentError("Canceled", "canceled"));
        return;
      }
      const turn = () => {
        signal.removeEventListener("abort", onAbort);
        resolve();
      };
      const onAbort = () => {
        this.#waiting.splice(this.#waiting.indexOf(turn), 1);
        reject(new AgentError("Canceled", "canceled while waiting for its turn"));
      };
      this.#waiting.push(turn);
      signal.addEventListener("abort", onAbort, { once: true });
    });
  }
}

// Kubelet's image pull backoff: 10 s doubling to 300 s, forgotten 600 s after the last failure.
const backoffBaseMs = 10_000;
const backoffMaxMs = 300_000;
const backoffExpiryMs = 600_000;

interface Failure {
  atMs: number;
  delayMs: number;
  /** For the waiting message while backing off. */
  message: string;
  /** Stands for the pod's credentials that failed. */
  credentials: string;
}

/**
 * Failed pulls by pod and image. In memory only: a restarted agent tries at once. Whoever mends a pull secret need not
 * wait: other credentials than those that failed may be tried at once, but their failure lengthens the rest all the same.
 * Times are monotonic ms, so that nobody waits longer because somebody set the machine's clock.
 */
export class PullBackoff {
  readonly #failures = new Map<string, Failure>();

  /** The failure that `key` still waits out at `nowMs`, and for how long. */
  waiting(key: string, credentials: string, nowMs: number): { restMs: number; message: string } | undefined {
    const failure = this.#failures.get(key);
    if (failure === undefined || failure.credentials !== credentials) return undefined;
    const restMs = failure.atMs + failure.delayMs - nowMs;
    // Whoever comes back counts in whole milliseconds, on another clock.
    return restMs < 1 ? undefined : { restMs, message: failure.message };
  }

  /**
   * Records a failure. One that comes while the same credentials rest is the same pull, seen by another container.
   *
   * @returns ms after which the next attempt may be made
   */
  fail(key: string, credentials: string, message: string, nowMs: number): number {
    const resting = this.waiting(key, credentials, nowMs);
    if (resting !== undefined) return resting.restMs;
    for (const [other, { atMs }] of this.#failures) {
      if (nowMs - atMs > backoffExpiryMs) this.#failures.delete(other);
    }
    const last = this.#failures.get(key);
    const delayMs = last === undefined ? backoffBaseMs : Math.min(backoffMaxMs, last.delayMs * 2);
    this.#failures.set(key, { atMs: nowMs, delayMs, message, credentials });
    return delayMs;
  }

  forgetPod(podUID: string): void {
    for (const key of this.#failures.keys()) if (key.startsWith(`${podUID}_`)) this.#failures.delete(key);
  }
}
