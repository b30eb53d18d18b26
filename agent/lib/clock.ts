import { setTimeout as delay } from "node:timers/promises";

/** A pending timer. `cancel` may be called any number of times, also after it fired. */
export interface Timer {
  cancel(): void;
}

/**
 * All time that code waits for or compares comes from here, so that tests own it.
 * Durations and instants are milliseconds.
 */
export interface Clock {
  /** Unix time in milliseconds. */
  now(): number;
  /** Milliseconds that never go backwards; for durations. */
  monotonic(): number;
  /** Resolves after `ms`; rejects with an AbortError when `signal` aborts first. */
  sleep(ms: number, signal?: AbortSignal): Promise<void>;
  /** Calls `fn` once after `ms`. Does not keep the process alive. */
  after(ms: number, fn: () => void): Timer;
}

// setTimeout's limit: a longer delay would fire at once (Node.js: TIMEOUT_MAX).
const timeoutMsMax = 2 ** 31 - 1;

/** The machine's clock. */
export const systemClock: Clock = {
  now: () => Date.now(),
  monotonic: () => performance.now(),
  sleep: async (ms, signal) => {
    await delay(Math.min(Math.max(ms, 0), timeoutMsMax), undefined, signal === undefined ? {} : { signal });
  },
  after: (ms, fn) => {
    const handle = setTimeout(fn, Math.min(Math.max(ms, 0), timeoutMsMax));
    handle.unref();
    return { cancel: () => clearTimeout(handle) };
  },
};
