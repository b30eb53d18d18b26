import { type Clock, systemClock, type Timer } from "../lib/clock.ts";

export interface Deadline {
  /** For everything together; undefined: none. */
  timeoutMs: number | undefined;
  /** Ends it sooner. */
  signal: AbortSignal;
  /** The machine's unless given. */
  clock?: Clock;
}

/** A timer that fires later than this says that we did not get to run, in ms. */
export const stallMsMin = 20;

/**
 * Does `work` with a signal that aborts at the deadline. Nothing of it is left behind: `signal` may live for as long as the
 * agent does, and `AbortSignal.any` would hang something on it for each probe.
 *
 * Where the whole process stood still, answers may have come that nobody could read: timers fire before anything is read. The
 * time lost is then given once more, up to the timeout itself, so that no container is found dead because of us.
 */
export async function withDeadline<T>(
  { timeoutMs, signal, clock = systemClock }: Deadline,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const own = new AbortController();
  const abort = () => own.abort();
  if (signal.aborted) abort();
  signal.addEventListener("abort", abort, { once: true });
  let timer: Timer | undefined;
  if (timeoutMs !== undefined) {
    const dueMs = clock.monotonic() + timeoutMs;
    timer = clock.after(timeoutMs, () => {
      const lateMs = clock.monotonic() - dueMs;
      if (lateMs < stallMsMin) abort();
      else timer = clock.after(Math.min(lateMs, timeoutMs), abort);
    });
  }
  try {
    return await work(own.signal);
  } finally {
    timer?.cancel();
    signal.removeEventListener("abort", abort);
  }
}
