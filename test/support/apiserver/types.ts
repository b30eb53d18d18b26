import type { KubeObject, ObjectMeta } from "../../../agent/kube/types.ts";

/** Any object as the server keeps it. Kept objects are shared and never mutated: a change is a new object. */
export interface ApiObject {
  apiVersion: string;
  kind: string;
  metadata: ObjectMeta;
  [field: string]: unknown;
}

/** One resource the server serves. */
export interface ResourceType {
  /** "" for the core group. */
  readonly group: string;
  readonly version: string;
  readonly plural: string;
  readonly singular: string;
  readonly kind: string;
  readonly namespaced: boolean;
  readonly shortNames: readonly string[];
  readonly categories: readonly string[];
  /** Has a status subresource, and a main PUT or PATCH leaves the status alone. */
  readonly hasStatus: boolean;
  /** Other subresources, for discovery. */
  readonly subresources: readonly string[];
  /** Counts `metadata.generation` up when one of these top-level fields changes; undefined: has no generation. */
  readonly generationOf?: readonly string[];
  /** Objects live under this key of the store; two resources may show the same objects. */
  readonly storage: string;
  /** PUT of an unknown name creates it. */
  readonly createOnUpdate: boolean;
  /** PUT without a resourceVersion is allowed. */
  readonly unconditionalUpdate: boolean;
  /** Served version of a stored object, and back; absent where they are the same. */
  readonly toServed?: (stored: ApiObject) => ApiObject;
  readonly toStored?: (served: ApiObject) => ApiObject;
}

/** The same JSON, seen as one of the agent's typed objects. Shapes were checked when it was written. */
export function typed<T extends KubeObject>(object: ApiObject): T {
  return object as unknown as T;
}

/** A typed object, seen as the server's JSON. */
export function untyped(object: KubeObject): ApiObject {
  return object as unknown as ApiObject;
}

/** Who sends a request. */
export interface User {
  readonly name: string;
  readonly uid?: string;
  readonly groups: readonly string[];
  readonly extra?: Readonly<Record<string, readonly string[]>>;
}

/** What a request wants to do, as authorizers see it. */
export interface AccessAttributes {
  readonly user: User;
  readonly verb: string;
  readonly group: string;
  readonly resource: string;
  readonly subresource: string;
  readonly namespace: string;
  readonly name: string;
  /** Set for requests that are not about a resource, `/version` for instance. */
  readonly path?: string;
}
