import type { Node, ResourceList, Taint } from "../kube/types.ts";
import type { NodeFacts } from "./facts.ts";
import { isExtendedResource, platformLabels } from "./status.ts";

export interface InitialNodeOptions {
  nodeName: string;
  hostname: string;
  /** `--node-labels`; may override the default labels. */
  nodeLabels: Readonly<Record<string, string>>;
  registerWithTaints: readonly Taint[];
  cloudProvider: "" | "external";
  providerID: string;
  enableControllerAttachDetach: boolean;
}

const attachDetachAnnotation = "volumes.kubernetes.io/controller-managed-attach-detach";
const uninitializedTaint: Taint = {
  key: "node.cloudprovider.kubernetes.io/uninitialized",
  value: "true",
  effect: "NoSchedule",
};

// Labels whose value the agent corrects on a Node that is already there.
const defaultLabels = [
  "kubernetes.io/hostname",
  "topology.kubernetes.io/zone",
  "failure-domain.beta.kubernetes.io/zone",
  "topology.kubernetes.io/region",
  "failure-domain.beta.kubernetes.io/region",
  "node.kubernetes.io/instance-type",
  "beta.kubernetes.io/instance-type",
  "kubernetes.io/os",
  "beta.kubernetes.io/os",
  "kubernetes.io/arch",
  "beta.kubernetes.io/arch",
];

/** The Node to create when there is none, still without its status. */
export function buildInitialNode(options: InitialNodeOptions, facts: NodeFacts): Node {
  const { nodeName, hostname, nodeLabels, registerWithTaints, cloudProvider, providerID } = options;
  const taints = [...registerWithTaints, ...(cloudProvider === "external" ? [uninitializedTaint] : [])];
  return {
    apiVersion: "v1",
    kind: "Node",
    metadata: {
      name: nodeName,
      labels: { "kubernetes.io/hostname": hostname, ...platformLabels(facts), ...nodeLabels },
      ...(options.enableControllerAttachDetach ? { annotations: { [attachDetachAnnotation]: "true" } } : {}),
    },
    spec: {
      ...(taints.length > 0 ? { taints } : {}),
      ...(providerID === "" ? {} : { providerID }),
    },
  };
}

/**
 * A Node that was there before us, with what registration corrects: default labels, the attach-detach annotation, huge
 * page sizes, and extended resources when the devices behind them are gone. Taints, other labels, provider ID and
 * unschedulable stay as they are: they belong to whoever set them.
 */
export function reconcileExistingNode(
  existing: Node,
  initial: Node,
  options: { resetExtendedResources: boolean },
): Node {
  const labels = { ...existing.metadata.labels };
  for (const key of defaultLabels) {
    const value = initial.metadata.labels?.[key];
    if (value === "") delete labels[key];
    else if (value !== undefined) labels[key] = value;
  }
  const annotations = { ...existing.metadata.annotations };
  const attachDetach = initial.metadata.annotations?.[attachDetachAnnotation];
  if (attachDetach === undefined) delete annotations[attachDetachAnnotation];
  else annotations[attachDetachAnnotation] = attachDetach;
  const reconcile = (old: ResourceList | undefined, ours: ResourceList | undefined): ResourceList => {
    const list: ResourceList = {};
    for (const [name, quantity] of Object.entries(old ?? {})) {
      if (name.startsWith("hugepages-")) continue;
      list[name] = options.resetExtendedResources && isExtendedResource(name) ? "0" : quantity;
    }
    for (const [name, quantity] of Object.entries(ours ?? {})) if (name.startsWith("hugepages-")) list[name] = quantity;
    return list;
  };
  return {
    ...existing,
    metadata: { ...existing.metadata, labels, annotations },
    status: {
      ...existing.status,
      capacity: reconcile(existing.status?.capacity, initial.status?.capacity),
      allocatable: reconcile(existing.status?.allocatable, initial.status?.allocatable),
    },
  };
}
