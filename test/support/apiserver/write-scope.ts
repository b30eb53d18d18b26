import type { ObjectMeta, Pod } from "../../../agent/kube/types.ts";
import { objectAt } from "./json.ts";
import { applyEphemeralContainerDefaults } from "./pod-defaults.ts";
import { resized } from "./pod-resize.ts";
import { type ApiObject, type ResourceType, typed } from "./types.ts";

/**
 * The object after a write: of `input`, only the part that the resource (no `subresource`) or the subresource may touch.
 */
export function scopedWrite(
  resource: ResourceType,
  old: ApiObject,
  input: ApiObject,
  subresource: string | undefined,
): ApiObject {
  switch (subresource) {
    case undefined: {
      if (!resource.hasStatus) return input;
      const next = { ...input };
      if (old["status"] === undefined) {
        delete next["status"];
      } else {
        next["status"] = old["status"];
      }
      return next;
    }
    case "status":
    case "approval":
      return { ...old, ...(input["status"] === undefined ? {} : { status: input["status"] }) };
    case "ephemeralcontainers": {
      const containers = typed<Pod>(input).spec.ephemeralContainers ?? [];
      applyEphemeralContainerDefaults(containers);
      return { ...old, spec: { ...objectAt(old, "spec"), ephemeralContainers: containers } };
    }
    case "resize":
      return { ...old, spec: resized(typed<Pod>(old), typed<Pod>(input)) };
    default:
      return input;
  }
}

/** Metadata after a write: labels, annotations, finalizers and owners may change; the rest is the server's. */
export function updatedMetadata(old: ObjectMeta, input: ObjectMeta): ObjectMeta {
  const next: ObjectMeta = { ...old };
  for (const field of ["labels", "annotations", "finalizers", "ownerReferences"] as const) {
    const value = input[field];
    const isEmpty = value === undefined || value === null || Object.keys(value).length === 0;
    if (isEmpty) {
      delete next[field];
    } else {
      Object.assign(next, { [field]: value });
    }
  }
  return next;
}
