import type { CNI } from "../../../cni/index.ts";
import { podArgs, podCapabilities } from "../../../cni/pod.ts";
import { defaultIfName } from "../../../cni/request.ts";
import { addressesOf } from "../../../cni/result.ts";
import { AgentError, messageOf } from "../../lib/errors.ts";
import type { PodSandboxConfig, RuntimeCondition } from "../port.ts";

/** A sandbox as its network sees it. */
export interface NetworkTarget {
  containerID: string;
  /** "" if the sandbox's process is gone: then only what lies outside of it can be taken down. */
  netnsPath: string;
  podName: string;
  podNamespace: string;
  podUID: string;
  portMappings: PodSandboxConfig["portMappings"];
  annotations: Record<string, string>;
  dns?: PodSandboxConfig["dns"];
  cgroupPath?: string;
}

/** What gives sandboxes their network. */
export interface SandboxNetwork {
  /**
   * Loopback and the pod's interfaces. A failure, or that there is no address, takes down what was made.
   * `signal` ends the plugin that is at work.
   * @returns addresses of eth0, in the plugins' order
   */
  setUp(target: NetworkTarget, signal?: AbortSignal): Promise<{ ips: string[] }>;
  /** Idempotent; also for what was set up in half, and by an earlier process. */
  tearDown(target: NetworkTarget): Promise<void>;
  /** What `setUp` gave this sandbox, also in an earlier process; empty if it has no network. */
  ips(containerID: string): Promise<string[]>;
  /** Whether there may be something to tear down: also after a `setUp` that failed, or never came to its end. */
  isOnRecord(containerID: string): Promise<boolean>;
  /** The node's pod addresses, one CIDR or one of each family, for networks that leave their ranges to us. */
  setPodCIDRs(podCIDRs: readonly string[]): void;
  /**
   * Takes down what sandboxes have that are not listed, whose removal nobody saw. Those that are set up after the list was
   * asked for are safe.
   */
  collect(listSandboxIDs: () => Promise<readonly string[]>, signal?: AbortSignal): Promise<void>;
  /** Whether sandboxes can be set up. Never rejects. */
  status(): Promise<RuntimeCondition>;
  /** Refuses what is new and ends what runs, within seconds; what was set up stays. May be called again. */
  close(): Promise<void>;
}

/** Sandboxes' network by CNI. What a sandbox got is remembered here and, for the next agent, in CNI's own cache. */
export function createCNINetwork(cni: CNI): SandboxNetwork {
  const known = new Map<string, string[]>();
  // What collections under way must not touch; each grows with what is set up meanwhile.
  const valid = new Set<{ containerID: string }[]>();
  let podCIDRs: readonly string[] = [];
  const ipsOf = (result: Awaited<ReturnType<CNI["cachedResult"]>>) =>
    result === undefined ? [] : addressesOf(result, defaultIfName);
  const cniTarget = (target: NetworkTarget) => ({
    containerID: target.containerID,
    netnsPath: target.netnsPath,
    args: podArgs(target),
    capabilities: podCapabilities({ ...target, podCIDRs }),
  });
  const tearDown = async (target: NetworkTarget) => {
    // What ADD was given is on record. Without a record no plugin needs what annotations say, and one that cannot be read must not
    // keep a pod from ending.
    await cni.del(cniTarget({ ...target, annotations: {} }));
    known.delete(target.containerID);
  };
  return {
    setUp: async (target, signal) => {
      for (const targets of valid) targets.push({ containerID: target.containerID });
      const ips = ipsOf(await cni.add(cniTarget(target), signal));
      if (ips.length === 0) {
        const problem = `the network gave the pod no address on ${defaultIfName}`;
        await tearDown(target).catch((err: unknown) => {
          throw new AgentError("Internal", `${problem}; cleaning up failed too: ${messageOf(err)}`, { cause: err });
        });
        throw new AgentError("Internal", problem);
      }
      known.set(target.containerID, ips);
      return { ips };
    },
    tearDown,
    isOnRecord: async (containerID) => await cni.hasRecord(containerID),
    setPodCIDRs: (cidrs) => {
      podCIDRs = cidrs;
    },
    ips: async (containerID) => {
      const remembered = known.get(containerID);
      if (remembered !== undefined) return remembered;
      const ips = ipsOf(await cni.cachedResult(containerID));
      if (ips.length > 0) known.set(containerID, ips);
      return ips;
    },
    collect: async (listSandboxIDs, signal) => {
      const targets: { containerID: string }[] = [];
      valid.add(targets);
      try {
        for (const containerID of await listSandboxIDs()) targets.push({ containerID });
        await cni.gc(targets, signal);
        const ids = new Set(targets.map(({ containerID }) => containerID));
        for (const id of known.keys()) if (!ids.has(id)) known.delete(id);
      } finally {
        valid.delete(targets);
      }
    },
    status: async () => {
      const { ready, reason, message } = await cni.status();
      return { status: ready, reason, message };
    },
    close: async () => await cni.close(),
  };
}
