import { allContainers, namespaceOf } from "../kube/pod-resources.ts";
import type { Pod, Volume } from "../kube/types.ts";

/** A ConfigMap or Secret that a pod refers to. */
export interface ObjectRef {
  kind: "ConfigMap" | "Secret";
  namespace: string;
  name: string;
}

/** `Kind/namespace/name`: equal references have equal keys. */
export function refKey(ref: ObjectRef): string {
  return `${ref.kind}/${ref.namespace}/${ref.name}`;
}

/**
 * Every ConfigMap and Secret that a pod refers to, each once: variables of all containers, volumes (used or not), pull
 * secrets. References without a name are left out.
 */
export function objectRefs(pod: Pod): ObjectRef[] {
  const found: FoundName[] = [];
  for (const container of allContainers(pod)) {
    for (const { configMapRef, secretRef } of container.envFrom ?? []) {
      found.push(["ConfigMap", configMapRef?.name], ["Secret", secretRef?.name]);
    }
    for (const { valueFrom } of container.env ?? []) {
      found.push(["ConfigMap", valueFrom?.configMapKeyRef?.name], ["Secret", valueFrom?.secretKeyRef?.name]);
    }
  }
  for (const volume of pod.spec.volumes ?? []) found.push(...namesIn(volume));
  for (const { name } of pod.spec.imagePullSecrets ?? []) found.push(["Secret", name]);
  return unique(pod, found);
}

/** ConfigMaps and Secrets that these volumes are made from, or, if they are inline CSI volumes, published with. */
export function volumeRefs(pod: Pod, volumes: readonly Volume[]): ObjectRef[] {
  return unique(pod, volumes.flatMap(namesIn));
}

type FoundName = [kind: ObjectRef["kind"], name: string | undefined];

function namesIn(volume: Volume): FoundName[] {
  const found: FoundName[] = [
    ["ConfigMap", volume.configMap?.name],
    ["Secret", volume.secret?.secretName],
    ["Secret", volume.csi?.nodePublishSecretRef?.name],
  ];
  for (const { configMap, secret } of volume.projected?.sources ?? []) {
    found.push(["ConfigMap", configMap?.name], ["Secret", secret?.name]);
  }
  return found;
}

function unique(pod: Pod, found: readonly FoundName[]): ObjectRef[] {
  const namespace = namespaceOf(pod);
  const byKey = new Map<string, ObjectRef>();
  for (const [kind, name] of found) {
    if (name === undefined || name === "") continue;
    const ref: ObjectRef = { kind, namespace, name };
    byKey.set(refKey(ref), ref);
  }
  return [...byKey.values()];
}
