import { setImmediate } from "node:timers/promises";
import type { Clock } from "../lib/clock.ts";

// Longest time that absorbing a list may keep the event loop. Probes and status patches wait no longer than this.
export const sliceMs = 4;

/** Returns undefined while the slice lasts, then once a promise that resolves after all other pending work has run. */
export type Breathe = () => Promise<void> | undefined;

/** Makes the pacemaker of one piece of work. Costs a clock reading per call. */
export function createBreather(clock: Clock): Breathe {
  let sliceStartMs = clock.monotonic();
  return () => {
    if (clock.monotonic() - sliceStartMs < sliceMs) return undefined;
    return setImmediate().then(() => {
      sliceStartMs = clock.monotonic();
    });
  };
}
