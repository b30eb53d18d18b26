import type { Condition, Lease, Node, Taint } from "../../../../agent/kube/types.ts";
import type { Clock, Timer } from "../../../../agent/lib/clock.ts";
import { jsonEqual } from "../json.ts";
import type { Registry } from "../registry.ts";
import { typed } from "../types.ts";

const notReadyKey = "node.kubernetes.io/not-ready";
const unreachableKey = "node.kubernetes.io/unreachable";
// --node-monitor-period of the controller manager.
const periodMs = 5_000;

/** What the node should look like to others: its Ready condition and the taints that follow from it. Pure. */
export function decideNode(
  node: Node,
  lease: Lease | undefined,
  nowMs: number,
  graceMs: number,
): { conditions: Condition[]; taints: Taint[] } {
  const heardAtMs = Math.max(
    Date.parse(lease?.spec?.renewTime ?? "") || 0,
    Date.parse(node.metadata.creationTimestamp ?? "") || 0,
  );
  const isLost = nowMs - heardAtMs > graceMs;
  const conditions = (node.status?.conditions ?? []).map((condition) => {
    if (!isLost || condition.status === "Unknown") return condition;
    return {
      ...condition,
      status: "Unknown" as const,
      reason: "NodeStatusUnknown",
      message: "Kubelet stopped posting node status.",
      lastTransitionTime: `${new Date(nowMs).toISOString().slice(0, 19)}Z`,
    };
  });
  const ready = conditions.find((c) => c.type === "Ready")?.status;
  const key = ready === "True" ? undefined : ready === "Unknown" ? unreachableKey : notReadyKey;
  const timeAdded = `${new Date(nowMs).toISOString().slice(0, 19)}Z`;
  const kept = (node.spec?.taints ?? []).filter((t) => ![notReadyKey, unreachableKey].includes(t.key) || t.key === key);
  const added: Taint[] =
    key === undefined
      ? []
      : (["NoSchedule", "NoExecute"] as const)
          .filter((effect) => !kept.some((t) => t.key === key && t.effect === effect))
          .map((effect) => ({ key, effect, timeAdded }));
  return { conditions, taints: [...kept, ...added] };
}

/** Marks nodes whose lease is stale, and taints nodes that are not ready. Returns the function that stops it. */
export function startNodeLifecycleController(registry: Registry, clock: Clock, graceMs: number): () => void {
  const nodes = registry.typeOf("", "nodes");
  const look = (name: string) => {
    const found = registry.store.get("nodes", name);
    if (found === undefined) return;
    const node = typed<Node>(found);
    const lease = registry.store.get("leases.coordination.k8s.io", `kube-node-lease/${name}`);
    const decided = decideNode(node, lease === undefined ? undefined : typed<Lease>(lease), clock.now(), graceMs);
    const isSame =
      jsonEqual(decided.conditions, node.status?.conditions ?? []) &&
      jsonEqual(decided.taints, node.spec?.taints ?? []);
    if (isSame) return;
    registry.modify(nodes, "", name, (object) => {
      const copy = typed<Node>(object);
      copy.status = { ...copy.status, conditions: decided.conditions };
      copy.spec = { ...copy.spec, taints: decided.taints };
    });
  };
  const lookAtAll = () => {
    for (const node of [...registry.store.values("nodes")]) look(node.metadata.name);
  };
  let timer: Timer;
  const tick = () => {
    lookAtAll();
    timer = clock.after(periodMs, tick);
  };
  tick();
  const unsubscribe = registry.onChange(({ storage, type, object }) => {
    if (storage === "nodes" && type !== "DELETED") look(object.metadata.name);
  });
  return () => {
    unsubscribe();
    timer.cancel();
  };
}
