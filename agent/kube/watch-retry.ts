import { backoffMs } from "../lib/backoff.ts";
import { hasCode } from "../lib/errors.ts";
import { ApiError } from "./api-error.ts";

/** Durations in ms, counts. Injectable so that tests need not wait. */
export interface InformerLimits {
  backoffBaseMs: number;
  backoffMaxMs: number;
  quickCloseMs: number;
  healthyMs: number;
  silentMs: number;
  initialQuietMs: number;
  watchListAvoidMs: number;
  refusalsBeforeRelist: number;
  watchSecondsMin: number;
}

export const informerLimits: InformerLimits = {
  backoffBaseMs: 800, // client-go's reflector: 0.8 s doubling to 30 s
  backoffMaxMs: 30_000,
  quickCloseMs: 1_000, // client-go calls a watch that ends sooner without an event a failure
  healthyMs: 5_000, // a watch that lived this long ends the row of failures
  // Bookmarks come about once a minute; a watch that brings nothing for this long is dead, whatever pings say.
  silentMs: 90_000,
  // Nothing at all in the middle of the initial objects: the server does not know the parameter and waits for changes.
  initialQuietMs: 5_000,
  watchListAvoidMs: 600_000, // after such a guess, lists are used for this long
  // A server that keeps refusing to go on from our resourceVersion, but is there, gets a fresh start.
  refusalsBeforeRelist: 3,
  watchSecondsMin: 300, // client-go: 5 to 10 minutes, so that watches do not all end together
};

/** How one list or watch ended. */
export interface AttemptEnd {
  /** Absent: the server ended the watch in good order. */
  error?: unknown;
  livedMs: number;
}

/** Failures in a row, and those among them in which the server refused. */
export interface RetryState {
  failures: number;
  refusals: number;
}

export interface RetryPlan extends RetryState {
  /** Forget the resourceVersion and read everything again. */
  relist: boolean;
  delayMs: number;
}

/**
 * What to do after a list or watch ended. Pure but for `random`.
 *
 *     ended well after a while        go on at once
 *     410 Gone                        read everything again, at once the first time
 *     429 or 503 with Retry-After     go on after that long
 *     refused otherwise, repeatedly   read everything again, with backoff
 *     broken, garbage, closed early   go on from the last good resourceVersion, with backoff
 */
export function planRetry(
  end: AttemptEnd,
  state: RetryState,
  limits: InformerLimits = informerLimits,
  random: () => number = Math.random,
): RetryPlan {
  const { error, livedMs } = end;
  const wasHealthy = livedMs >= limits.healthyMs;
  if (error === undefined && livedMs >= limits.quickCloseMs) {
    return { failures: 0, refusals: 0, relist: false, delayMs: 0 };
  }
  const failures = (wasHealthy ? 0 : state.failures) + 1;
  const backoff = backoffMs(failures, {
    baseMs: limits.backoffBaseMs,
    maxMs: limits.backoffMaxMs,
    jitter: 0.5,
    random,
  });
  if (hasCode(error, "Gone")) return { failures, refusals: 0, relist: true, delayMs: failures === 1 ? 0 : backoff };
  if (!(error instanceof ApiError)) return { failures, refusals: 0, relist: false, delayMs: backoff };
  if (error.retryAfterMs !== undefined) {
    // Spread, or every client that was told the same comes back in the same moment.
    const delayMs = Math.max(backoff, error.retryAfterMs * (1 + 0.2 * random()));
    return { failures, refusals: state.refusals, relist: false, delayMs };
  }
  const refusals = state.refusals + 1;
  return { failures, refusals, relist: refusals >= limits.refusalsBeforeRelist, delayMs: backoff };
}
