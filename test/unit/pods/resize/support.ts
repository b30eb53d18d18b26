import type { Container, Node, Pod, PodSpec, ResourceRequirements } from "../../../../agent/kube/types.ts";
import type { AdmissionContext } from "../../../../agent/pods/admission/port.ts";
import type { ResizePolicy } from "../../../../agent/pods/resize/evaluate.ts";
import { podOf } from "../support.ts";

export const node: Node = {
  metadata: { name: "node1" },
  status: { allocatable: { cpu: "2", memory: "1Gi", pods: "10" } },
};

export const admission: Omit<AdmissionContext, "others"> = {
  node,
  pressures: [],
  allowedUnsafeSysctls: [],
  kernelVersion: "6.1.0",
  isAppArmorEnabled: false,
  isShuttingDown: false,
};

export const policy: ResizePolicy = {
  hasStaticCPUs: false,
  hasStaticMemory: false,
  resources: { cgroupVersion: 2, swapControllerAvailable: true, swapBehavior: "NoSwap" },
};

export const requests = (cpu: string, memory: string): ResourceRequirements => ({ requests: { cpu, memory } });
export const both = (cpu: string, memory: string): ResourceRequirements => ({
  requests: { cpu, memory },
  limits: { cpu, memory },
});

export const sized = (name: string, resources: ResourceRequirements, more: Partial<Container> = {}): Container => ({
  name,
  image: "image:1",
  resources,
  ...more,
});

/** A pod whose container `app` has these resources. */
export function sizedPod(name: string, resources: ResourceRequirements, spec: Partial<PodSpec> = {}): Pod {
  return podOf({ containers: [sized("app", resources)], ...spec }, { name, uid: name });
}

/** The pod after somebody asked for other resources of `app`. */
export function asking(pod: Pod, resources: ResourceRequirements): Pod {
  const containers = pod.spec.containers.map((one) => (one.name === "app" ? { ...one, resources } : one));
  const generation = (pod.metadata.generation ?? 0) + 1;
  return { ...pod, metadata: { ...pod.metadata, generation }, spec: { ...pod.spec, containers } };
}
