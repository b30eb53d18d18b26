import type { Clock } from "../lib/clock.ts";
import type { Logger } from "../lib/log.ts";
import { ignoreAbort } from "../lib/loop.ts";
import type { Runtime } from "../runtime/port.ts";

/** One thing that must be so in a healthy agent. */
export interface HealthCheck {
  /** As in `/healthz/NAME`. */
  readonly name: string;
  /** Rejects with the reason when it is not so. */
  check(): Promise<void>;
}

/**
 * Whether the work on pods goes on. Whoever does it ticks whenever a round of it is about to begin; a runtime that is
 * dead keeps it from ticking.
 */
export interface SyncLoopHealth {
  tick(): void;
  /** Why it is not healthy. @param nowMs of the monotonic clock */
  problem(nowMs: number): string | undefined;
}

/** How the agent is, for /healthz and for the supervisor's watchdog. */
export interface AgentHealth {
  /** ping, log, syncloop, device-plugin: the reference's names and order. */
  readonly checks: readonly HealthCheck[];
  readonly syncLoop: SyncLoopHealth;
}

export interface AgentHealthOptions {
  clock: Clock;
  log: Pick<Logger, "flush">;
  /** The configuration's `syncFrequency`. */
  syncFrequencyMs: number;
  /** Why device plugins cannot register; undefined: they can. */
  devicePluginProblem?(): string | undefined;
  /** Ends the flushing of the log. */
  signal: AbortSignal;
}

// The reference's limits: a loop that did not turn for 5 minutes, or twice the longest time between two looks at a pod.
const syncLoopMsMin = 5 * 60_000;
const syncFrequencyFactor = 2;
// The reference flushes its log every minute, and gives up on one that could not be flushed for two.
const logFlushMs = 60_000;
const logStaleMs = 120_000;

/** Makes the checks. The log's begins its work with its first call. */
export function createAgentHealth(options: AgentHealthOptions): AgentHealth {
  const { clock, syncFrequencyMs, devicePluginProblem = () => undefined } = options;
  const syncLoop = createSyncLoopHealth(clock, syncFrequencyMs);
  const checks = [
    { name: "ping", check: async () => {} },
    logCheck(options),
    checkOf("syncloop", () => syncLoop.problem(clock.monotonic())),
    checkOf("device-plugin", devicePluginProblem),
  ];
  return { checks, syncLoop };
}

/** A loop that never began is healthy: it may be waiting for the API server. */
export function createSyncLoopHealth(clock: Pick<Clock, "monotonic">, syncFrequencyMs: number): SyncLoopHealth {
  const limitMs = Math.max(syncLoopMsMin, syncFrequencyFactor * syncFrequencyMs);
  let tickedAtMs: number | undefined;
  return {
    tick: () => {
      tickedAtMs = clock.monotonic();
    },
    problem: (nowMs) => {
      if (tickedAtMs === undefined || nowMs - tickedAtMs <= limitMs) return undefined;
      const seconds = Math.floor((nowMs - tickedAtMs) / 1_000);
      return `pods have not been looked at for ${seconds} s, more than ${limitMs / 1_000} s`;
    },
  };
}

/**
 * A runtime whose whole lists are ticks: who works on pods asks for one every few seconds, and a runtime that answers
 * everything but that is as good as dead.
 */
export function tickOnList<R extends Pick<Runtime, "list">>(runtime: R, syncLoop: SyncLoopHealth): R {
  return {
    ...runtime,
    list: async (podUID?: string) => {
      const list = await runtime.list(podUID);
      if (podUID === undefined) syncLoop.tick();
      return list;
    },
  };
}

function checkOf(name: string, problem: () => string | undefined): HealthCheck {
  return {
    name,
    check: async () => {
      const reason = problem();
      if (reason !== undefined) throw new Error(reason);
    },
  };
}

function logCheck({ clock, log, signal }: AgentHealthOptions): HealthCheck {
  let flushedAtMs: number | undefined;
  const onFlushed = (err: unknown) => {
    if (!(err instanceof Error)) flushedAtMs = clock.monotonic();
  };
  const flushForEver = async () => {
    while (!signal.aborted) {
      log.flush(onFlushed);
      await clock.sleep(logFlushMs, signal).catch(ignoreAbort);
    }
  };
  let flushing: Promise<void> | undefined;
  return checkOf("log", () => {
    flushedAtMs ??= clock.monotonic();
    flushing ??= flushForEver();
    const ageMs = clock.monotonic() - flushedAtMs;
    return ageMs < logStaleMs ? undefined : `the log was last flushed ${Math.floor(ageMs / 1_000)} s ago`;
  });
}
