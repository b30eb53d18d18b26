import { objectRefs, volumeRefs } from "../volumes/object-refs.ts";
import type { Pod } from "../kube/types.ts";
import { specContainers } from "./names.ts";

/** A ConfigMap or Secret of the pod's own namespace. */
export interface ChangedObject {
  kind: "ConfigMap" | "Secret";
  name: string;
}

/**
 * Which steps of a pod, by key (see `actionKey`), may have failed for want of an object and may succeed when it changes; a key
 * that ends in "/" stands for all that begin with it. Empty for an object that the pod does not refer to. Pure.
 */
export function stepsNeeding(pod: Pod, { kind, name }: ChangedObject): string[] {
  const isMeant = (ref: ChangedObject) => ref.kind === kind && ref.name === name;
  const isForPulls = kind === "Secret" && (pod.spec.imagePullSecrets ?? []).some((secret) => secret.name === name);
  const volumes = (pod.spec.volumes ?? []).filter((volume) => volumeRefs(pod, [volume]).some(isMeant));
  const isOfThem = (volume: string | undefined) => volumes.some(({ name: own }) => own === volume);
  const starts = specContainers(pod).flatMap(({ container }) => {
    // As a pod of this one container: what its variables refer to.
    const alone: Pod = { metadata: pod.metadata, spec: { containers: [container] } };
    // A file that it mounts alone, or takes variables from, may not have been in the volume.
    const readsFiles =
      (container.volumeMounts ?? []).some((mount) => isOfThem(mount.name)) ||
      (container.env ?? []).some(({ valueFrom }) => isOfThem(valueFrom?.fileKeyRef?.volumeName));
    return readsFiles || objectRefs(alone).some(isMeant) ? [`start/${container.name}`] : [];
  });
  return [...(volumes.length > 0 ? ["volumes"] : []), ...(isForPulls ? ["image/"] : []), ...starts];
}

/** True if the step with this key is one of those that {@link stepsNeeding} names. */
export function isOneOf(key: string, steps: readonly string[]): boolean {
  return steps.some((step) => key === step || (step.endsWith("/") && key.startsWith(step)));
}
