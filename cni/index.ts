import { access } from "node:fs/promises";
import { type Clock, systemClock } from "../agent/lib/clock.ts";
import { AgentError, hasCode, messageOf, withContext } from "../agent/lib/errors.ts";
import type { Logger } from "../agent/lib/log.ts";
import { AttachmentCache, type CachedAttachment } from "./cache.ts";
import { type NetworkConfig, parseNetworkConfig, renderNetworkConfig } from "./config.ts";
import { type ConfigDir, decideTakeOver, readConfigDir } from "./config-dir.ts";
import { watchConfigDir } from "./config-watch.ts";
import { Gate } from "./gate.ts";
import { setUpLoopback } from "./loopback.ts";
import {
  addToNetwork,
  checkInNetwork,
  collectInNetwork,
  deleteFromNetwork,
  resolveNetwork,
  type RunnableNetwork,
  statusOfNetwork,
  targetOf,
} from "./network.ts";
import { Plugins, type PluginTimeouts } from "./plugins.ts";
import { checkTarget, type CNITarget, defaultIfName } from "./request.ts";
import { type CNIResult, parseResult } from "./result.ts";

export interface CNIOptions {
  /** `/etc/cni/net.d` */
  readonly confDir: string;
  /** `/opt/cni/bin` and the like; searched in this order. */
  readonly binDirs: readonly string[];
  /** `/var/lib/cni`; results go to `results/` below it. */
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
   * An attachment of the same name that an earlier run left behind is deleted first.
   */
  add(target: CNITarget, signal?: AbortSignal): Promise<CNIResult>;
  /**
   * Removes the container from the network, with the configuration and result that ADD had, whatever the directory holds now.
   * May be repeated; succeeds if the namespace is gone, and if nothing is known of the container.
   */
  del(target: CNITarget, signal?: AbortSignal): Promise<void>;
  /** Rejects if a plugin finds the attachment damaged, with NotFound if there is none. */
  check(target: CNITarget, signal?: AbortSignal): Promise<void>;
  /**
   * Deletes the attachments of this agent that are not among `valid`, then lets plugins that know GC do the same with what they
   * hold. Runs while no other operation does, and waits for that until `signal` aborts.
   */
  gc(valid: readonly Pick<CNITarget, "containerID" | "ifName">[], signal?: AbortSignal): Promise<void>;
  /** Never rejects. */
  status(signal?: AbortSignal): Promise<CNIStatus>;
  /** True if ADD has left anything to delete: also one that failed, or did not come to its end. */
  hasRecord(containerID: string, ifName?: string): Promise<boolean>;
  /** What ADD returned, from the cache; `undefined` if it did not come to its end, or DEL did. */
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
  const { confDir, log, clock = systemClock } = options;
  const plugins = new Plugins({ ...options, clock });
  const cache = new AttachmentCache(options.cacheDir);
  const gate = new Gate();
  const closing = new AbortController();
  const killing = new AbortController();
  const running = new Set<Promise<unknown>>();
  let current: ConfigDir | undefined;
  let brokenSinceMs: number | undefined;

  /** Takes over what the directory says; resolves to the ms after which to look again, if that is soon. */
  const reload = async (onChange?: () => void): Promise<number | undefined> => {
    const next = await readConfigDir(confDir);
    const before = current;
    const decided = decideTakeOver(before, next, brokenSinceMs, clock.monotonic());
    brokenSinceMs = decided.takeOver ? undefined : decided.brokenSinceMs;
    if (!decided.takeOver) return decided.waitMs;
    current = next;
    for (const problem of next.problems) {
      if (before?.problems.includes(problem) !== true) log.warn({ err: problem }, "passing over a CNI configuration");
    }
    if (JSON.stringify(identityOf(before)) === JSON.stringify(identityOf(next))) return undefined;
    const { config, file } = next;
    const types = config?.plugins.map(({ type }) => type);
    if (config === undefined) log.info({ dir: confDir }, "there is no CNI configuration");
    else log.info({ file, network: config.name, plugins: types }, "using a CNI network");
    onChange?.();
    return undefined;
  };
  const configNow = async (): Promise<NetworkConfig | undefined> => {
    if (current?.config === undefined) await reload();
    return current?.config;
  };
  const networkNow = async (): Promise<RunnableNetwork> => {
    const config = await configNow();
    if (config === undefined) throw new AgentError("Unavailable", whyNoConfig(confDir, current));
    const network = await resolveNetwork(plugins, config);
    if ("problem" in network) throw new AgentError("Unavailable", `network "${config.name}": ${network.problem}`);
    return network;
  };

  /** Counts an operation as running, and gives it a signal that also aborts when the agent cannot wait any longer. */
  const track = async <T>(signal: AbortSignal | undefined, run: (signal: AbortSignal) => Promise<T>): Promise<T> => {
    if (closing.signal.aborted) throw new AgentError("Canceled", "the agent stops");
    const work = run(signal === undefined ? killing.signal : AbortSignal.any([signal, killing.signal]));
    running.add(work);
    try {
      return await work;
    } finally {
      running.delete(work);
    }
  };

  const deleteAttachment = async (
    attachment: CachedAttachment,
    netnsPath: string,
    how: { keepGoing: boolean; signal?: AbortSignal },
  ): Promise<void> => {
    const config = configOf(attachment, log) ?? (await configNow());
    // Without any configuration there are no plugins to ask, and nothing can be undone.
    if (config === undefined) throw new AgentError("Unavailable", whyNoConfig(confDir, current));
    const target = targetOf(attachment, await existing(netnsPath));
    await deleteFromNetwork(plugins, await inVersion(plugins, config), target, { result: attachment.result, ...how });
    await cache.remove(attachment);
  };

  const add = async (target: CNITarget, signal: AbortSignal): Promise<CNIResult> => {
    const { containerID, netnsPath, ifName = defaultIfName, args = [], capabilities = {} } = target;
    const network = await networkNow();
    const { config, version } = network;
    const what = `network "${config.name}"`;
    for (const left of await cache.find(containerID, ifName)) {
      await deleteAttachment(left, netnsPath, { keepGoing: false, signal }).catch((err: unknown) => {
        throw withContext(err, `${what}: what an earlier attempt left cannot be removed`);
      });
    }
    const attachment = {
      networkName: config.name,
      ...{ containerID, ifName, netnsPath, args, capabilities },
      config: renderNetworkConfig(config, version),
      result: undefined,
    };
    await setUpLoopback(plugins, target, signal);
    // Written first: after a crash in the middle DEL knows what to undo, and with which configuration.
    await cache.write(attachment);
    try {
      const { raw, result } = await addToNetwork(plugins, network, target, signal);
      await cache.write({ ...attachment, result: raw });
      return result;
    } catch (err) {
      const failed = withContext(err, what);
      // When the agent stops it does not wait for that; the record stays.
      if (killing.signal.aborted) throw failed;
      try {
        await deleteAttachment({ ...attachment, isOurs: true }, netnsPath, { keepGoing: true, signal: killing.signal });
      } catch (cleanUpErr) {
        throw new AgentError(failed.code, `${failed.message}; cleaning up failed too: ${messageOf(cleanUpErr)}`, {
          cause: err,
        });
      }
      throw failed;
    }
  };

  const del = async (target: CNITarget, signal: AbortSignal): Promise<void> => {
    const { containerID, netnsPath, ifName = defaultIfName } = target;
    const known = await cache.find(containerID, ifName);
    for (const attachment of known) {
      await deleteAttachment(attachment, netnsPath, { keepGoing: false, signal }).catch((err: unknown) => {
        throw withContext(err, `network "${attachment.networkName}"`);
      });
    }
    // Without a namespace nothing of it is left in the kernel either: a sandbox is removed after it was stopped.
    if (known.length > 0 || netnsPath === "") return;
    // ADD leaves a record before it begins: there is most likely nothing to undo. Should the records have been lost, plugins still
    // find by the container's ID what they hold, and a failure must not keep a pod that never had a network.
    const config = await configNow();
    if (config === undefined) return;
    const options = { result: undefined, keepGoing: true, signal };
    const withoutGone = { ...target, netnsPath: await existing(netnsPath) };
    await deleteFromNetwork(plugins, await inVersion(plugins, config), withoutGone, options).catch((err: unknown) => {
      if (hasCode(err, "Canceled")) throw err;
      log.warn(
        { containerID, err: messageOf(err) },
        "cannot ask all CNI plugins to forget a container they may not know",
      );
    });
  };

  const check = async (target: CNITarget, signal: AbortSignal): Promise<void> => {
    const { containerID, netnsPath, ifName = defaultIfName } = target;
    const attachment = (await cache.find(containerID, ifName)).find(({ result }) => result !== undefined);
    const config = attachment === undefined ? undefined : (configOf(attachment, log) ?? (await configNow()));
    if (attachment?.result === undefined || config === undefined) {
      throw new AgentError("NotFound", `container ${containerID} has no attachment ${ifName}`);
    }
    const options = { result: attachment.result, signal };
    await checkInNetwork(plugins, await inVersion(plugins, config), targetOf(attachment, netnsPath), options);
  };

  const gc: CNI["gc"] = async (valid, signal) => {
    const network = await networkNow();
    if (network.config.disableGC) return;
    const inUse = valid.map(({ containerID, ifName = defaultIfName }) => ({ containerID, ifname: ifName }));
    const isInUse = ({ containerID, ifName }: CachedAttachment) =>
      inUse.some((one) => one.containerID === containerID && one.ifname === ifName);
    const failures: string[] = [];
    for (const attachment of await cache.list(network.config.name)) {
      if (isInUse(attachment)) continue;
      if (!attachment.isOurs) {
        // Another runtime's on the same network: not ours to judge.
        inUse.push({ containerID: attachment.containerID, ifname: attachment.ifName });
        continue;
      }
      // The path may be another process's by now: /proc/PID says nothing of the container that had it.
      const netnsPath = attachment.netnsPath.startsWith("/proc/") ? "" : attachment.netnsPath;
      const how = { keepGoing: true, ...(signal === undefined ? {} : { signal }) };
      await deleteAttachment(attachment, netnsPath, how).catch((err: unknown) => {
        failures.push(`container ${attachment.containerID}: ${messageOf(err)}`);
        // Its record stays, and with it what its plugins hold.
        inUse.push({ containerID: attachment.containerID, ifname: attachment.ifName });
      });
    }
    await collectInNetwork(plugins, network, inUse, signal).catch((err: unknown) => failures.push(messageOf(err)));
    if (failures.length === 0) return;
    throw new AgentError("Internal", `network "${network.config.name}": ${failures.join("; ")}`);
  };

  return {
    add: async (target, signal) => {
      checkTarget(target);
      if (target.netnsPath === "") throw new AgentError("Invalid", "a container needs a network namespace to be added");
      return await track(signal, async (both) => gate.run(target.containerID, both, async () => add(target, both)));
    },
    del: async (target, signal) => {
      checkTarget(target);
      await track(signal, async (both) => gate.run(target.containerID, both, async () => del(target, both)));
    },
    check: async (target, signal) => {
      checkTarget(target);
      await track(signal, async (both) => gate.run(target.containerID, both, async () => check(target, both)));
    },
    gc: async (valid, signal) => {
      await track(signal, async (both) => gate.runAlone(both, async () => gc(valid, both)));
    },
    status: async (signal) => {
      try {
        await statusOfNetwork(plugins, await networkNow(), signal);
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
      for (const { result } of await cache.find(containerID, ifName)) {
        if (result !== undefined) return parseResult(result, "0.1.0").result;
      }
      return undefined;
    },
    watch: async (signal, onChange) => {
      const subdirs = () => {
        const config = current?.config;
        return config === undefined || config.loadOnlyInlinedPlugins ? [] : [config.name];
      };
      await watchConfigDir({ dir: confDir, subdirs, onChange: async () => reload(onChange), clock, log }, signal);
    },
    close: async () => {
      closing.abort();
      const ended = Promise.allSettled([...running]);
      const stop = new AbortController();
      const late = clock.sleep(closeGraceMs, stop.signal).then(
        () => killing.abort(),
        () => undefined,
      );
      await ended;
      stop.abort();
      await late;
    },
  };
}

/** What makes one configuration another. Pure. */
function identityOf(dir: ConfigDir | undefined): unknown {
  if (dir === undefined) return undefined;
  const { config, file } = dir;
  if (config === undefined) return { file: "" };
  const { plugins, ...head } = config;
  return { file, head, plugins: plugins.map(({ body }) => body) };
}

function whyNoConfig(confDir: string, dir: ConfigDir | undefined): string {
  const problems = dir === undefined || dir.problems.length === 0 ? "" : ` (${dir.problems.join("; ")})`;
  return `cni plugin not initialized: no network config found in ${confDir}${problems}`;
}

/** The configuration that ADD used; `undefined` if the record has none that can be read. */
function configOf({ config, networkName, containerID }: CachedAttachment, log: Logger): NetworkConfig | undefined {
  if (config === undefined) return undefined;
  try {
    return parseNetworkConfig(".conflist", config);
  } catch {
    // Older runtimes recorded a single plugin as it was.
  }
  try {
    return parseNetworkConfig(".conf", config);
  } catch (err) {
    log.warn(
      { network: networkName, containerID, err: messageOf(err) },
      "cannot read the CNI configuration of a record",
    );
    return undefined;
  }
}

/**
 * A configuration with the version to use for DEL and CHECK. What ADD of this agent recorded has but one; for others' records it is
 * settled anew, and where that is not possible the plugins themselves shall say why.
 */
async function inVersion(
  plugins: Plugins,
  config: NetworkConfig,
): Promise<Pick<RunnableNetwork, "config" | "version">> {
  const [only] = config.versions;
  if (config.versions.length === 1 && only !== undefined) return { config, version: only };
  const network = await resolveNetwork(plugins, config);
  return "problem" in network ? { config, version: config.versions.at(-1) ?? "0.1.0" } : network;
}

/** The path of a namespace that is still there; "" otherwise, which tells plugins so. */
async function existing(netnsPath: string): Promise<string> {
  if (netnsPath === "") return "";
  return await access(netnsPath).then(
    () => netnsPath,
    () => "",
  );
}
