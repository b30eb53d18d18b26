import type { Pod } from "../../../../agent/kube/types.ts";
import { isObject, type JsonObject } from "../json.ts";
import type { Registry } from "../registry.ts";
import { typed } from "../types.ts";

/**
 * Makes the claims of pods' `ephemeral` volumes from their templates, and deletes them with the pod. A claim of that name that
 * is somebody else's is left alone. Returns the function that stops it.
 */
export function startEphemeralClaimController(registry: Registry): () => void {
  const claims = registry.typeOf("", "persistentvolumeclaims");
  const each = ({ metadata, spec }: Pod, work: (name: string, template: JsonObject) => void) => {
    for (const { name, ephemeral } of spec.volumes ?? []) {
      const template = ephemeral?.volumeClaimTemplate;
      if (isObject(template)) work(`${metadata.name}-${name}`, template);
    }
  };
  const make = (pod: Pod) => {
    const { namespace = "", name: podName, uid = "" } = pod.metadata;
    each(pod, (name, { spec = {} }) => {
      if (registry.store.get(claims.storage, `${namespace}/${name}`) !== undefined) return;
      const ownerReferences = [{ apiVersion: "v1", kind: "Pod", name: podName, uid, controller: true }];
      const metadata = { name, namespace, ownerReferences };
      registry.create(claims, namespace, { apiVersion: "v1", kind: "PersistentVolumeClaim", metadata, spec });
    });
  };
  const remove = (pod: Pod) => {
    const { namespace = "", uid } = pod.metadata;
    each(pod, (name) => {
      const found = registry.store.get(claims.storage, `${namespace}/${name}`);
      if (found?.metadata.ownerReferences?.some((owner) => owner.uid === uid)) registry.delete(claims, namespace, name);
    });
  };
  for (const [, pod] of registry.store.list("pods")) make(typed<Pod>(pod));
  return registry.onChange(({ type, storage, object }) => {
    if (storage !== "pods") return;
    if (type === "ADDED") make(typed<Pod>(object));
    if (type === "DELETED") remove(typed<Pod>(object));
  });
}
