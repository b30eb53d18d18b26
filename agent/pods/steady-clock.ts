import type { Clock } from "../lib/clock.ts";

/**
 * A clock that tells Unix time as it was when this one began, and from then on goes on evenly: it takes no part in jumps of
 * the machine's. What a worker notes for itself (when a hook began, when a step may be tried again) is on it, so that nobody
 * is killed early, or waits for an hour, because somebody set the clock. What the outside tells is not: see `endedAtMs`.
 */
export function steadyClock(clock: Clock): Clock {
  const originMs = clock.now() - clock.monotonic();
  return {
    now: () => originMs + clock.monotonic(),
    monotonic: () => clock.monotonic(),
    sleep: (ms, signal) => clock.sleep(ms, signal),
    after: (ms, fn) => clock.after(ms, fn),
  };
}
