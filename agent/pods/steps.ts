import { backoffMs } from "../lib/backoff.ts";
import type { Clock } from "../lib/clock.ts";
import { messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { awaitedBy } from "../volumes/awaits.ts";
import { StepError } from "./executor.ts";
import type { Attempt } from "./local.ts";

/** Rest after a failed step, in ms: 1 s doubling to the 10 s after which kubelet tries a pod again. */
export const stepRetry = { baseMs: 1_000, maxMs: 10_000, jitter: 0.2 };

/** The steps of one pod: what is under way, and what failed and is tried again later. */
export class Steps {
  readonly #clock: Clock;
  readonly #wallClock: Clock;
  readonly #log: Logger;
  readonly #attempts = new Map<string, Attempt>();
  readonly #running = new Set<Promise<void>>();

  /** @param wallClock the one that a `StepError` goes by */
  constructor(clock: Clock, wallClock: Clock, log: Logger) {
    this.#clock = clock;
    this.#wallClock = wallClock;
    this.#log = log;
  }

  get attempts(): ReadonlyMap<string, Attempt> {
    return this.#attempts;
  }

  /**
   * Begins a step. Its end is noted before `onEnd` is called.
   *
   * @param isGivenUp whether a failure is only the answer to our own cancelling: then nothing rests
   */
  begin(
    key: string,
    work: () => Promise<void>,
    { isGivenUp, onEnd }: { isGivenUp(err: unknown): boolean; onEnd(isSuccess: boolean): void },
  ): void {
    const previous = this.#attempts.get(key);
    const failures = previous?.state === "failed" ? previous.failures : 0;
    this.#attempts.set(key, { state: "running" });
    this.track(
      work().then(
        () => {
          this.#attempts.delete(key);
          onEnd(true);
        },
        (err: unknown) => {
          if (isGivenUp(err)) this.#attempts.delete(key);
          else this.#failed(key, failures + 1, err);
          onEnd(false);
        },
      ),
    );
  }

  /** Counts other work that has to end before the worker does. It must not reject. */
  track(work: Promise<void>): void {
    this.#running.add(work);
    void work.finally(() => this.#running.delete(work));
  }

  /** True if a step whose key begins with one of these is under way. */
  isRunning(...prefixes: string[]): boolean {
    for (const [key, { state }] of this.#attempts) {
      if (state === "running" && prefixes.some((prefix) => key.startsWith(prefix))) return true;
    }
    return false;
  }

  /** What failed and is one of these is tried again at once. */
  forgetFailures(isMeant: (key: string) => boolean): void {
    for (const [key, attempt] of this.#attempts) {
      if (attempt.state === "failed" && isMeant(key)) this.#attempts.delete(key);
    }
  }

  /** Resolves when nothing is under way any more. */
  async settled(): Promise<void> {
    await Promise.allSettled(this.#running);
  }

  #failed(key: string, failures: number, err: unknown): void {
    const now = this.#clock.now();
    const reason = err instanceof StepError ? err.reason : "";
    // The ordinary retry is never put off: during an image's backoff it finds out cheaply whether the image has come.
    const ownAtMs = (err instanceof StepError ? err.retryAtMs : undefined) ?? Number.POSITIVE_INFINITY;
    const retryAtMs = now + Math.min(ownAtMs - this.#wallClock.now(), backoffMs(failures, stepRetry));
    const awaited = awaitedBy(err);
    const known = awaited === undefined ? {} : { awaited };
    this.#attempts.set(key, { state: "failed", reason, message: messageOf(err), retryAtMs, failures, ...known });
    this.#log.info({ step: key, err: messageOf(err), retryInMs: Math.round(retryAtMs - now) }, "step failed");
  }
}
