import type { ProbeOutcome, SeenContainer, Verdict } from "./port.ts";
import type { ProbeSpec } from "./spec.ts";

/** What one probe remembers of the container instance that it watches. */
export interface ProbeState {
  readonly containerID: string;
  readonly verdict: Verdict;
  /** Monotonic ms at which the next run is due; undefined: none until something changes. */
  readonly dueMs: number | undefined;
  /** Equal outcomes in a row. */
  readonly streak: { readonly outcome: "success" | "failure"; readonly count: number } | undefined;
  /** No more runs on this instance: its verdict is final. */
  readonly isHeld: boolean;
}

/** What a probe's course depends on beside its own outcomes. */
export interface Surroundings {
  /** The container's startup probe has passed, or it has none. Startup probes themselves do not ask. */
  isStarted: boolean;
  /** Unix ms; only for the age of the container. */
  nowMs: number;
  /** What schedules go by: the wall clock may jump. */
  monotonicMs: number;
  /** Added to the first run's time, in ms. */
  spreadMs: number;
}

/**
 * Follows a container instance. A new one begins without a past: not ready, but alive. Only at the very first sight, which
 * is after a start of the agent, the past that was reported of the same instance still holds: nobody saw it change.
 *
 * @param state undefined: nothing was seen before
 */
export function followContainer(
  spec: ProbeSpec,
  state: ProbeState | undefined,
  seen: SeenContainer,
  surroundings: Surroundings,
): ProbeState {
  const { containerID, isRunning } = seen;
  // One that does not run yet, or no more: whatever was known of it no longer counts.
  if (!isRunning) return withoutPast(spec, containerID);
  if (state?.containerID === containerID) return gate(spec, state, seen, surroundings);
  const fresh = state === undefined ? adopt(spec, seen) : withoutPast(spec, containerID);
  return gate(spec, fresh, seen, surroundings);
}

function withoutPast({ type }: ProbeSpec, containerID: string): ProbeState {
  return { containerID, verdict: firstVerdicts[type], dueMs: undefined, streak: undefined, isHeld: false };
}

const firstVerdicts = { Liveness: "success", Readiness: "failure", Startup: "unknown" } as const;

function adopt(spec: ProbeSpec, { containerID, wasReady, wasStarted }: SeenContainer): ProbeState {
  const fresh = withoutPast(spec, containerID);
  if (spec.type === "Readiness" && wasReady) return { ...fresh, verdict: "success" };
  if (spec.type === "Startup" && wasStarted) return { ...fresh, verdict: "success", isHeld: true };
  return fresh;
}

// The others run from when the startup probe has passed, which itself runs until then.
function gate(spec: ProbeSpec, state: ProbeState, seen: SeenContainer, surroundings: Surroundings): ProbeState {
  const { isStarted, nowMs, monotonicMs, spreadMs } = surroundings;
  const isOpen = !state.isHeld && (spec.type === "Startup" || isStarted);
  if (!isOpen || state.dueMs !== undefined) return state;
  const ageMs = Math.max(0, nowMs - seen.startedAtMs);
  return { ...state, dueMs: monotonicMs + Math.max(0, spec.initialDelayMs - ageMs) + spreadMs };
}

/**
 * Counts an outcome. The verdict changes once a threshold is reached; a failed liveness probe and any verdict of a startup
 * probe are final for the instance. An error changes nothing.
 */
export function afterRun(spec: ProbeSpec, state: ProbeState, outcome: ProbeOutcome): ProbeState {
  if (outcome.kind === "error") return state;
  const result = outcome.kind === "failure" ? "failure" : "success";
  const count = state.streak?.outcome === result ? state.streak.count + 1 : 1;
  const threshold = result === "failure" ? spec.failureThreshold : spec.successThreshold;
  if (count < threshold) return { ...state, streak: { outcome: result, count } };
  const isFinal = spec.type === "Startup" || (spec.type === "Liveness" && result === "failure");
  if (isFinal) return { ...state, verdict: result, streak: undefined, isHeld: true, dueMs: undefined };
  return { ...state, verdict: result, streak: { outcome: result, count } };
}

/**
 * When the next run is due after one that was due at `dueMs`: on the probe's grid, where a run that took too long is
 * followed by the next at once, and what it missed before that is left out.
 */
export function nextDue(dueMs: number, periodMs: number, nowMs: number): number {
  const next = dueMs + periodMs;
  if (next >= nowMs) return next;
  return dueMs + Math.floor((nowMs - dueMs) / periodMs) * periodMs;
}
