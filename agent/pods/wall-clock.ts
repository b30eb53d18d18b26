import type { PodFacts } from "./explain.ts";
import type { PodLocal } from "./local.ts";

// What clocks drift apart and readings of two clocks differ; people see no more than seconds.
const differenceMsMin = 500;

/**
 * The facts with everything that the worker noted on its own clock told on the machine's, as if that had never been set.
 * Pure.
 *
 * @param wallMs the present on the machine's clock, as Unix ms
 */
export function onWallClock(facts: PodFacts, wallMs: number): PodFacts {
  const { local, nowMs = wallMs } = facts;
  const shiftMs = wallMs - nowMs;
  if (local === undefined || Math.abs(shiftMs) < differenceMsMin) return facts;
  return { ...facts, nowMs: wallMs, local: shifted(local, shiftMs) };
}

function shifted(local: PodLocal, ms: number): PodLocal {
  const { attempts, crash, endedAtMs, hooks, terminating } = local;
  return {
    ...local,
    attempts: mapped(attempts, (attempt) =>
      attempt.state === "failed" ? { ...attempt, retryAtMs: attempt.retryAtMs + ms } : attempt,
    ),
    crash: mapped(crash, (one) => ({ ...one, startedAtMs: one.startedAtMs + ms })),
    endedAtMs: mapped(endedAtMs, (at) => at + ms),
    hooks: mapped(hooks, (hook) => ({ ...hook, beganAtMs: hook.beganAtMs + ms })),
    terminating: terminating === undefined ? undefined : { ...terminating, sinceMs: terminating.sinceMs + ms },
  };
}

function mapped<T>(map: ReadonlyMap<string, T>, change: (value: T) => T): Map<string, T> {
  return new Map([...map].map(([key, value]) => [key, change(value)]));
}
