import type { Clock } from "../agent/lib/clock.ts";
import { AgentError, hasCode, messageOf } from "../agent/lib/errors.ts";
import type { Logger } from "../agent/lib/log.ts";
import type { Attachments } from "./attachments.ts";
import type { AttachmentCache, CachedAttachment } from "./cache.ts";
import type { ConfiguredNetwork } from "./configured-network.ts";
import type { Gate } from "./gate.ts";
import { collectInNetwork } from "./network.ts";
import type { Plugins } from "./plugins.ts";
import { type CNITarget, defaultIfName } from "./request.ts";

export interface CollectDeps {
  readonly attachments: Attachments;
  readonly cache: AttachmentCache;
  readonly gate: Gate;
  readonly network: ConfiguredNetwork;
  readonly plugins: Plugins;
  readonly clock: Clock;
  readonly log: Logger;
}

/** The containers that are in use; may grow while a collection runs. */
export type ValidContainers = readonly Pick<CNITarget, "containerID" | "ifName">[];

// Plugins that hang must not take the places of pods that start or stop.
export const staleDeletionsMax = 4;
// The plugins' GC command waits for a moment in which nothing else runs. On a node where that does not come the next collection
// tries again.
export const quietWaitMs = 60_000;

/**
 * Undoes what is on record for containers that are not in use, beside the operations of pods; then has the plugins of the network in
 * use do the same with what they hold, alone.
 *
 * Rejects with Internal, naming each container for which that failed.
 */
export async function collect(deps: CollectDeps, valid: ValidContainers, signal: AbortSignal): Promise<void> {
  const { cache, network, clock } = deps;
  const config = await network.config();
  const stale = (await cache.list(config?.name)).filter((attachment) => isStale(attachment, valid));
  const failures = await deleteAll(deps, stale, valid, signal);
  await cache.removeTemporary(clock.now());
  if (config !== undefined && !config.disableGC) {
    await collectInPlugins(deps, valid, signal).catch((err: unknown) => {
      // What is missing is in the node's condition, and for the next collection.
      if (!hasCode(err, "Unavailable")) failures.push(messageOf(err));
    });
  }
  if (failures.length > 0) throw new AgentError("Internal", failures.join("; "));
}

/** Whether an attachment is ours, or nobody's, and not in use. Pure. */
function isStale({ containerID, ifName, isOurs, isUnreadable }: CachedAttachment, valid: ValidContainers): boolean {
  if (!isOurs && !isUnreadable) return false; // another runtime's: not ours to judge
  return !valid.some((one) => one.containerID === containerID && (one.ifName ?? defaultIfName) === ifName);
}

async function deleteAll(
  { attachments, gate }: CollectDeps,
  stale: readonly CachedAttachment[],
  valid: ValidContainers,
  signal: AbortSignal,
): Promise<string[]> {
  const failures: string[] = [];
  const rest = stale.values();
  const lane = async () => {
    for (const attachment of rest) {
      const { containerID, networkName } = attachment;
      const remove = async () => {
        // It may have been set up since the list was made.
        if (isStale(attachment, valid)) await attachments.deleteStale(attachment, signal);
      };
      await gate.run({ key: containerID, kind: "take-down" }, signal, remove).catch((err: unknown) => {
        failures.push(`network "${networkName}", container ${containerID}: ${messageOf(err)}`);
      });
    }
  };
  await Promise.all(Array.from({ length: staleDeletionsMax }, lane));
  return failures;
}

async function collectInPlugins(deps: CollectDeps, valid: ValidContainers, signal: AbortSignal): Promise<void> {
  const { cache, gate, network, plugins, clock, log } = deps;
  const runnable = await network.runnable();
  const tooBusy = new AbortController();
  const timer = clock.after(quietWaitMs, () => tooBusy.abort());
  const run = async () => {
    timer.cancel();
    const inUse = valid.map(({ containerID, ifName = defaultIfName }) => ({ containerID, ifname: ifName }));
    // Whatever is still on record is another runtime's, or could not be undone, and plugins hold something for it.
    for (const { networkName, containerID, ifName } of await cache.list(runnable.config.name)) {
      const isKnown = inUse.some((one) => one.containerID === containerID && one.ifname === ifName);
      if (networkName === runnable.config.name && !isKnown) inUse.push({ containerID, ifname: ifName });
    }
    await collectInNetwork(plugins, runnable, inUse, signal);
  };
  try {
    await gate.runAlone(AbortSignal.any([signal, tooBusy.signal]), run);
  } catch (err) {
    if (!tooBusy.signal.aborted || signal.aborted) throw err;
    log.debug({ network: runnable.config.name }, "pods' networks come and go all the time, collecting another time");
  } finally {
    timer.cancel();
  }
}
