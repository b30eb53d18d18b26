import type { ProbeOutcome, SeenContainer, Verdict } from "./port.ts";
import type { ProbeSpec } from "./spec.ts";

// kubelet: a container that ran longer than this when the agent came is no new one, and its past verdict holds.
export const adoptionMs = 10_000;

/** What one probe remembers of the container instance that it watches. */
export interface ProbeState {
  readonly containerID: string;
  readonly verdict: Verdict;
  /** Unix ms at which the next run is due; undefined: none until something changes. */
  readonly dueMs: number | undefined;
  /** Equal outcomes in a row. */
  readonly streak: { readonly outcome: "success" | "failure"; readonly count: number } | undefined;
  /** No more runs on this instance: its verdict is final. */
  readonly isHeld: boolean;
}

/** What a probe's course depends on beside its own outcomes. */
export interface Surroundings {
  /** The container's startup probe has passed, or it has none. */
  isStarted: boolean;
  agentStartedAtMs: number;
}

/**
 * Follows a container instance. A new one begins without a past: not ready, but alive.
 *
 * @param state undefined: nothing was seen before
 * @returns `state` itself where nothing changes
 */
export function followContainer(
  spec: ProbeSpec,
  state: ProbeState | undefined,
  seen: SeenContainer,
  { isStarted, agentStartedAtMs }: Surroundings,
): ProbeState {
  if (state?.containerID === seen.containerID) {
    if (!seen.isRunning) {
      return state.verdict === "failure" && state.dueMs === undefined
        ? state
        : { ...state, verdict: "failure", dueMs: undefined, streak: undefined };
    }
    return gate(spec, state, seen, isStarted);
  }
  const isAdopted = seen.isRunning && seen.startedAtMs < agentStartedAtMs - adoptionMs;
  const fresh: ProbeState = {
    containerID: seen.containerID,
    verdict: seen.isRunning ? firstVerdict(spec, seen, isAdopted) : "failure",
    dueMs: undefined,
    streak: undefined,
    isHeld: false,
  };
  return seen.isRunning ? gate(spec, fresh, seen, isStarted) : fresh;
}

// Startup runs until the container is started, the others from then on.
function gate(spec: ProbeSpec, state: ProbeState, seen: SeenContainer, isStarted: boolean): ProbeState {
  const isOpen = !state.isHeld && (spec.type === "Startup" ? !isStarted : isStarted);
  if (!isOpen) return state.dueMs === undefined ? state : { ...state, dueMs: undefined };
  if (state.dueMs !== undefined) return state;
  return { ...state, dueMs: seen.startedAtMs + spec.initialDelayMs };
}

function firstVerdict({ type }: ProbeSpec, { wasStarted, wasReady }: SeenContainer, isAdopted: boolean): Verdict {
  switch (type) {
    case "Liveness":
      return "success";
    case "Readiness":
      return isAdopted && wasReady ? "success" : "failure";
    case "Startup":
      return isAdopted && wasStarted ? "success" : "unknown";
  }
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
