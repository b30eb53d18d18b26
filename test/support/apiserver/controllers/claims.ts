import type { PersistentVolume, PersistentVolumeClaim } from "../../../../agent/kube/types.ts";
import type { Registry } from "../registry.ts";
import { typed } from "../types.ts";

/**
 * Stands in for the volume controller: a claim that names its volume (`spec.volumeName`) is bound to it as soon as both are there.
 * Nothing is provisioned or chosen. Returns the function that stops it.
 */
export function startClaimController(registry: Registry): () => void {
  const claims = registry.typeOf("", "persistentvolumeclaims");
  const volumes = registry.typeOf("", "persistentvolumes");
  const bind = (claim: PersistentVolumeClaim) => {
    const { namespace = "", name, uid = "" } = claim.metadata;
    const { volumeName = "" } = claim.spec ?? {};
    const found = registry.store.get("persistentvolumes", volumeName);
    if (found === undefined || claim.status?.phase === "Bound") return;
    const { claimRef, capacity = {}, accessModes = [] } = typed<PersistentVolume>(found).spec;
    const isOurs = claimRef === undefined || (claimRef.namespace === namespace && claimRef.name === name);
    if (!isOurs || (claimRef?.uid ?? uid) !== uid) return;
    registry.modify(volumes, "", volumeName, (object) => {
      const volume = typed<PersistentVolume>(object);
      volume.spec.claimRef = { apiVersion: "v1", kind: "PersistentVolumeClaim", namespace, name, uid };
      volume.status = { phase: "Bound" };
    });
    registry.modify(claims, namespace, name, (object) => {
      typed<PersistentVolumeClaim>(object).status = { phase: "Bound", capacity, accessModes };
    });
  };
  const bindAll = () => {
    for (const [, claim] of registry.store.list("persistentvolumeclaims")) bind(typed<PersistentVolumeClaim>(claim));
  };
  bindAll();
  return registry.onChange(({ type, storage }) => {
    if (type !== "ADDED" && type !== "MODIFIED") return;
    if (storage === "persistentvolumeclaims" || storage === "persistentvolumes") bindAll();
  });
}
