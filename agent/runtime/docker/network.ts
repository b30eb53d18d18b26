import type { CNI } from "../../../cni/index.ts";
import { podArgs, podCapabilities } from "../../../cni/pod.ts";
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
  /** Loopback and the pod's interfaces. A failure takes down what was made. @returns addresses, the primary first */
  setUp(target: NetworkTarget): Promise<{ ips: string[] }>;
  /** Idempotent; also for what was set up in half, and by an earlier process. */
  tearDown(target: NetworkTarget): Promise<void>;
  /** What `setUp` gave this sandbox, also in an earlier process; empty if it has no network. */
  ips(containerID: string): Promise<string[]>;
  /**
   * Takes down what sandboxes have that are not listed, whose removal nobody saw. Those that are set up after the list was
   * asked for are safe.
   */
  collect(listSandboxIDs: () => Promise<readonly string[]>, signal?: AbortSignal): Promise<void>;
  /** Whether sandboxes can be set up. Never rejects. */
  status(): Promise<RuntimeCondition>;
}

/** Sandboxes' network by CNI. What a sandbox got is remembered here and, for the next agent, in CNI's own cache. */
export function createCNINetwork(cni: CNI): SandboxNetwork {
  const known = new Map<string, string[]>();
  // What collections under way must not touch; each grows with what is set up meanwhile.
  const valid = new Set<{ containerID: string }[]>();
  const ipsOf = (result: Awaited<ReturnType<CNI["cachedResult"]>>) =>
    (result?.ips ?? []).flatMap(({ address, interface: index }) => {
      const isInSandbox = index === undefined || (result?.interfaces[index]?.sandbox ?? "") !== "";
      return isInSandbox ? [address.replace(/\/\d+$/, "")] : [];
    });
  const cniTarget = (target: NetworkTarget) => ({
    containerID: target.containerID,
    netnsPath: target.netnsPath,
    args: podArgs(target),
    capabilities: podCapabilities(target),
  });
  return {
    setUp: async (target) => {
      for (const targets of valid) targets.push({ containerID: target.containerID });
      const ips = ipsOf(await cni.add(cniTarget(target)));
      known.set(target.containerID, ips);
      return { ips };
    },
    tearDown: async (target) => {
      await cni.del(cniTarget(target));
      known.delete(target.containerID);
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
  };
}
