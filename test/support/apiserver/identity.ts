import { isObject } from "./json.ts";
import { apiVersionOf, resourceTypes } from "./resources.ts";
import { badRequest } from "./status.ts";
import type { ApiObject, ResourceType } from "./types.ts";

/** Completes and checks kind, version and namespace of a sent object, which it changes. Throws 400. */
export function checkIdentity(resource: ResourceType, namespace: string, object: ApiObject): void {
  const wanted = apiVersionOf(resource);
  object.kind ??= resource.kind;
  object.apiVersion ??= wanted;
  const storedVersions = resourceTypes.filter((r) => r.storage === resource.storage).map(apiVersionOf);
  if (object.kind !== resource.kind || !storedVersions.includes(object.apiVersion)) {
    throw badRequest(
      `${object.kind} in version "${object.apiVersion}" cannot be handled as a ${resource.kind}: ` +
        `no kind "${object.kind}" is registered for this path`,
    );
  }
  if (!isObject(object.metadata)) object.metadata = { name: "" };
  const own = object.metadata.namespace ?? "";
  if (resource.namespaced && own !== "" && own !== namespace) {
    throw badRequest("the namespace of the provided object does not match the namespace sent on the request");
  }
  if (!resource.namespaced) delete object.metadata.namespace;
  delete (object.metadata as { managedFields?: unknown }).managedFields;
}
