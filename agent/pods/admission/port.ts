import type { Node, Pod } from "../../kube/types.ts";

/** Why a pod cannot run here. `reason` is one of kubelet's words, `message` is for people. */
export interface Rejection {
  reason: string;
  message: string;
}

/** Conditions that say that the node lacks something. */
export type NodePressure = "MemoryPressure" | "DiskPressure" | "PIDPressure";

/** What a pod's admission depends on beside the pod. */
export interface AdmissionContext {
  /** The Node as the API server has it; undefined while it is not known. */
  node: Node | undefined;
  /** Active pods on the node without the one in question; what they use counts. */
  others: readonly Pod[];
  pressures: readonly NodePressure[];
  /** `allowedUnsafeSysctls`: names, or prefixes that end in `*`. */
  allowedUnsafeSysctls: readonly string[];
  /** `6.1.0-18-amd64` */
  kernelVersion: string;
  isAppArmorEnabled: boolean;
  /** What the node's status says that it can do; undefined: it says nothing, and is asked for nothing. */
  declaredFeatures?: readonly string[] | undefined;
  /** Feature gate PodLevelResources; default: on. */
  knowsPodLevelResources?: boolean;
  /** Why the container runtime cannot run a pod; absent, or undefined for a pod: nothing speaks against it. */
  unsupportedByRuntime?: (pod: Pod) => string | undefined;
  /** A graceful shutdown of the machine is under way. */
  isShuttingDown: boolean;
}

/** Whether a pod may run here. `preempt`: if these others go first; `resource` is what it is short of before all. */
export type Admission =
  | { kind: "admitted" }
  | { kind: "rejected"; rejection: Rejection }
  | { kind: "preempt"; victims: readonly Pod[]; resource: string };
