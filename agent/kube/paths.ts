import { AgentError } from "../lib/errors.ts";
import type { ObjectKey, Resource } from "./port.ts";
import type { KubeObject } from "./types.ts";

type Query = Record<string, string | number | boolean | undefined>;

/** Path of a resource's collection, in one namespace or in all (`namespace` undefined). */
export function collectionPath(resource: Resource<KubeObject>, namespace: string | undefined): string {
  const { group, version, plural, namespaced } = resource;
  const root = group === "" ? `/api/${version}` : `/apis/${group}/${version}`;
  return namespaced && namespace !== undefined && namespace !== ""
    ? `${root}/namespaces/${segment(namespace)}/${plural}`
    : `${root}/${plural}`;
}

/** Path of one object, or of its subresource. Throws Invalid for a namespaced resource without namespace. */
export function objectPath(resource: Resource<KubeObject>, key: ObjectKey, subresource?: string): string {
  requireNamespace(resource, key.namespace, key.name);
  const tail = subresource === undefined ? "" : `/${subresource}`;
  return `${collectionPath(resource, key.namespace)}/${segment(key.name)}${tail}`;
}

/** Throws Invalid if the resource lives in namespaces and none is given: the server would answer something confusing. */
export function requireNamespace(resource: Resource<KubeObject>, namespace: string | undefined, name: string): void {
  if (resource.namespaced && (namespace === undefined || namespace === "")) {
    throw new AgentError("Invalid", `${resource.kind} ${JSON.stringify(name)} has no namespace`);
  }
}

/** `path?a=1&b=2`, without the undefined parameters. */
export function withQuery(path: string, query: Query): string {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) if (value !== undefined) parameters.set(name, String(value));
  const text = parameters.toString();
  return text === "" ? path : `${path}?${text}`;
}

/** One path segment. An object's name can never leave its collection, whatever it contains. */
function segment(name: string): string {
  if (name === "" || name === "." || name === "..") {
    throw new AgentError("Invalid", `${JSON.stringify(name)} is not an object's name`);
  }
  return encodeURIComponent(name);
}
