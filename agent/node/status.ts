import type { Amounts } from "../kube/pod-resources.ts";
import type { Node, NodeStatus, NodeSystemInfo, ResourceList } from "../kube/types.ts";
import type { ImageInfo } from "../runtime/port.ts";
import type { AddressResult } from "./addresses.ts";
import { nodeAllocatable, type Reservations, resourceList } from "./capacity.ts";
import { buildConditions, type Pressure } from "./conditions.ts";
import type { NodeFacts } from "./facts.ts";
import { buildNodeImages } from "./images.ts";
import { type RuntimeHealthState, runtimeProblems } from "./runtime-health.ts";
import { rfc3339 } from "../lib/rfc3339.ts";

/** Everything that one heartbeat is made of. */
export interface NodeStatusInputs {
  facts: NodeFacts;
  /** Version shown as the kubelet's, `v1.36.2`. */
  kubeletVersion: string;
  /** Port of the kubelet API. */
  kubeletPort: number;
  addresses: AddressResult;
  /** Value of the annotation that tells an external cloud provider about `--node-ip`; null removes it, undefined leaves it. */
  providedNodeIPs: string | null | undefined;
  capacity: Amounts;
  reservations: Reservations;
  localStorageCapacityIsolation: boolean;
  runtime: RuntimeHealthState;
  images: readonly ImageInfo[];
  /** nodeStatusMaxImages; negative means all. */
  imagesMax: number;
  local: LocalNodeState;
  /** Feature names for the scheduler, fixed at start. */
  declaredFeatures: readonly string[];
}

/** What the agent's other parts say about the node. Fields left out: nothing to report. */
export interface LocalNodeState {
  pressure?: Pressure;
  /** Why the pod workers are not healthy. */
  podsProblem?: string | undefined;
  /** Why storage is not ready. */
  storageProblem?: string | undefined;
  /** True from the begin of a graceful node shutdown. */
  isShuttingDown?: boolean;
  /** Unique names of attachable volumes in use; undefined until known, which keeps what the API server has. */
  volumesInUse?: readonly string[] | undefined;
}

export interface BuiltNode {
  node: Node;
  /** One line for each part that could not be computed; the rest of the node is complete. */
  problems: string[];
}

export const providedNodeIPAnnotation = "alpha.kubernetes.io/provided-node-ip";

/** Labels that the agent keeps right for as long as it runs. */
export function platformLabels(facts: NodeFacts): Record<string, string> {
  return {
    "kubernetes.io/os": "linux",
    "kubernetes.io/arch": facts.architecture,
    "beta.kubernetes.io/os": "linux",
    "beta.kubernetes.io/arch": facts.architecture,
  };
}

/**
 * The Node with its status as of now, made from the Node that the API server has (or the one to be created). Pure; a
 * part that fails leaves its section as it was.
 */
export function buildNodeStatus(existing: Node, inputs: NodeStatusInputs, nowMs: number): BuiltNode {
  const old = existing.status ?? {};
  const { addresses, local, runtime, facts } = inputs;
  const problems = addresses.kind === "failed" ? [addresses.problem] : [];
  const capacity = { ...foreignResources(old.capacity), ...resourceList(inputs.capacity) };
  const health = runtimeProblems(runtime, nowMs);
  const status: NodeStatus = {
    ...old,
    ...(addresses.kind === "addresses" ? { addresses: addresses.addresses } : {}),
    capacity,
    allocatable: {
      ...foreignResources(capacity),
      ...resourceList(nodeAllocatable(inputs.capacity, inputs.reservations)),
    },
    nodeInfo: nodeInfo(inputs),
    daemonEndpoints: { kubeletEndpoint: { Port: inputs.kubeletPort } },
    images: buildNodeImages(inputs.images, inputs.imagesMax),
    conditions: buildConditions(
      old.conditions ?? [],
      local.pressure ?? { memory: false, disk: false, pid: false },
      {
        runtime: [...health.runtime, ...textsOf(local.podsProblem)],
        network: health.network,
        storage: textsOf(local.storageProblem),
        shutdown: local.isShuttingDown === true ? ["node is shutting down"] : [],
        missingCapacity: missingCapacity(inputs),
        cpuCFSQuotaSupported: facts.cpuCFSQuotaSupported,
      },
      rfc3339(nowMs),
    ),
    ...(runtime.runtimeReady === undefined ? {} : runtimeSections(runtime)),
    ...(local.volumesInUse === undefined ? {} : { volumesInUse: [...local.volumesInUse].sort() }),
    declaredFeatures: [...inputs.declaredFeatures].sort(),
  };
  // The API server leaves empty lists out; so do we, or each heartbeat would look like a change.
  for (const key of ["images", "runtimeHandlers", "volumesInUse", "declaredFeatures"] as const) {
    if (status[key]?.length === 0) delete status[key];
  }
  const node: Node = {
    ...existing,
    metadata: {
      ...existing.metadata,
      labels: { ...existing.metadata.labels, ...platformLabels(facts) },
      annotations: withProvidedNodeIPs(existing.metadata.annotations, inputs.providedNodeIPs),
    },
    status,
  };
  return { node, problems };
}

function nodeInfo({ facts, runtime, kubeletVersion }: NodeStatusInputs): NodeSystemInfo {
  const { version } = runtime;
  return {
    machineID: facts.machineID,
    systemUUID: facts.systemUUID,
    bootID: facts.bootID,
    kernelVersion: facts.kernelVersion,
    osImage: facts.osImage,
    containerRuntimeVersion: `${version?.runtimeName ?? ""}://${version?.runtimeVersion || "Unknown"}`,
    kubeletVersion,
    kubeProxyVersion: "",
    operatingSystem: "linux",
    architecture: facts.architecture,
    ...(facts.swapBytes > 0 ? { swap: { capacity: facts.swapBytes } } : {}),
  };
}

function runtimeSections(runtime: RuntimeHealthState): Pick<NodeStatus, "runtimeHandlers" | "features"> {
  return {
    runtimeHandlers: runtime.handlers.map(({ name, recursiveReadOnlyMounts, userNamespaces }) => ({
      // The default handler has no name, and the API leaves an empty one out.
      ...(name === "" ? {} : { name }),
      features: { recursiveReadOnlyMounts, userNamespaces },
    })),
    features: { supplementalGroupsPolicy: runtime.supplementalGroupsPolicy },
  };
}

/** Resources that others (device plugins of an earlier agent, administrators) advertise through the API. */
function foreignResources(list: ResourceList | undefined): ResourceList {
  return Object.fromEntries(Object.entries(list ?? {}).filter(([name]) => isExtendedResource(name)));
}

/** True for names with a domain: resources that Kubernetes itself does not know. */
export function isExtendedResource(name: string): boolean {
  return name.includes("/") && !name.includes("kubernetes.io/");
}

function missingCapacity({ capacity, localStorageCapacityIsolation }: NodeStatusInputs): string[] {
  const needed = ["cpu", "memory", "pods", ...(localStorageCapacityIsolation ? ["ephemeral-storage"] : [])];
  return needed.filter((name) => capacity[name] === undefined);
}

function withProvidedNodeIPs(
  annotations: Record<string, string> | undefined,
  value: string | null | undefined,
): Record<string, string> {
  const result = { ...annotations };
  if (value === null) delete result[providedNodeIPAnnotation];
  else if (value !== undefined) result[providedNodeIPAnnotation] = value;
  return result;
}

function textsOf(problem: string | undefined): string[] {
  return problem === undefined ? [] : [problem];
}
