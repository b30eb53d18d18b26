import { nodeCapacity } from "../../../agent/node/capacity.ts";
import type { NodeFacts } from "../../../agent/node/facts.ts";
import type { RuntimeHealthState } from "../../../agent/node/runtime-health.ts";
import type { NodeStatusInputs } from "../../../agent/node/status.ts";

const GiB = 1 << 30;

/** A machine with 4 CPUs, 8 GiB of memory and 100 GiB of disk. */
export const facts: NodeFacts = {
  machineID: "0123456789abcdef",
  systemUUID: "",
  bootID: "boot-1",
  kernelVersion: "6.1.0",
  osImage: "Debian GNU/Linux 12 (bookworm)",
  architecture: "amd64",
  cpuCount: 4,
  memoryBytes: 8 * GiB,
  swapBytes: 0,
  hugePages: [{ pageBytes: 2 << 20, count: 0 }],
  rootFilesystemBytes: 100 * GiB,
  pidsMax: 32_768,
  cpuCFSQuotaSupported: true,
  isAppArmorEnabled: false,
};

/** A runtime that said at `nowMs` that all is well. */
export function healthy(nowMs: number): RuntimeHealthState {
  return {
    lastReadyAtMs: nowMs,
    runtimeReady: { status: true, reason: "", message: "" },
    networkReady: { status: true, reason: "", message: "" },
    handlers: [{ name: "", recursiveReadOnlyMounts: true, userNamespaces: false }],
    supplementalGroupsPolicy: true,
    version: { runtimeName: "containerd", runtimeVersion: "1.6.20", runtimeApiVersion: "v1" },
  };
}

const capacityOptions = { maxPods: 110, podsPerCore: 0, localStorageCapacityIsolation: true };

/** Inputs of a healthy node at `nowMs`. */
export function statusInputs(nowMs: number, more: Partial<NodeStatusInputs> = {}): NodeStatusInputs {
  return {
    facts,
    kubeletVersion: "v1.36.0",
    kubeletPort: 10250,
    addresses: {
      kind: "addresses",
      addresses: [
        { type: "InternalIP", address: "10.0.0.1" },
        { type: "Hostname", address: "n1" },
      ],
    },
    providedNodeIPs: undefined,
    capacity: nodeCapacity(facts, capacityOptions),
    reservations: { reserved: {}, evictionHard: {}, ignoreEviction: false },
    localStorageCapacityIsolation: true,
    runtime: healthy(nowMs),
    images: [],
    imagesMax: 50,
    local: {},
    declaredFeatures: [],
    ...more,
  };
}
