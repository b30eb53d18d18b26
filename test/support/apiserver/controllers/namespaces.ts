import type { Registry } from "../registry.ts";
import { resourceTypes } from "../resources.ts";

/** The namespaces every cluster has. */
export const systemNamespaces = ["default", "kube-system", "kube-public", "kube-node-lease"];

/**
 * Empties a namespace that is being deleted, and lets it go when nothing is left. Pods leave gracefully, so their node
 * has its part in it. Returns the function that stops it.
 */
export function startNamespaceController(registry: Registry): () => void {
  const type = registry.typeOf("", "namespaces");
  const inside = resourceTypes.filter((r) => r.namespaced && r.toServed === undefined);
  const sweep = (namespace: string) => {
    const found = registry.store.get("namespaces", namespace);
    if (found?.metadata.deletionTimestamp === undefined) return;
    let isEmpty = true;
    for (const resource of inside) {
      for (const [, object] of registry.store.list(resource.storage)) {
        if (object.metadata.namespace !== namespace) continue;
        if (!registry.delete(resource, namespace, object.metadata.name).isGone) isEmpty = false;
      }
    }
    if (isEmpty) registry.modify(type, "", namespace, (object) => (object["spec"] = {}));
  };
  return registry.onChange(({ type: change, storage, object }) => {
    if (storage === "namespaces") {
      if (change === "MODIFIED") sweep(object.metadata.name);
    } else if (change === "DELETED" && object.metadata.namespace !== undefined) {
      sweep(object.metadata.namespace);
    }
  });
}
