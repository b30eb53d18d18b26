import type { Clock } from "../../lib/clock.ts";
import { messageOf } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";

export interface SlowFigureOptions<T> {
  /** For the log: "space that images take". */
  what: string;
  measure(signal: AbortSignal): Promise<T>;
  clock: Clock;
  log: Logger;
}

export interface Figure<T> {
  /** Unix ms of the measurement's end. */
  atMs: number;
  value: T;
}

// As old as containerd's own figures get (its stats_collect_period), and then at most a twentieth of the time is spent measuring.
export const figurePeriodMs = 10_000;
export const figureRestFactor = 20;

// What hangs, on a filesystem that does not answer, is given up.
export const figureTimeoutMs = 600_000;

// Who asks first waits so long at most: small disks are measured by then.
export const firstFigureWaitMs = 500;

/**
 * Something that takes long to measure. Whoever asks gets the last figure at once; if that is old, the next is measured
 * behind their back. Nothing is measured while nobody asks.
 */
export class SlowFigure<T> {
  readonly #options: SlowFigureOptions<T>;
  readonly #stop = new AbortController();
  #latest: Figure<T> | undefined;
  #running: Promise<void> | undefined;
  #nextAtMs = Number.NEGATIVE_INFINITY;

  constructor(options: SlowFigureOptions<T>) {
    this.#options = options;
  }

  /** Undefined as long as no measurement has come to its end. Never rejects. */
  async latest(): Promise<Figure<T> | undefined> {
    const { clock } = this.#options;
    if (this.#running === undefined && clock.monotonic() >= this.#nextAtMs && !this.#stop.signal.aborted) {
      this.#running = this.#measure().finally(() => {
        this.#running = undefined;
      });
    }
    if (this.#latest === undefined && this.#running !== undefined) {
      const enough = new AbortController();
      const wait = clock.sleep(firstFigureWaitMs, enough.signal).catch(() => undefined);
      await Promise.race([this.#running, wait]);
      enough.abort();
    }
    return this.#latest;
  }

  /** Ends a measurement that is under way. */
  close(): void {
    this.#stop.abort();
  }

  /** Never rejects. */
  async #measure(): Promise<void> {
    const { what, measure, clock, log } = this.#options;
    const begunAtMs = clock.monotonic();
    const limit = new AbortController();
    const timer = clock.after(figureTimeoutMs, () =>
      limit.abort(new Error(`it took more than ${figureTimeoutMs / 1_000} s`)),
    );
    try {
      const value = await measure(AbortSignal.any([this.#stop.signal, limit.signal]));
      this.#latest = { atMs: clock.now(), value };
    } catch (err) {
      if (!this.#stop.signal.aborted) log.debug({ err: messageOf(err) }, `${what} not measured`);
    } finally {
      timer.cancel();
      const tookMs = clock.monotonic() - begunAtMs;
      this.#nextAtMs = clock.monotonic() + Math.max(figurePeriodMs, tookMs * figureRestFactor);
    }
  }
}
