import { type Clock, systemClock } from "../agent/lib/clock.ts";
import { AgentError, messageOf } from "../agent/lib/errors.ts";
import type { Logger } from "../agent/lib/log.ts";
import { Attachments } from "./attachments.ts";
import { AttachmentCache } from "./cache.ts";
import { collect, type ValidContainers } from "./collect.ts";
import { ConfiguredNetwork } from "./configured-network.ts";
import { Gate } from "./gate.ts";
import { statusOfNetwork } from "./network.ts";
import { Plugins, type PluginTimeouts } from "./plugins.ts";
import { checkTarget, type CNITarget, defaultIfName } from "./request.ts";
import type { CNIResult } from "./result.ts";
import { RunningPlugins } from "./running.ts";

export interface CNIOptions {
  /** `/etc/cni/net.d` */
  readonly confDir: string;
  /** `/opt/cni/bin` and the like; searched in this order. */
  readonly binDirs: readonly string[];
  /** `/var/lib/cni/cache`; results go to `results/` below it, and which plugins run to `running/`. */
  readonly cacheDir: string;
  readonly log: Logger;
  readonly clock?: Clock;
  readonly timeouts?: PluginTimeouts;
}

/** Whether pods can be added to the network now; otherwise why not, in the words of the node's conditions. */
export interface CNIStatus {
  ready: boolean;
  reason: string;
  message: string;
}

/**
 * The host's side of CNI: runs the plugins of one network, that of the first usable file in the configuration directory.
 *
 * Operations on one container follow each other, those on several run side by side, within a limit. `signal` cancels one that
 * waits, and kills the plugin of one that runs. Errors are AgentErrors: Unavailable (no configuration, a plugin is missing, or asks
 * to try again), DeadlineExceeded, Invalid, Canceled, and Internal for what plugins say.
 */
export interface CNI {
  /**
   * Brings `lo` up and adds the container to the network. If a plugin fails, the work of all is undone before the call rejects.
   * An attachment of the same name that an earlier run left behind is deleted first. {@link del} of the container cancels it.
   */
  add(target: CNITarget, signal?: AbortSignal): Promise<CNIResult>;
  /**
   * Removes the container from the network, with the configuration and result that ADD had, whatever the directory holds now.
   * May be repeated; succeeds if the namespace is gone, and if nothing is known of the container. A plugin that an earlier agent left
   * at work on the container is ended first.
   */
  del(target: CNITarget, signal?: AbortSignal): Promise<void>;
  /** Rejects if a plugin finds the attachment damaged, with NotFound if there is none. */
  check(target: CNITarget, signal?: AbortSignal): Promise<void>;
  /**
   * Deletes the attachments of this agent, in any network, that are not among `valid`; then, while no other operation runs, lets
   * plugins that know GC do the same with what they hold. `valid` may grow meanwhile. Rejects if not all could be deleted.
   */
  gc(valid: ValidContainers, signal?: AbortSignal): Promise<void>;
  /** Never rejects. */
  status(signal?: AbortSignal): Promise<CNIStatus>;
  /** True if ADD has left anything to delete: also one that failed, or did not come to its end. */
  hasRecord(containerID: string, ifName?: string): Promise<boolean>;
  /** What ADD returned, from the cache; `undefined` if it did not come to its end, or DEL did, or if that cannot be read. */
  cachedResult(containerID: string, ifName?: string): Promise<CNIResult | undefined>;
  /**
   * Follows the configuration directory until `signal` aborts. `onChange` is called after another network, or none, came into
   * use: time to ask for {@link status}.
   */
  watch(signal: AbortSignal, onChange?: () => void): Promise<void>;
  /** Refuses new operations and waits for those that run; those that do not end in time are killed, and undone by the next add or del. */
  close(): Promise<void>;
}

// An operation takes some tenths of a second. Longer than this it hangs, and the agent's stop must not.
export const closeGraceMs = 5_000;

/** Makes the host's side of CNI; reads the directory when it is first needed, or by {@link CNI.watch}. */
export function createCNI(options: CNIOptions): CNI {
  const { confDir, cacheDir, log, clock = systemClock } = options;
  const lifetime = new Lifetime(clock);
  const running = new RunningPlugins({ cacheDir, clock, log });
  const plugins = new Plugins({ ...options, clock, running, signal: lifetime.killed });
  const cache = new AttachmentCache(cacheDir);
  const gate = new Gate();
  const network = new ConfiguredNetwork({ confDir, plugins, clock, log });
  const attachments = new Attachments({ plugins, cache, running, network, log, killed: lifetime.killed });
  /** What cancels the ADD of a container. */
  const adding = new Map<string, AbortController>();

  const add = async (target: CNITarget, signal: AbortSignal) => {
    const { containerID } = target;
    const deleted = new AbortController();
    adding.set(containerID, deleted);
    try {
      const any = AbortSignal.any([signal, deleted.signal]);
      return await gate.run({ key: containerID, kind: "set-up" }, any, async () => await attachments.add(target, any));
    } finally {
      if (adding.get(containerID) === deleted) adding.delete(containerID);
    }
  };
  const status = async (signal: AbortSignal) => {
    const deadline = plugins.within(plugins.timeouts.statusMs);
    await statusOfNetwork(plugins, await network.runnable(), { deadline, signal });
  };

  return {
    add: async (target, signal) => {
      checkTarget(target);
      if (target.netnsPath === "") throw new AgentError("Invalid", "a container needs a network namespace to be added");
      return await lifetime.track(signal, async (any) => await add(target, any));
    },
    del: async (target, signal) => {
      checkTarget(target);
      const operation = { key: target.containerID, kind: "take-down" } as const;
      await lifetime.track(signal, async (any) => {
        // Nobody needs what it would still do.
        adding.get(target.containerID)?.abort();
        await gate.run(operation, any, async () => await attachments.del(target, any));
      });
    },
    check: async (target, signal) => {
      checkTarget(target);
      const operation = { key: target.containerID, kind: "set-up" } as const;
      await lifetime.track(signal, async (any) => {
        await gate.run(operation, any, async () => await attachments.check(target, any));
      });
    },
    gc: async (valid, signal) => {
      await lifetime.track(signal, async (any) => {
        await collect({ attachments, cache, gate, network, plugins, clock, log }, valid, any);
      });
    },
    status: async (signal) => {
      try {
        await lifetime.track(signal, status);
        return { ready: true, reason: "", message: "" };
      } catch (err) {
        return {
          ready: false,
          reason: "NetworkPluginNotReady",
          message: `Network plugin returns error: ${messageOf(err)}`,
        };
      }
    },
    hasRecord: async (containerID, ifName = defaultIfName) => {
      checkTarget({ containerID, ifName, netnsPath: "" });
      return (await cache.find(containerID, ifName)).length > 0;
    },
    cachedResult: async (containerID, ifName = defaultIfName) => {
      checkTarget({ containerID, ifName, netnsPath: "" });
      return await attachments.cachedResult(containerID, ifName);
    },
    watch: async (signal, onChange) => await network.watch(signal, onChange),
    close: async () => await lifetime.end(),
  };
}

/** What runs, and its end: first nothing new is begun, and after {@link closeGraceMs} what still runs is killed. */
class Lifetime {
  readonly #clock: Clock;
  readonly #closing = new AbortController();
  readonly #killing = new AbortController();
  readonly #running = new Set<Promise<unknown>>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Aborts when the agent waits for nothing any more. */
  get killed(): AbortSignal {
    return this.#killing.signal;
  }

  /** Counts an operation as running. Its signal is the caller's, and {@link killed}. */
  async track<T>(signal: AbortSignal | undefined, run: (any: AbortSignal) => Promise<T>): Promise<T> {
    if (this.#closing.signal.aborted) throw new AgentError("Canceled", "the agent stops");
    const work = run(signal === undefined ? this.killed : AbortSignal.any([signal, this.killed]));
    this.#running.add(work);
    try {
      return await work;
    } finally {
      this.#running.delete(work);
    }
  }

  /** May be called again: each call resolves when nothing runs any more. */
  async end(): Promise<void> {
    this.#closing.abort();
    const ended = Promise.allSettled([...this.#running]);
    const stop = new AbortController();
    const late = this.#clock.sleep(closeGraceMs, stop.signal).then(
      () => this.#killing.abort(),
      () => undefined,
    );
    await ended;
    stop.abort();
    await late;
  }
}
