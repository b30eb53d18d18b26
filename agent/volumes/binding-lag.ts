import { backoffMs } from "../lib/backoff.ts";
import type { Clock } from "../lib/clock.ts";
import { hasCode } from "../lib/errors.ts";

// 20, 40, 80 and 160 ms: a pod that waited for its worker's backoff instead would start a second later.
export const bindingLagTriesMax = 5;
const lagBackoff = { baseMs: 20, maxMs: 200 };

/**
 * Asks the API server for something that it gives to this node for a pod alone. It learns that a pod is bound here about
 * when we do, and refuses until then: while it does, it is asked again.
 *
 * Rejects with its last answer, and when `signal` aborts.
 */
export async function withBindingLag<T>(ask: () => Promise<T>, clock: Clock, signal: AbortSignal): Promise<T> {
  for (let tries = 1; ; tries += 1) {
    try {
      return await ask();
    } catch (err) {
      if (!hasCode(err, "Forbidden") || tries >= bindingLagTriesMax) throw err;
      await clock.sleep(backoffMs(tries, lagBackoff), signal);
    }
  }
}
