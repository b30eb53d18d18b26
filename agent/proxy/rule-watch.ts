import type { Clock } from "../lib/clock.ts";
import { messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { ignoreAbort } from "../lib/loop.ts";

// Whoever flushed the rules wonders after some seconds, not before.
const restMsMin = 3_000;
/**
 * A look may take this part of the time: two families then cost at most 0.2 % of a core, however slow the machine's tools are.
 */
const shareOfTime = 0.001;

/** Rest after a look that took `durationMs`. Pure. */
export function restAfterLook(durationMs: number, restMsMax: number): number {
  return Math.max(Math.min(durationMs / shareOfTime, restMsMax), Math.min(restMsMin, restMsMax));
}

interface RuleWatchDeps {
  readonly clock: Clock;
  readonly log: Logger;
  /** @returns what is missing in the kernel, or undefined; rejects if that cannot be told */
  readonly look: (signal: AbortSignal) => Promise<string | undefined>;
  /** Nothing can be told now: rules are being written, or will be. */
  readonly isBusy: () => boolean;
  readonly onDamage: (damage: string) => void;
  /** Longest rest: the sync period. */
  readonly restMsMax: number;
}

/** Looks again and again whether the rules are as they were written. Never at a moment when they are being written. */
export class RuleWatch {
  readonly #deps: RuleWatchDeps;
  #looking: Promise<void> | undefined;

  constructor(deps: RuleWatchDeps) {
    this.#deps = deps;
  }

  /** Resolves when no look is under way. Who is about to write rules waits for it. */
  async idle(): Promise<void> {
    await this.#looking;
  }

  async run(signal: AbortSignal): Promise<void> {
    const { clock, isBusy, restMsMax } = this.#deps;
    let restMs = restAfterLook(0, restMsMax);
    while (!signal.aborted) {
      await clock.sleep(restMs, signal).catch(ignoreAbort);
      if (signal.aborted || isBusy()) continue;
      const startedAtMs = clock.monotonic();
      this.#looking = this.#look(signal);
      await this.#looking;
      this.#looking = undefined;
      restMs = restAfterLook(clock.monotonic() - startedAtMs, restMsMax);
    }
  }

  /** Never rejects. */
  async #look(signal: AbortSignal): Promise<void> {
    const { log, look, onDamage } = this.#deps;
    try {
      const damage = await look(signal);
      if (damage === undefined || signal.aborted) return;
      log.warn({ damage }, "rules were changed by somebody else; writing all of them");
      onDamage(damage);
    } catch (err) {
      // Somebody holds the lock, say. Nothing is known, so nothing is done; the next look is near.
      if (!signal.aborted) log.warn({ err: messageOf(err) }, "rules could not be checked");
    }
  }
}
