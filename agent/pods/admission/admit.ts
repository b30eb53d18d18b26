import { allContainers, isCriticalPod, qosClass } from "../../kube/pod-resources.ts";
import type { Pod, SecurityProfileSpec } from "../../kube/types.ts";
import { fitsNode, type Misfit } from "./fit.ts";
import type { Admission, AdmissionContext, NodePressure, Rejection } from "./port.ts";
import { missingFeatures } from "./features.ts";
import { choosePreempted } from "./preemption.ts";
import { forbiddenSysctl } from "./sysctls.ts";
import { tolerates } from "./taints.ts";

/**
 * Decides whether a pod that is bound to the node may run on it. The checks and their order are kubelet's; the first that
 * fails says why. Pure.
 */
export function admit(pod: Pod, context: AdmissionContext): Admission {
  const early = byPressure(pod, context.pressures) ?? forbiddenSysctl(pod, context);
  if (early !== undefined) return { kind: "rejected", rejection: early };
  const fit = byPredicates(pod, context);
  if (fit.kind === "rejected") return fit;
  // Before anybody is ended to make room: that is no use to a pod which is turned away all the same.
  const late =
    byAppArmor(pod, context) ??
    byPodLevelResources(pod, context) ??
    byFeatures(pod, context) ??
    byRuntime(pod, context) ??
    byShutdown(context);
  return late === undefined ? fit : { kind: "rejected", rejection: late };
}

const memoryPressureTaint = { key: "node.kubernetes.io/memory-pressure", effect: "NoSchedule" } as const;

// A node that is short of something takes no more pods; of memory, none that nothing is known of.
function byPressure(pod: Pod, pressures: readonly NodePressure[]): Rejection | undefined {
  if (pressures.length === 0 || isCriticalPod(pod)) return undefined;
  if (pressures.every((pressure) => pressure === "MemoryPressure")) {
    if (qosClass(pod) !== "BestEffort") return undefined;
    if ((pod.spec.tolerations ?? []).some((toleration) => tolerates(toleration, memoryPressureTaint))) return undefined;
  }
  return { reason: "Evicted", message: `The node had condition: [${pressures.join(" ")}]. ` };
}

function byPredicates(pod: Pod, context: AdmissionContext): Admission {
  const { node } = context;
  if (node === undefined) {
    return rejected("InvalidNodeInfo", "Kubelet cannot get node info.");
  }
  const label = pod.metadata.labels?.["kubernetes.io/os"];
  if (label !== undefined && label !== "linux") {
    const message = `Failed to admit pod as the \`kubernetes.io/os\` label doesn't match node label`;
    return rejected("PodOSSelectorNodeLabelDoesNotMatch", message);
  }
  if (pod.spec.os !== undefined && pod.spec.os.name !== "linux") {
    return rejected("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS");
  }
  if (
    pod.spec.securityContext?.supplementalGroupsPolicy === "Strict" &&
    node.status?.features?.supplementalGroupsPolicy !== true
  ) {
    const message = "SupplementalGroupsPolicy=Strict is not supported in this node";
    return rejected("SupplementalGroupsPolicyNotSupported", message);
  }
  const misfits = fitsNode(pod, node, context.others);
  const [first] = misfits;
  if (first === undefined) return { kind: "admitted" };
  if (isCriticalPod(pod)) return makeRoom(pod, misfits, context);
  return rejected(first.reason, first.message);
}

const noVictims =
  "Unexpected error while attempting to recover from admission failure: preemption: error finding a set of pods to preempt: no set of running pods found to reclaim resources";

// A critical pod that lacks nothing but resources gets them from others.
function makeRoom(pod: Pod, misfits: readonly Misfit[], { others }: AdmissionContext): Admission {
  const other = misfits.find(({ short }) => short === undefined);
  if (other !== undefined) return rejected(other.reason, other.message);
  const needs = misfits.flatMap(({ short }) => (short === undefined ? [] : [short]));
  const preemption = choosePreempted(pod, needs, others);
  if (preemption.kind === "enough") {
    return { kind: "preempt", victims: preemption.victims, resource: needs[0]?.resource ?? "" };
  }
  const short = preemption.short.map(({ resource, amount }) => `(res: ${resource}, q: ${amount}), `).join("");
  return rejected("UnexpectedAdmissionError", `${noVictims}: [${short}]`);
}

function byAppArmor(pod: Pod, { isAppArmorEnabled }: AdmissionContext): Rejection | undefined {
  const phase = pod.status?.phase ?? "Pending";
  if (phase !== "Pending") return undefined; // admitted once: a restart of the agent does not take it back
  const profiles = [
    pod.spec.securityContext?.appArmorProfile,
    ...allContainers(pod).map(({ securityContext }) => securityContext?.appArmorProfile),
    ...annotatedProfiles(pod),
  ].filter((profile) => profile !== undefined && profile.type !== "Unconfined");
  if (profiles.length === 0) return undefined;
  if (!isAppArmorEnabled) {
    return { reason: "AppArmor", message: "Cannot enforce AppArmor: AppArmor is not enabled on the host" };
  }
  const isUnnamed = profiles.some(
    (profile) => profile?.type === "Localhost" && (profile.localhostProfile ?? "") === "",
  );
  return isUnnamed
    ? { reason: "AppArmor", message: "Cannot enforce AppArmor: localhost profile name is missing" }
    : undefined;
}

const appArmorAnnotation = "container.apparmor.security.beta.kubernetes.io/";

function annotatedProfiles({ metadata }: Pod): SecurityProfileSpec[] {
  return Object.entries(metadata.annotations ?? {}).flatMap(([key, value]): SecurityProfileSpec[] => {
    if (!key.startsWith(appArmorAnnotation)) return [];
    if (value === "unconfined" || value === "") return [{ type: "Unconfined" }];
    if (value.startsWith("localhost/")) {
      return [{ type: "Localhost", localhostProfile: value.slice("localhost/".length) }];
    }
    return [{ type: "RuntimeDefault" }];
  });
}

// Without them its containers would have what nobody meant them to have.
function byPodLevelResources(
  { spec }: Pod,
  { knowsPodLevelResources = true }: AdmissionContext,
): Rejection | undefined {
  const { requests = {}, limits = {} } = spec.resources ?? {};
  if (knowsPodLevelResources || Object.keys({ ...requests, ...limits }).length === 0) return undefined;
  const message = "Pod has resources of its own, and feature gate PodLevelResources is off on this node";
  return { reason: "PodLevelResourcesNotSupported", message };
}

function byFeatures(pod: Pod, { declaredFeatures }: AdmissionContext): Rejection | undefined {
  const missing = missingFeatures(pod, declaredFeatures);
  if (missing.length === 0) return undefined;
  const message = `Pod requires node features that are not available: ${missing.join(", ")}`;
  return { reason: "PodFeatureUnsupported", message };
}

// It would fail all the same, again and again, and nobody would look for the cause in the choice of a runtime.
function byRuntime(pod: Pod, { unsupportedByRuntime }: AdmissionContext): Rejection | undefined {
  const why = unsupportedByRuntime?.(pod);
  if (why === undefined) return undefined;
  return { reason: "PodFeatureUnsupported", message: `This node's container runtime cannot run the pod: ${why}` };
}

function byShutdown({ isShuttingDown }: AdmissionContext): Rejection | undefined {
  if (!isShuttingDown) return undefined;
  return { reason: "NodeShutdown", message: "Pod was rejected as the node is shutting down." };
}

function rejected(reason: string, message: string): Admission {
  return { kind: "rejected", rejection: { reason, message } };
}
