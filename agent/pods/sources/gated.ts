import { isSidecar } from "../../kube/pod-resources.ts";
import type { Container, Pod } from "../../kube/types.ts";

/** Fields of pods that feature gates give a meaning to: where a gate is off, its field is as good as not there. */
export interface PodGates {
  /** `spec.hostnameOverride` */
  HostnameOverride: boolean;
  /** `restartPolicyRules`, and `restartPolicy` of containers that are no sidecars. */
  ContainerRestartRules: boolean;
  /** `lifecycle.stopSignal` */
  ContainerStopSignals: boolean;
}

/** The pod as a node with these gates understands it. Pure; a pod that has nothing of it comes back as it is. */
export function withoutGated(pod: Pod, gates: PodGates): Pod {
  const { hostnameOverride, ...rest } = pod.spec;
  const spec = gates.HostnameOverride || hostnameOverride === undefined ? pod.spec : rest;
  const containers = adapted(spec.containers, gates, () => false);
  const inits = spec.initContainers === undefined ? undefined : adapted(spec.initContainers, gates, isSidecar);
  if (spec === pod.spec && containers === spec.containers && inits === spec.initContainers) return pod;
  return { ...pod, spec: { ...spec, containers, ...(inits === undefined ? {} : { initContainers: inits }) } };
}

function adapted(
  containers: Container[],
  gates: PodGates,
  keepsPolicy: (container: Container) => boolean,
): Container[] {
  const now = containers.map((container) => {
    const signalled = gates.ContainerStopSignals ? container : withoutSignal(container);
    return gates.ContainerRestartRules ? signalled : withoutRules(signalled, keepsPolicy(container));
  });
  return now.every((container, index) => container === containers[index]) ? containers : now;
}

function withoutSignal(container: Container): Container {
  if (container.lifecycle?.stopSignal === undefined) return container;
  const { stopSignal: _, ...lifecycle } = container.lifecycle;
  return { ...container, lifecycle };
}

function withoutRules(container: Container, keepsPolicy: boolean): Container {
  const { restartPolicy, restartPolicyRules, ...rest } = container;
  if (restartPolicyRules === undefined && (restartPolicy === undefined || keepsPolicy)) return container;
  return { ...rest, ...(restartPolicy !== undefined && keepsPolicy ? { restartPolicy } : {}) };
}
