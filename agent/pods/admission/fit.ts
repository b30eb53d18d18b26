import {
  allContainers,
  type Amounts,
  amountsOf,
  isSidecar,
  isStaticPod,
  podRequests,
} from "../../kube/pod-resources.ts";
import type { ContainerPort, Node, Pod } from "../../kube/types.ts";
import { matchesNode } from "./node-affinity.ts";
import type { Rejection } from "./port.ts";
import { tolerates } from "./taints.ts";

/** So much of a resource is missing; `cpu` in milli-CPU. */
export interface Shortage {
  resource: string;
  amount: number;
}

/** One reason why a pod does not fit. `short`: it is a resource that others use. */
export interface Misfit extends Rejection {
  short?: Shortage;
}

/** Everything for which a pod does not fit on the node, in the order in which kubelet looks. */
export function fitsNode(pod: Pod, node: Node, others: readonly Pod[]): Misfit[] {
  const misfits = resourceMisfits(pod, node, others);
  const fails = (reason: string, why: string) =>
    misfits.push({ reason, message: `Predicate ${reason} failed: ${why}` });
  if (!matchesNode(pod, node)) fails("NodeAffinity", "node(s) didn't match Pod's node affinity/selector");
  const { nodeName = "" } = pod.spec;
  if (nodeName !== "" && nodeName !== node.metadata.name) {
    fails("NodeName", "node(s) didn't match the requested node name");
  }
  if (portsCollide(pod, others)) fails("NodePorts", "node(s) didn't have free ports for the requested pod ports");
  if (!isStaticPod(pod) && !toleratesAll(pod, node)) {
    fails("TaintToleration", "node(s) had taints that the pod didn't tolerate");
  }
  return misfits;
}

// Extended resources that the node does not know are not asked for: they are the cluster's, or their plugin is not here yet.
function resourceMisfits(pod: Pod, { status }: Node, present: readonly Pod[]): Misfit[] {
  const allocatable = amountsOf(status?.allocatable);
  const used = usedBy(present);
  const misfits: Misfit[] = [];
  const check = (resource: string, requested: number) => {
    const capacity = allocatable[resource] ?? 0;
    const inUse = used[resource] ?? 0;
    if (requested <= capacity - inUse) return;
    const numbers = `requested: ${requested}, used: ${inUse}, capacity: ${capacity}`;
    misfits.push({
      reason: `OutOf${resource}`,
      message: `Node didn't have enough resource: ${resource}, ${numbers}`,
      short: { resource, amount: requested - (capacity - inUse) },
    });
  };
  check("pods", 1);
  const requests = podRequests(pod);
  const others = Object.keys(requests).filter((name) => !firstAsked.includes(name) && name !== "pods");
  for (const name of [...firstAsked, ...others.sort()]) {
    const requested = requests[name] ?? 0;
    if (requested > 0 && (allocatable[name] !== undefined || !isExtended(name))) check(name, requested);
  }
  return misfits;
}

const firstAsked = ["cpu", "memory", "ephemeral-storage"];

/** True for a resource that has a domain which is not Kubernetes' own: `example.com/gpu`. */
function isExtended(name: string): boolean {
  return name.includes("/") && !name.includes("kubernetes.io/") && !name.startsWith("requests.");
}

function usedBy(pods: readonly Pod[]): Amounts {
  const used: Amounts = { pods: pods.length };
  for (const pod of pods) {
    for (const [name, amount] of Object.entries(podRequests(pod))) used[name] = (used[name] ?? 0) + amount;
  }
  return used;
}

function portsCollide(pod: Pod, others: readonly Pod[]): boolean {
  const wanted = hostPorts(pod);
  if (wanted.length === 0) return false;
  const taken = others.flatMap(hostPorts);
  return wanted.some((port) => taken.some((other) => collides(port, other)));
}

function hostPorts(pod: Pod): ContainerPort[] {
  const inits = new Set((pod.spec.initContainers ?? []).filter((container) => !isSidecar(container)));
  return allContainers(pod)
    .filter((container) => !inits.has(container))
    .flatMap(({ ports = [] }) => ports.filter(({ hostPort = 0 }) => hostPort > 0));
}

function collides(a: ContainerPort, b: ContainerPort): boolean {
  if (a.hostPort !== b.hostPort || (a.protocol ?? "TCP") !== (b.protocol ?? "TCP")) return false;
  const [x, y] = [hostIP(a), hostIP(b)];
  return x === y || x === anyIP || y === anyIP;
}

const anyIP = "0.0.0.0";

function hostIP({ hostIP: ip = "" }: ContainerPort): string {
  return ip === "" ? anyIP : ip;
}

function toleratesAll({ spec }: Pod, node: Node): boolean {
  return (node.spec?.taints ?? [])
    .filter(({ effect }) => effect === "NoExecute")
    .every((taint) => (spec.tolerations ?? []).some((toleration) => tolerates(toleration, taint)));
}
