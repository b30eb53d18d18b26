import type { ContainerStatus, PodSnapshot } from "../runtime/port.ts";

/**
 * Crash backoff of one container. The first restart is immediate; later ones wait `delayMs` after the exit, doubling.
 *
 *   exit → start at once (delay 10 s noted) → exit → 10 s → start (20 s noted) → exit → 20 s → …
 */
export interface CrashBackoff {
  /** Wait after the next exit. */
  delayMs: number;
  /** Unix ms of the last start decision. */
  startedAtMs: number;
}

export interface CrashBackoffLimits {
  initialMs: number;
  maxMs: number;
}

/** kubelet's CrashLoopBackOff: 10 s doubling to 300 s. */
export const crashBackoffDefaults: CrashBackoffLimits = { initialMs: 10_000, maxMs: 300_000 };

/** What feature gate ReduceDefaultCrashLoopBackOffDecay makes of it: 1 s doubling to 60 s. */
export const crashBackoffReduced: CrashBackoffLimits = { initialMs: 1_000, maxMs: 60_000 };

// An exit this long after the start before it forgets the backoff (kubelet: twice the 300 s cap, whatever the cap is).
const forgetAfterMs = 600_000;

/** When the container that exited at `finishedAtMs` may start again, as Unix ms; not in the future means now. */
export function restartAtMs(state: CrashBackoff | undefined, finishedAtMs: number): number {
  if (state === undefined || finishedAtMs - state.startedAtMs > forgetAfterMs) return finishedAtMs;
  return finishedAtMs + state.delayMs;
}

/** The state after deciding to start again a container that exited at `finishedAtMs`. */
export function noteRestart(
  state: CrashBackoff | undefined,
  finishedAtMs: number,
  nowMs: number,
  limits: CrashBackoffLimits,
): CrashBackoff {
  const { initialMs, maxMs } = limits;
  if (state === undefined || finishedAtMs - state.startedAtMs > forgetAfterMs) {
    return { delayMs: Math.min(initialMs, maxMs), startedAtMs: nowMs };
  }
  return { delayMs: Math.min(state.delayMs * 2, maxMs), startedAtMs: nowMs };
}

/** The exit that a restart after `newest` is counted from: one that was stopped to be replaced has not crashed itself. */
export function lastCrash(
  newest: ContainerStatus,
  { containers }: PodSnapshot,
  { replaced }: { readonly replaced: ReadonlySet<string> },
): ContainerStatus | undefined {
  if (!replaced.has(newest.id)) return newest;
  return containers.find(({ id, name, state }) => name === newest.name && id !== newest.id && state === "exited");
}

/** `10s`, `2m40s`: a duration as Go prints it, which users know from CrashLoopBackOff messages. */
export function formatDelay(ms: number): string {
  const total = Math.round(ms / 1000);
  const h = Math.floor(total / 3600);
  const m = Math.floor((total % 3600) / 60);
  const s = total % 60;
  if (h > 0) return `${h}h${m}m${s}s`;
  return m > 0 ? `${m}m${s}s` : `${s}s`;
}
