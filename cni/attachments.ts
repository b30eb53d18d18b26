import { stat } from "node:fs/promises";
import { AgentError, hasCode, messageOf, withContext } from "../agent/lib/errors.ts";
import type { Logger } from "../agent/lib/log.ts";
import type { AttachmentCache, AttachmentName, CachedAttachment } from "./cache.ts";
import { type NetworkConfig, parseNetworkConfig, renderNetworkConfig } from "./config.ts";
import type { ConfiguredNetwork } from "./configured-network.ts";
import { parseObject } from "./json.ts";
import { setUpLoopback } from "./loopback.ts";
import { addToNetwork, checkInNetwork, deleteFromNetwork, targetOf, withVersion } from "./network.ts";
import type { Plugins } from "./plugins.ts";
import { type CNITarget, defaultIfName } from "./request.ts";
import { type CNIResult, parseResult } from "./result.ts";
import type { RunningPlugins } from "./running.ts";

export interface AttachmentsOptions {
  readonly plugins: Plugins;
  readonly cache: AttachmentCache;
  readonly running: RunningPlugins;
  readonly network: ConfiguredNetwork;
  readonly log: Logger;
  /** Aborts when the agent ends and waits for nothing any more. */
  readonly killed: AbortSignal;
}

/**
 * What containers have of networks: the plugins' work, and the record of it that outlives the agent.
 *
 * ```
 * ADD: record → plugins → record with result        DEL: plugins in reverse → no record
 * ```
 *
 * A crash between two steps leaves a record, and a record is always undone before anything else is done with the container.
 * The caller sees to it that operations on one container follow each other.
 */
export class Attachments {
  readonly #options: AttachmentsOptions;
  /** Containers whose result was found to be of no use, so that it is said once. */
  readonly #warned = new Set<string>();

  constructor(options: AttachmentsOptions) {
    this.#options = options;
  }

  /** Adds the container to the network in use; see {@link CNI.add}. */
  async add(target: CNITarget, signal: AbortSignal): Promise<CNIResult> {
    const { plugins, cache, running, network } = this.#options;
    const { containerID, netnsPath, ifName = defaultIfName, args = [], capabilities = {} } = target;
    const runnable = await network.runnable();
    const { config, version } = runnable;
    const what = `network "${config.name}"`;
    await running.endLeftover(containerID, signal);
    for (const leftover of await cache.find(containerID, ifName)) {
      await this.#delete(leftover, netnsPath, { keepGoing: false, signal }).catch((err: unknown) => {
        throw withContext(err, `${what}: what an earlier attempt left cannot be removed`);
      });
    }
    const attachment = {
      networkName: config.name,
      ...{ containerID, ifName, netnsPath, args, capabilities },
      netnsID: await netnsIDOf(netnsPath),
      config: renderNetworkConfig(config, version),
      result: undefined,
    };
    const deadline = plugins.within(plugins.timeouts.verbMs);
    // Written first: after a crash in the middle DEL knows what to undo, and with which configuration. The disk may take as long as
    // the loopback, of which there is nothing to undo.
    const [written, loopback] = await Promise.allSettled([
      cache.write(attachment),
      setUpLoopback(plugins, target, { deadline, signal }),
    ]);
    if (written.status === "rejected") throw written.reason;
    if (loopback.status === "rejected") {
      await cache.remove(attachment);
      throw loopback.reason;
    }
    try {
      const { raw, result } = await addToNetwork(plugins, runnable, target, { deadline, signal });
      await cache.write({ ...attachment, result: raw });
      return result;
    } catch (err) {
      throw await this.#undo({ ...attachment, isOurs: true, isUnreadable: false }, withContext(err, what));
    }
  }

  /** Removes the container from the networks it was added to; see {@link CNI.del}. */
  async del(target: CNITarget, signal: AbortSignal): Promise<void> {
    const { plugins, cache, running, network, log } = this.#options;
    const { containerID, netnsPath, ifName = defaultIfName } = target;
    await running.endLeftover(containerID, signal);
    await cache.removeTemporaryOf(containerID);
    const known = await cache.find(containerID, ifName);
    for (const attachment of known) {
      await this.#delete(attachment, netnsPath, { keepGoing: false, signal }).catch((err: unknown) => {
        throw withContext(err, `network "${attachment.networkName}"`);
      });
    }
    // Without a namespace nothing of it is left in the kernel either: a sandbox is removed after it was stopped.
    if (known.length > 0 || netnsPath === "") return;
    // ADD leaves a record before it begins: there is most likely nothing to undo. Should the records have been lost, plugins still
    // find by the container's ID what they hold, and a failure must not keep a pod that never had a network.
    const config = await network.config();
    if (config === undefined) return;
    const options = { result: undefined, keepGoing: true, signal };
    const asItIs = { ...target, netnsPath: await netnsIfThere(netnsPath, undefined) };
    await deleteFromNetwork(plugins, await withVersion(plugins, config), asItIs, options).catch((err: unknown) => {
      if (hasCode(err, "Canceled")) throw err;
      log.warn(
        { containerID, err: messageOf(err) },
        "cannot ask all CNI plugins to forget a container they may not know",
      );
    });
  }

  /** Asks the plugins whether all is in place; see {@link CNI.check}. */
  async check(target: CNITarget, signal: AbortSignal): Promise<void> {
    const { plugins, cache, network, log } = this.#options;
    const { containerID, netnsPath, ifName = defaultIfName } = target;
    const attachment = (await cache.find(containerID, ifName)).find(({ result }) => result !== undefined);
    const config = attachment === undefined ? undefined : (configOf(attachment, log) ?? (await network.config()));
    if (attachment?.result === undefined || config === undefined) {
      throw new AgentError("NotFound", `container ${containerID} has no attachment ${ifName}`);
    }
    const options = { result: attachment.result, signal };
    await checkInNetwork(plugins, await withVersion(plugins, config), targetOf(attachment, netnsPath), options);
  }

  /** Undoes an attachment whose container is no more, as far as that goes. One that has gone meanwhile is fine. */
  async deleteStale({ containerID, ifName, networkName }: AttachmentName, signal: AbortSignal): Promise<void> {
    const { cache, running } = this.#options;
    await running.endLeftover(containerID, signal);
    for (const attachment of await cache.find(containerID, ifName)) {
      if (attachment.networkName !== networkName || !(attachment.isOurs || attachment.isUnreadable)) continue;
      // The path may be another process's by now: /proc/PID says nothing of the container that had it.
      const netnsPath = attachment.netnsPath.startsWith("/proc/") ? "" : attachment.netnsPath;
      await this.#delete(attachment, netnsPath, { keepGoing: true, signal });
    }
  }

  /** What ADD returned; see {@link CNI.cachedResult}. */
  async cachedResult(containerID: string, ifName: string): Promise<CNIResult | undefined> {
    const { cache, log } = this.#options;
    for (const { result } of await cache.find(containerID, ifName)) {
      if (result === undefined) continue;
      try {
        // A result that names no version is of the first one, which had none.
        return parseResult(result, "0.1.0").result;
      } catch (err) {
        if (this.#warned.has(containerID)) continue;
        this.#warned.add(containerID);
        log.warn({ containerID, err: messageOf(err) }, "cannot read what a CNI plugin gave a container");
      }
    }
    return undefined;
  }

  async #delete(
    attachment: CachedAttachment,
    netnsPath: string,
    how: { keepGoing: boolean; signal: AbortSignal },
  ): Promise<void> {
    const { plugins, cache, network, log } = this.#options;
    const config = configOf(attachment, log) ?? (await network.config());
    // Without any configuration there are no plugins to ask, and nothing can be undone.
    if (config === undefined) throw network.missing();
    const target = targetOf(attachment, await netnsIfThere(netnsPath, attachment.netnsID));
    await deleteFromNetwork(plugins, await withVersion(plugins, config), target, {
      result: attachment.result,
      ...how,
    });
    await cache.remove(attachment);
    this.#warned.delete(attachment.containerID);
  }

  /** After a failed ADD. @returns what to reject with */
  async #undo(attachment: CachedAttachment, failed: AgentError): Promise<AgentError> {
    const { killed } = this.#options;
    // When the agent stops it does not wait for that; the record stays.
    if (killed.aborted) return failed;
    try {
      await this.#delete(attachment, attachment.netnsPath, { keepGoing: true, signal: killed });
      return failed;
    } catch (err) {
      const message = `${failed.message}; cleaning up failed too: ${messageOf(err)}`;
      return new AgentError(failed.code, message, { cause: failed });
    }
  }
}

/** The configuration that ADD used; `undefined` if the record has none that can be read, or none with plugins in it. */
function configOf({ config, networkName, containerID }: CachedAttachment, log: Logger): NetworkConfig | undefined {
  if (config === undefined) return undefined;
  try {
    // Older runtimes recorded a single plugin as it was.
    const isSingle = parseObject(config)?.["type"] !== undefined;
    const network = parseNetworkConfig(isSingle ? ".conf" : ".conflist", config);
    return network.plugins.length === 0 ? undefined : network;
  } catch (err) {
    log.warn(
      { network: networkName, containerID, err: messageOf(err) },
      "cannot read the CNI configuration of a record",
    );
    return undefined;
  }
}

/** Tells a namespace from others; `undefined` if there is none at the path. */
async function netnsIDOf(netnsPath: string): Promise<string | undefined> {
  if (netnsPath === "") return undefined;
  const stats = await stat(netnsPath, { bigint: true }).catch(() => undefined);
  return stats === undefined ? undefined : `${stats.dev}/${stats.ino}`;
}

/**
 * The path if the namespace is still there; "" otherwise, which tells plugins so. The path of a process that has ended may be that of
 * another by now, whose namespace is none of ours.
 */
async function netnsIfThere(netnsPath: string, netnsID: string | undefined): Promise<string> {
  const now = await netnsIDOf(netnsPath);
  return now === undefined || (netnsID !== undefined && netnsID !== now) ? "" : netnsPath;
}
