import { uidOf } from "../kube/pod-resources.ts";
import type { Container, EphemeralContainer, ObjectReference, Pod } from "../kube/types.ts";

/** `name_namespace(uid)`: how messages of the field name a pod. */
export function describePod(pod: Pod): string {
  return `${pod.metadata.name}_${pod.metadata.namespace ?? ""}(${uidOf(pod)})`;
}

/** What events about the pod refer to; with `fieldPath` about one of its containers. */
export function podReference(pod: Pod, fieldPath?: string): ObjectReference {
  return {
    apiVersion: "v1",
    kind: "Pod",
    name: pod.metadata.name,
    ...(pod.metadata.namespace === undefined ? {} : { namespace: pod.metadata.namespace }),
    uid: uidOf(pod),
    ...(pod.metadata.resourceVersion === undefined ? {} : { resourceVersion: pod.metadata.resourceVersion }),
    ...(fieldPath === undefined ? {} : { fieldPath }),
  };
}

/** What events about the node itself refer to; by its name alone, as kubelet's do, so that tools find both. */
export function nodeReference(nodeName: string): ObjectReference {
  return { apiVersion: "v1", kind: "Node", name: nodeName, uid: nodeName };
}

export type ContainerKind = "init" | "regular" | "ephemeral";

/** One container of the spec and the list it stands in. */
export interface SpecContainer {
  kind: ContainerKind;
  container: Container | EphemeralContainer;
  /** `spec.containers{web}`: the fieldPath of events about it. */
  fieldPath: string;
}

/** All containers of a pod: init, regular, ephemeral, each in spec order. */
export function specContainers(pod: Pod): SpecContainer[] {
  const entries = (list: readonly Container[] | undefined, kind: ContainerKind, field: string): SpecContainer[] =>
    (list ?? []).map((container) => ({ kind, container, fieldPath: `spec.${field}{${container.name}}` }));
  return [
    ...entries(pod.spec.initContainers, "init", "initContainers"),
    ...entries(pod.spec.containers, "regular", "containers"),
    ...entries(pod.spec.ephemeralContainers, "ephemeral", "ephemeralContainers"),
  ];
}

// The API's default, for pods that have passed no API server.
const graceSecondsDefault = 30;

/** Seconds that the spec gives the pod's containers to end. */
export function graceSecondsOf({ spec }: Pod): number {
  return spec.terminationGracePeriodSeconds ?? graceSecondsDefault;
}

/** The pod's log directory below `podLogsDir`: `<namespace>_<name>_<uid>`. */
export function podLogDirName(pod: Pod): string {
  return `${pod.metadata.namespace ?? ""}_${pod.metadata.name}_${uidOf(pod)}`;
}
