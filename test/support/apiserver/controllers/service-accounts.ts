import type { Registry } from "../registry.ts";

/**
 * Gives each namespace its `default` ServiceAccount and the ConfigMap with the cluster's certificate authority, at
 * once when the namespace appears and again when someone deletes them. Returns the function that stops it.
 */
export function startServiceAccountController(registry: Registry, caCertificate: string): () => void {
  const accounts = registry.typeOf("", "serviceaccounts");
  const configMaps = registry.typeOf("", "configmaps");
  const ensure = (namespace: string) => {
    const found = registry.store.get("namespaces", namespace);
    if (found === undefined || found.metadata.deletionTimestamp !== undefined) return;
    if (registry.store.get("serviceaccounts", `${namespace}/default`) === undefined) {
      const metadata = { name: "default", namespace };
      registry.create(accounts, namespace, { apiVersion: "v1", kind: "ServiceAccount", metadata });
    }
    if (registry.store.get("configmaps", `${namespace}/kube-root-ca.crt`) === undefined) {
      const metadata = { name: "kube-root-ca.crt", namespace };
      const data = { "ca.crt": caCertificate };
      registry.create(configMaps, namespace, { apiVersion: "v1", kind: "ConfigMap", metadata, data });
    }
  };
  for (const { metadata } of [...registry.store.values("namespaces")]) ensure(metadata.name);
  return registry.onChange(({ type, storage, object }) => {
    if (storage === "namespaces" && type === "ADDED") ensure(object.metadata.name);
    const isOurs = storage === "serviceaccounts" || storage === "configmaps";
    if (isOurs && type === "DELETED" && object.metadata.namespace !== undefined) ensure(object.metadata.namespace);
  });
}
