import { addAbortListener } from "node:events";
import type { Clock } from "./clock.ts";
import { isAbort } from "./errors.ts";

export interface LoopOptions {
  clock: Clock;
  /** One pass: observe, decide, apply. Resolves to the longest rest in ms before the next pass (`undefined`: `resyncMs`). */
  pass(signal: AbortSignal): Promise<number | undefined>;
  /** A pass threw; it is repeated after `retryMs(failures)` at the latest. */
  onError(err: unknown): void;
  /** Rest after the n-th failure in a row, in ms (n starts at 1). */
  retryMs(failures: number): number;
  /**
   * The part of that rest, in ms, that wakes do not end; none if it is left out. For passes that cost much, and fail for reasons
   * that events do not take away.
   */
  failureFloorMs?(failures: number): number;
  /** Longest rest after a good pass, in ms. Backs the events that should wake us. */
  resyncMs: number;
  /** Shortest time between the ends of one pass and the start of the next, in ms. Merges bursts. */
  minIntervalMs?: number;
  /**
   * Passes that may follow each other without that rest after quiet; each rest gives one of them back, so that the average
   * stays. Default 1: every pass is followed by the rest.
   */
  burst?: number;
}

/**
 * Serialises the passes of one piece of work. `wake` says "look again": wakes during a pass cause exactly
 * one more, wakes while resting end the rest. Wakes carry no data, so none can be lost or doubled.
 */
export class Loop {
  readonly #options: LoopOptions;
  #dirty = true;
  #rest: AbortController | undefined;

  constructor(options: LoopOptions) {
    this.#options = options;
  }

  /** Asks for a pass as soon as possible. */
  wake(): void {
    this.#dirty = true;
    this.#rest?.abort();
  }

  /** Runs passes until `signal` aborts; resolves when the last pass has ended. */
  async run(signal: AbortSignal): Promise<void> {
    const { pass, onError, retryMs, failureFloorMs, resyncMs, minIntervalMs = 0, burst = 1, clock } = this.#options;
    let failures = 0;
    let left = burst;
    let countedAtMs = clock.monotonic();
    while (!signal.aborted) {
      this.#dirty = false; // before the pass: a change during it asks for another
      let restMs: number;
      left = Math.min(burst, left + (clock.monotonic() - countedAtMs) / Math.max(1, minIntervalMs)) - 1;
      let floorMs = 0;
      try {
        restMs = (await pass(signal)) ?? resyncMs;
        failures = 0;
      } catch (err) {
        if (signal.aborted) return;
        onError(err);
        failures += 1;
        restMs = retryMs(failures);
        floorMs = Math.max(floorMs, failureFloorMs?.(failures) ?? 0);
      }
      countedAtMs = clock.monotonic();
      floorMs = Math.max(floorMs, left < 1 ? (1 - left) * minIntervalMs : 0);
      if (floorMs > 0) await clock.sleep(floorMs, signal).catch(ignoreAbort);
      if (!this.#dirty && !signal.aborted) await this.#sleep(restMs - floorMs, signal);
    }
  }

  async #sleep(ms: number, signal: AbortSignal): Promise<void> {
    const rest = new AbortController();
    this.#rest = rest;
    const link = addAbortListener(signal, () => rest.abort());
    try {
      await this.#options.clock.sleep(ms, rest.signal).catch(ignoreAbort);
    } finally {
      link[Symbol.dispose]();
      this.#rest = undefined;
    }
  }
}

/** Resolves when `signal` aborts; at once if it has. */
export async function untilAborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return;
  await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
}

/** For `.catch()`: swallows aborts, rethrows the rest. */
export function ignoreAbort(err: unknown): void {
  if (!isAbort(err)) throw err;
}
