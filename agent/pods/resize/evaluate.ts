import { isStaticPod, podRequests, qosClass, type ResourceContext } from "../../kube/pod-resources.ts";
import type { Pod } from "../../kube/types.ts";
import { admit } from "../admission/admit.ts";
import { fitsNode } from "../admission/fit.ts";
import type { AdmissionContext } from "../admission/port.ts";
import { amountOf, resizable, resizableContainers } from "./allocation.ts";

/** Why a resize can never be, in the words of the metric that counts them. */
export type InfeasibleDetail =
  | "static_pod"
  | "swap_limitation"
  | "guaranteed_pod_cpu_manager_static_policy"
  | "guaranteed_pod_memory_manager_static_policy"
  | "insufficient_node_allocatable";

/** What becomes of a resize. A deferred one is tried again; an infeasible one waits for another spec. */
export type ResizeVerdict =
  | { kind: "accepted" }
  | { kind: "deferred"; message: string }
  | { kind: "infeasible"; message: string; detail: InfeasibleDetail };

/** What of the configuration decides about resizes. */
export interface ResizePolicy {
  hasStaticCPUs: boolean;
  hasStaticMemory: boolean;
  resources: Pick<ResourceContext, "cgroupVersion" | "swapControllerAvailable" | "swapBehavior">;
}

/**
 * Whether a pod may have what its spec asks for now, in place of what it has. Pure.
 *
 * @param pod   with the resources that it asks for
 * @param given the same pod with those that it has
 */
export function evaluateResize(pod: Pod, given: Pod, context: AdmissionContext, policy: ResizePolicy): ResizeVerdict {
  return neverPossible(pod, given, policy) ?? tooMuch(pod, context) ?? fits(pod, context);
}

function neverPossible(pod: Pod, given: Pod, policy: ResizePolicy): ResizeVerdict | undefined {
  if (isStaticPod(pod)) return infeasible("In-place resize of static-pods is not supported", "static_pod");
  if (policy.resources.swapBehavior === "LimitedSwap" && changesSwap(pod, given, policy)) {
    return infeasible("In-place resize of containers with swap is not supported.", "swap_limitation");
  }
  if (qosClass(pod) !== "Guaranteed") return undefined;
  const static_ = (kind: "CPU" | "Memory", name: string) =>
    `Resize is infeasible for Guaranteed Pods alongside ${kind} Manager policy "${name}"`;
  if (policy.hasStaticCPUs && changesRequest(pod, given, "cpu")) {
    return infeasible(static_("CPU", "static"), "guaranteed_pod_cpu_manager_static_policy");
  }
  if (policy.hasStaticMemory && changesRequest(pod, given, "memory")) {
    return infeasible(static_("Memory", "Static"), "guaranteed_pod_memory_manager_static_policy");
  }
  return undefined;
}

// How much may be swapped follows from the memory request, and is only set when a container starts.
function changesSwap(pod: Pod, given: Pod, { resources }: ResizePolicy): boolean {
  const maySwap = resources.cgroupVersion === 2 && resources.swapControllerAvailable && qosClass(pod) === "Burstable";
  if (!maySwap) return false;
  return resizableContainers(pod.spec).some((container) => {
    const policy = container.resizePolicy?.find(({ resourceName }) => resourceName === "memory");
    if (policy?.restartPolicy === "RestartContainer") return false;
    const had = resizableContainers(given.spec).find(({ name }) => name === container.name);
    return requestOf(container, "memory") !== (had === undefined ? 0 : requestOf(had, "memory"));
  });
}

function changesRequest(pod: Pod, given: Pod, resource: "cpu" | "memory"): boolean {
  const had = new Map(resizableContainers(given.spec).map((container) => [container.name, container]));
  return resizableContainers(pod.spec).some((container) => {
    const old = had.get(container.name);
    return old !== undefined && requestOf(container, resource) !== requestOf(old, resource);
  });
}

function requestOf({ resources }: Pod["spec"]["containers"][number], name: string): number {
  return amountOf(resources?.requests, name) ?? 0;
}

// More than the node could ever give, whoever else leaves it.
function tooMuch(pod: Pod, { node }: AdmissionContext): ResizeVerdict | undefined {
  if (node === undefined) return undefined;
  const requests = podRequests(pod);
  for (const name of resizable.toReversed()) {
    const requested = requests[name] ?? 0;
    const capacity = amountOf(node.status?.allocatable, name) ?? 0;
    if (requested <= capacity) continue;
    const message = `Node didn't have enough capacity: ${name}, requested: ${requested}, capacity: ${capacity}`;
    return infeasible(message, "insufficient_node_allocatable");
  }
  return undefined;
}

function fits(pod: Pod, context: AdmissionContext): ResizeVerdict {
  const admission = admit(pod, context);
  if (admission.kind === "admitted") return { kind: "accepted" };
  if (admission.kind === "rejected") return { kind: "deferred", message: admission.rejection.message };
  // A critical pod has what it was admitted with: nobody is ended so that it gets more.
  const [misfit] = context.node === undefined ? [] : fitsNode(pod, context.node, context.others);
  return { kind: "deferred", message: misfit?.message ?? "" };
}

function infeasible(message: string, detail: InfeasibleDetail): ResizeVerdict {
  return { kind: "infeasible", message, detail };
}

/** One resize that waits for its turn. */
export interface PendingResize {
  /** With the resources that it asks for. */
  pod: Pod;
  /** With those that it has. */
  given: Pod;
  /** Unix ms since when it is known to wait; undefined if it was never evaluated. */
  sinceMs: number | undefined;
}

/** The order in which resizes get their turn: those that take nothing, then by priority, class, and time of waiting. */
export function inTurn<T extends PendingResize>(pending: readonly T[]): T[] {
  return pending.toSorted(
    (a, b) =>
      Number(asksForMore(a)) - Number(asksForMore(b)) ||
      (b.pod.spec.priority ?? 0) - (a.pod.spec.priority ?? 0) ||
      Number(qosClass(b.pod) === "Guaranteed") - Number(qosClass(a.pod) === "Guaranteed") ||
      (a.sinceMs ?? Number.MAX_SAFE_INTEGER) - (b.sinceMs ?? Number.MAX_SAFE_INTEGER),
  );
}

/** True if it wants to request more cpu or memory than it has. */
export function asksForMore({ pod, given }: Pick<PendingResize, "pod" | "given">): boolean {
  const [wants, has] = [podRequests(pod), podRequests(given)];
  return resizable.some((name) => (wants[name] ?? 0) > (has[name] ?? 0));
}

/** True if it wants to request less of cpu or memory than it has: others may find room then. */
export function givesBack({ pod, given }: Pick<PendingResize, "pod" | "given">): boolean {
  const [wants, has] = [podRequests(pod), podRequests(given)];
  return resizable.some((name) => (wants[name] ?? 0) < (has[name] ?? 0));
}
