import { type Clock, systemClock } from "../lib/clock.ts";

export interface Deadline {
  /** For everything together; undefined: none. */
  timeoutMs: number | undefined;
  /** Ends it sooner. */
  signal: AbortSignal;
  /** The machine's unless given. */
  clock?: Clock;
}

/**
 * Does `work` with a signal that aborts at the deadline. Nothing of it is left behind: `signal` may live for as long as the
 * agent does, and `AbortSignal.any` would hang something on it for each probe.
 */
export async function withDeadline<T>(
  { timeoutMs, signal, clock = systemClock }: Deadline,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const own = new AbortController();
  const abort = () => own.abort();
  if (signal.aborted) abort();
  signal.addEventListener("abort", abort, { once: true });
  const timer = timeoutMs === undefined ? undefined : clock.after(timeoutMs, abort);
  try {
    return await work(own.signal);
  } finally {
    timer?.cancel();
    signal.removeEventListener("abort", abort);
  }
}
