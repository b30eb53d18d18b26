import type { Clock } from "../lib/clock.ts";

// client-go's defaults, for a configured 0.
export const qpsDefault = 5;
export const burstDefault = 10;

export interface RateLimitOptions {
  /** Sustained calls per second. 0: the default; negative: unlimited. */
  qps: number;
  /** Calls that may go at once. 0: the default. */
  burst: number;
  clock: Clock;
}

/** Token bucket, first come first served. */
export class RateLimiter {
  readonly #qps: number;
  readonly #burst: number;
  readonly #clock: Clock;
  #tokens: number;
  #filledAtMs: number;

  constructor({ qps, burst, clock }: RateLimitOptions) {
    this.#qps = qps === 0 ? qpsDefault : qps;
    this.#burst = burst <= 0 ? burstDefault : burst;
    this.#clock = clock;
    this.#tokens = this.#burst;
    this.#filledAtMs = clock.monotonic();
  }

  /** Resolves when the caller may go; rejects with an AbortError when `signal` aborts first, giving its turn back. */
  async acquire(signal?: AbortSignal): Promise<void> {
    if (this.#qps < 0) return;
    this.#refill();
    this.#tokens -= 1; // below zero: a debt that later callers queue behind
    if (this.#tokens >= 0) return;
    try {
      await this.#clock.sleep((-this.#tokens / this.#qps) * 1000, signal);
    } catch (err) {
      this.#tokens += 1;
      throw err;
    }
  }

  /** Takes a turn if there is one now. */
  tryAcquire(): boolean {
    if (this.#qps < 0) return true;
    this.#refill();
    if (this.#tokens < 1) return false;
    this.#tokens -= 1;
    return true;
  }

  #refill(): void {
    const now = this.#clock.monotonic();
    this.#tokens = Math.min(this.#burst, this.#tokens + ((now - this.#filledAtMs) / 1000) * this.#qps);
    this.#filledAtMs = now;
  }
}
