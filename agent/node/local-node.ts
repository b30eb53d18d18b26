import type { Clock } from "../lib/clock.ts";
import { messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { Loop } from "../lib/loop.ts";
import type { Node } from "../kube/types.ts";
import type { ImageInfo, Runtime } from "../runtime/port.ts";
import { readAddressSources } from "./address-sources.ts";
import { type AddressSources, chooseAddresses } from "./addresses.ts";
import { nodeCapacity } from "./capacity.ts";
import type { NodeFacts } from "./facts.ts";
import { buildInitialNode } from "./initial-node.ts";
import { buildNodePatch } from "./patch.ts";
import type { NodeSettings } from "./registration.ts";
import type { RuntimeHealth } from "./runtime-health.ts";
import { buildNodeStatus, type LocalNodeState } from "./status.ts";

export interface LocalNodeDeps {
  settings: NodeSettings;
  facts: NodeFacts;
  health: RuntimeHealth;
  runtime: Pick<Runtime, "updateRuntimeConfig">;
  /** The configuration's podCIDR, for runtimes that give pods their addresses by it; "" if they know it themselves. */
  podCIDR: string;
  images: () => readonly ImageInfo[];
  local: () => LocalNodeState;
  clock: Clock;
  log: Logger;
  /** Reads interfaces, routes and resolver; replaced by tests. */
  readAddresses?: () => Promise<AddressSources>;
}

/** The Node of a machine that runs alone: nobody is told about it, but pods ask for its addresses and resources. */
export interface LocalNode {
  /** The Node as an API server would have it by now. */
  node(): Node;
  /** Calls `listener` after it changed, other than by the times of heartbeats. @returns ends it */
  subscribe(listener: () => void): () => void;
  /** Keeps it current until `signal` aborts. Never rejects. */
  run(signal: AbortSignal): Promise<void>;
}

/** Makes the local Node; it has no status before `run`. */
export function createLocalNode(deps: LocalNodeDeps): LocalNode {
  const { settings, facts, health, runtime, podCIDR, images, local, clock, log } = deps;
  const { readAddresses = () => readAddressSources(settings, clock) } = deps;
  const listeners = new Set<() => void>();
  let current = buildInitialNode(settings, facts);
  let toldCIDR = podCIDR === "";
  let shownProblems = "";

  const build = async () => {
    const built = buildNodeStatus(
      current,
      {
        ...settings,
        facts,
        addresses: chooseAddresses(settings, await readAddresses(), current.status?.addresses ?? []),
        providedNodeIPs: undefined,
        capacity: nodeCapacity(facts, settings),
        runtime: health.state,
        images: images(),
        local: local(),
      },
      clock.now(),
    );
    const problems = built.problems.join("; ");
    if (problems !== shownProblems && problems !== "") log.warn({ problems }, "part of the node cannot be computed");
    shownProblems = problems;
    return built.node;
  };
  const tellCIDR = async () => {
    if (toldCIDR || !health.isRuntimeReady()) return;
    await runtime.updateRuntimeConfig({ podCIDR });
    toldCIDR = true;
    log.info({ podCIDR }, "told the runtime the pod CIDR");
  };
  const loop = new Loop({
    clock,
    resyncMs: settings.statusUpdateMs,
    retryMs: () => settings.statusUpdateMs,
    onError: (err) => log.warn({ err: messageOf(err) }, "the node is not looked at, trying again"),
    pass: async () => {
      const before = current;
      current = await build();
      if (buildNodePatch(before, current, { ignoreHeartbeat: true }) !== undefined) {
        for (const listener of [...listeners]) listener();
      }
      await tellCIDR();
      return undefined;
    },
  });
  return {
    node: () => current,
    subscribe: (listener) => {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    run: async (signal) => {
      const unsubscribe = health.subscribe(() => loop.wake());
      await loop.run(signal);
      unsubscribe();
    },
  };
}
