import type { Node, Pod, Taint, Toleration } from "../../../../agent/kube/types.ts";
import type { Clock } from "../../../../agent/lib/clock.ts";
import type { Registry } from "../registry.ts";
import { bindPod } from "../subresources.ts";
import { typed } from "../types.ts";

/** The node for a pod: the first by name that is ready, schedulable and accepted by the pod's selector and tolerations. */
export function chooseNode(pod: Pod, nodes: readonly Node[]): string | undefined {
  const fits = nodes.filter(
    (node) => isReady(node) && node.spec?.unschedulable !== true && hasLabels(node, pod) && toleratesAll(pod, node),
  );
  return fits.map((node) => node.metadata.name).toSorted()[0];
}

function isReady(node: Node): boolean {
  return node.status?.conditions?.some((c) => c.type === "Ready" && c.status === "True") === true;
}

function hasLabels(node: Node, pod: Pod): boolean {
  const labels = node.metadata.labels ?? {};
  return Object.entries(pod.spec.nodeSelector ?? {}).every(([key, value]) => labels[key] === value);
}

function toleratesAll(pod: Pod, node: Node): boolean {
  const repelling = (node.spec?.taints ?? []).filter((t) => t.effect !== "PreferNoSchedule");
  return repelling.every((taint) => (pod.spec.tolerations ?? []).some((t) => tolerates(t, taint)));
}

function tolerates({ key = "", operator = "Equal", value = "", effect = "" }: Toleration, taint: Taint): boolean {
  if (effect !== "" && effect !== taint.effect) return false;
  if (operator === "Exists") return key === "" || key === taint.key;
  return key === taint.key && value === (taint.value ?? "");
}

/** Binds pods to nodes as they and their nodes appear. Returns the function that stops it. */
export function startBindController(registry: Registry, clock: Clock): () => void {
  const bindOne = (pod: Pod) => {
    const { namespace = "", name, deletionTimestamp } = pod.metadata;
    if (deletionTimestamp !== undefined || (pod.spec.nodeName ?? "") !== "") return;
    if (pod.spec.schedulerName !== "default-scheduler") return;
    const nodes = [...registry.store.values("nodes")].map((node) => typed<Node>(node));
    const nodeName = chooseNode(pod, nodes);
    if (nodeName !== undefined) bindPod(registry, namespace, name, nodeName, clock.now());
  };
  const bindAll = () => {
    for (const [, pod] of registry.store.list("pods")) bindOne(typed<Pod>(pod));
  };
  bindAll();
  return registry.onChange(({ type, storage, object }) => {
    if (type === "DELETED") return;
    // The present state, not the event's: the pod may have changed since.
    const current =
      storage === "pods"
        ? registry.store.get("pods", `${object.metadata.namespace}/${object.metadata.name}`)
        : undefined;
    if (current !== undefined && type === "ADDED") bindOne(typed<Pod>(current));
    if (storage === "nodes") bindAll();
  });
}
