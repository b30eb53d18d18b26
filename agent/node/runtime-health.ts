import { addAbortListener } from "node:events";
import { type FSWatcher, watch } from "node:fs";
import type { Clock } from "../lib/clock.ts";
import { AgentError, messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { Loop } from "../lib/loop.ts";
import type { Runtime, RuntimeCondition, RuntimeStatus, RuntimeVersion } from "../runtime/port.ts";

// How often CRI Status is asked: kubelet's value.
const pollMs = 5_000;
// No good answer for this long, and the node is not Ready: kubelet's value.
const downAfterMs = 30_000;
// A poll that hangs must not hide that the runtime is down.
export const statusTimeoutMs = 10_000;
// A CNI plugin's installer writes several files; the runtime itself needs a moment to read them.
const cniSettleMs = 50;
// containerd reloads the CNI directory on its own inotify event; these re-polls catch the moment after that.
const cniRepollsMs: readonly number[] = [0, 100, 250, 500, 1_000];

/** What is known of the runtime. `undefined` conditions: never answered. */
export interface RuntimeHealthState {
  /** Unix ms of the last answer with RuntimeReady true; undefined: none yet. */
  lastReadyAtMs: number | undefined;
  runtimeReady: RuntimeCondition | undefined;
  networkReady: RuntimeCondition | undefined;
  handlers: RuntimeStatus["handlers"];
  supplementalGroupsPolicy: boolean;
  version: RuntimeVersion | undefined;
}

/** The runtime's and the network's health, kept current by polling and on wake. */
export interface RuntimeHealth {
  readonly state: RuntimeHealthState;
  /** True while pods may be synced: the runtime answers and says it is ready. */
  isRuntimeReady(): boolean;
  /** True while pods that need the pod network may be started. */
  isNetworkReady(): boolean;
  /** Calls `listener` after anything that {@link runtimeProblems} or the node status shows has changed. */
  subscribe(listener: () => void): () => void;
  /** Asks the runtime now instead of at the next poll. */
  wake(): void;
  /** Polls until `signal` aborts. */
  run(signal: AbortSignal): Promise<void>;
}

const unknownState: RuntimeHealthState = {
  lastReadyAtMs: undefined,
  runtimeReady: undefined,
  networkReady: undefined,
  handlers: [],
  supplementalGroupsPolicy: false,
  version: undefined,
};

/** What keeps the node from being Ready on the runtime's side, in the words of the Ready condition. Pure. */
export function runtimeProblems(state: RuntimeHealthState, nowMs: number): { runtime: string[]; network: string[] } {
  const runtime: string[] = [];
  if (state.lastReadyAtMs === undefined) runtime.push("container runtime status check may not have completed yet");
  else if (nowMs - state.lastReadyAtMs >= downAfterMs) runtime.push("container runtime is down");
  if (state.runtimeReady?.status === false) {
    runtime.push(`container runtime not ready: RuntimeReady=false ${whyOf(state.runtimeReady)}`);
  }
  const network: string[] = [];
  if (state.networkReady === undefined) network.push("network state unknown");
  else if (!state.networkReady.status) {
    network.push(`container runtime network not ready: NetworkReady=false ${whyOf(state.networkReady)}`);
  }
  return { runtime, network };
}

/** State after an answer. Pure. */
export function afterStatus(
  state: RuntimeHealthState,
  status: RuntimeStatus,
  version: RuntimeVersion | undefined,
  nowMs: number,
): RuntimeHealthState {
  return {
    lastReadyAtMs: status.runtimeReady.status ? nowMs : state.lastReadyAtMs,
    runtimeReady: status.runtimeReady,
    networkReady: status.networkReady,
    handlers: [...status.handlers].sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0)),
    supplementalGroupsPolicy: status.supplementalGroupsPolicy,
    version: version ?? state.version,
  };
}

export interface RuntimeHealthDeps {
  runtime: Pick<Runtime, "status" | "version">;
  clock: Clock;
  log: Logger;
  /** Directories with CNI configuration; a change in one makes us ask the runtime at once. May not exist yet. */
  cniConfDirs?: readonly string[];
}

/** Makes the health tracker. Nothing is asked before `run`. */
export function createRuntimeHealth({ runtime, clock, log, cniConfDirs = [] }: RuntimeHealthDeps): RuntimeHealth {
  let state = unknownState;
  let shown = "";
  const listeners = new Set<() => void>();

  const publish = (next: RuntimeHealthState): void => {
    state = next;
    const now = clock.now();
    const { lastReadyAtMs: _, ...visible } = next;
    const problems = runtimeProblems(next, now);
    const text = JSON.stringify([visible, problems]);
    if (text === shown) return;
    shown = text;
    log.info({ problems: [...problems.runtime, ...problems.network] }, "runtime health changed");
    for (const listener of listeners) listener();
  };

  const loop = new Loop({
    clock,
    resyncMs: pollMs,
    retryMs: () => pollMs,
    onError: (err) => {
      log.warn({ err: messageOf(err) }, "container runtime does not answer; asking again in 5 s");
      publish(state); // time alone can turn it into "down"
    },
    pass: async (signal) => {
      cniWatcher.ensure();
      const status = await withTimeout(runtime.status(), clock, signal);
      // The version only changes when the runtime is replaced, which shows as a break in its readiness.
      const needsVersion = state.version === undefined || state.runtimeReady?.status !== status.runtimeReady.status;
      const version = needsVersion
        ? await withTimeout(runtime.version(), clock, signal).catch(() => undefined)
        : undefined;
      publish(afterStatus(state, status, version, clock.now()));
      return undefined;
    },
  });

  const repoll = repeater(clock, () => loop.wake());
  const cniWatcher = directoryWatcher(cniConfDirs, repoll, log);

  return {
    get state() {
      return state;
    },
    isRuntimeReady: () => runtimeProblems(state, clock.now()).runtime.length === 0,
    isNetworkReady: () => state.networkReady?.status === true,
    subscribe: (listener) => {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    wake: () => loop.wake(),
    run: async (signal) => {
      try {
        await loop.run(signal);
      } finally {
        repoll.cancel();
        cniWatcher.close();
      }
    },
  };
}

/** Calls `fn` a few times after the last call of a burst. */
function repeater(clock: Clock, fn: () => void): (() => void) & { cancel(): void } {
  let timers: { cancel(): void }[] = [];
  const cancel = () => {
    for (const timer of timers) timer.cancel();
    timers = [];
  };
  const start = () => {
    cancel();
    timers = cniRepollsMs.map((ms) => clock.after(cniSettleMs + ms, fn));
  };
  return Object.assign(start, { cancel });
}

/** Watches directories as far as they exist. `ensure` may be called again for those that appear later. */
function directoryWatcher(directories: readonly string[], onChange: () => void, log: Logger) {
  const watchers = new Map<string, FSWatcher>();
  return {
    ensure: () => {
      for (const directory of directories) {
        if (watchers.has(directory)) continue;
        try {
          const watcher = watch(directory, { persistent: false }, onChange);
          watcher.on("error", (err) => {
            log.debug({ directory, err: messageOf(err) }, "lost the watch of the CNI directory; the poll goes on");
            watcher.close();
            watchers.delete(directory);
          });
          watchers.set(directory, watcher);
          onChange(); // what happened before the watch began
        } catch {
          // Not there yet: the regular poll finds the network, and the next one tries to watch again.
        }
      }
    },
    close: () => {
      for (const watcher of watchers.values()) watcher.close();
      watchers.clear();
    },
  };
}

async function withTimeout<T>(call: Promise<T>, clock: Clock, signal: AbortSignal): Promise<T> {
  const { promise: stopped, reject } = Promise.withResolvers<never>();
  const timer = clock.after(statusTimeoutMs, () =>
    reject(new AgentError("DeadlineExceeded", `no answer within ${statusTimeoutMs / 1000} s`)),
  );
  using _link = addAbortListener(signal, () => reject(new AgentError("Canceled", "the agent stops")));
  try {
    return await Promise.race([call, stopped]);
  } finally {
    timer.cancel();
  }
}

function whyOf({ reason, message }: RuntimeCondition): string {
  return `reason:${reason} message:${message}`;
}
