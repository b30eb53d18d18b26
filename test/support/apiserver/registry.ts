import { randomUUID } from "node:crypto";
import type { Clock } from "../../../agent/lib/clock.ts";
import type { ObjectMeta, Pod } from "../../../agent/kube/types.ts";
import { applyConfiguration } from "./apply.ts";
import { decideDelete, type DeleteOptions } from "./deletion.ts";
import { checkIdentity } from "./identity.ts";
import { isObject, jsonEqual, objectAt } from "./json.ts";
import { jsonPatch, mergePatch } from "./patch.ts";
import { apiVersionOf, resourceOf } from "./resources.ts";
import { validateResize } from "./pod-resize.ts";
import type { ServiceNetwork } from "./service-network.ts";
import {
  ApiError,
  alreadyExists,
  badRequest,
  conflict,
  type FieldError,
  forbidden,
  invalid,
  invalidValue,
  modified,
  notFound,
  uidMismatch,
} from "./status.ts";
import type { Store, StoreEvent } from "./store.ts";
import { strategicMerge } from "./strategic-merge.ts";
import { mergeSchemaOf } from "./strategic-schema.ts";
import { randomName, type StrategyContext, strategyOf } from "./strategies.ts";
import { type ApiObject, type ResourceType, typed } from "./types.ts";
import { scopedWrite, updatedMetadata } from "./write-scope.ts";
import { checkShape } from "./shape.ts";
import { validateMetadata } from "./validation.ts";

export interface RegistryOptions {
  clock: Clock;
  network: ServiceNetwork;
  serviceAccountAdmission: boolean;
  clusterCIDR: string | undefined;
  taintNewNodes: boolean;
}

export interface WriteOptions {
  dryRun?: boolean;
  /** A change of the spec that does not count as one of what is wanted: binding. */
  keepGeneration?: boolean;
  subresource?: string;
}

export interface PatchOptions extends WriteOptions {
  type: "strategic" | "merge" | "json" | "apply";
  /** Who applies; needed for "apply" only. */
  fieldManager?: string;
}

/** Namespaces that can not be deleted. */
const permanentNamespaces = ["default", "kube-system", "kube-public"];

/**
 * The API's verbs on stored objects: defaults, validation, optimistic concurrency, generations, graceful deletion.
 * Synchronous, so that each call is one step that nobody sees half of. Throws ApiError.
 */
export class Registry {
  readonly store: Store;
  readonly network: ServiceNetwork;
  readonly #options: RegistryOptions;
  /** What each field manager applied last, by object UID and manager. */
  readonly #applied = new Map<string, Map<string, unknown>>();

  constructor(store: Store, options: RegistryOptions) {
    this.store = store;
    this.network = options.network;
    this.#options = options;
  }

  /** The stored object, or throws 404. */
  get(resource: ResourceType, namespace: string, name: string): ApiObject {
    const found = this.store.get(resource.storage, keyFor(resource, namespace, name));
    if (found === undefined) throw notFound(resource, name);
    return found;
  }

  create(resource: ResourceType, namespace: string, input: ApiObject, options: WriteOptions = {}): ApiObject {
    const object = structuredClone(input);
    checkIdentity(resource, namespace, object);
    const meta = object.metadata;
    if (meta.resourceVersion !== undefined && meta.resourceVersion !== "") {
      throw new ApiError(500, "InternalError", "resourceVersion should not be set on objects to be created");
    }
    if (resource.namespaced) this.#checkNamespace(resource, namespace, meta.name);
    if ((meta.name ?? "") === "") meta.name = meta.generateName ? `${meta.generateName}${randomName(5)}` : "";
    object.metadata = {
      ...meta,
      ...(resource.namespaced ? { namespace } : {}),
      uid: randomUUID(),
      creationTimestamp: this.now(),
      ...(resource.generationOf === undefined ? {} : { generation: 1 }),
    };
    delete object.metadata.resourceVersion;
    delete object.metadata.deletionTimestamp;
    delete object.metadata.deletionGracePeriodSeconds;
    if (resource.generationOf === undefined) delete object.metadata.generation;
    checkShape(resource.kind, object);
    const strategy = strategyOf(resource);
    const errors = validateMetadata(resource, object);
    const key = keyFor(resource, namespace, object.metadata.name);
    if (errors.length === 0 && this.store.get(resource.storage, key) !== undefined) {
      throw alreadyExists(resource, object.metadata.name);
    }
    if (errors.length === 0) errors.push(...(strategy.create?.(object, this.#context(resource)) ?? []));
    this.#refuse(resource, object, errors);
    if (options.dryRun === true) {
      strategy.removed?.(object, this.#context(resource));
      return object;
    }
    return this.store.put(resource.storage, key, object);
  }

  /** PUT. A name that does not exist is created where the kind allows that. */
  update(
    resource: ResourceType,
    namespace: string,
    name: string,
    input: ApiObject,
    options: WriteOptions = {},
  ): ApiObject {
    const next = structuredClone(input);
    checkIdentity(resource, namespace, next);
    if ((next.metadata.name ?? "") === "") next.metadata.name = name;
    if (next.metadata.name !== name) {
      throw badRequest(`the name of the object (${next.metadata.name}) does not match the name on the URL (${name})`);
    }
    const old = this.store.get(resource.storage, keyFor(resource, namespace, name));
    if (old === undefined) {
      if (resource.createOnUpdate && options.subresource === undefined) {
        return this.create(resource, namespace, input, options);
      }
      throw notFound(resource, name);
    }
    const version = next.metadata.resourceVersion;
    if ((version === undefined || version === "") && !resource.unconditionalUpdate) {
      throw invalid(resource, name, [invalidValue("metadata.resourceVersion", 0, "must be specified for an update")]);
    }
    return this.#replace(resource, old, next, options);
  }

  patch(resource: ResourceType, namespace: string, name: string, patch: unknown, options: PatchOptions): ApiObject {
    const old = this.store.get(resource.storage, keyFor(resource, namespace, name));
    if (options.type === "apply") return this.#apply(resource, namespace, name, old, patch, options);
    if (old === undefined) throw notFound(resource, name);
    if (options.type !== "json" && !isObject(patch)) throw badRequest("a patch is a JSON object");
    const served = resource.toServed?.(old) ?? old;
    const patched = patchedBy(options.type, served, patch, resource.kind);
    if (!isObject(patched) || !isObject(patched["metadata"])) throw badRequest("the patch leaves no object");
    const next = structuredClone(patched) as ApiObject;
    const stored = resource.toStored?.(next) ?? next;
    if (stored.metadata.name !== name) {
      throw invalid(resource, name, [invalidValue("metadata.name", stored.metadata.name, "field is immutable")]);
    }
    return this.#replace(resource, old, stored, options);
  }

  /**
   * Deletes, or begins to: graceful for pods, waiting for finalizers for all.
   *
   * @returns the object as it is now, and whether it is gone
   */
  delete(
    resource: ResourceType,
    namespace: string,
    name: string,
    options: DeleteOptions & { dryRun?: boolean } = {},
  ): { object: ApiObject; isGone: boolean } {
    const old = this.get(resource, namespace, name);
    const { uid, resourceVersion } = options.preconditions ?? {};
    if (uid !== undefined && uid !== old.metadata.uid) throw uidMismatch(resource, name, uid, old.metadata.uid ?? "");
    if (resourceVersion !== undefined && resourceVersion !== old.metadata.resourceVersion) {
      throw conflict(
        resource,
        name,
        `Precondition failed: ResourceVersion in precondition: ${resourceVersion}, ` +
          `ResourceVersion in object meta: ${old.metadata.resourceVersion}`,
      );
    }
    if (resource.plural === "namespaces" && permanentNamespaces.includes(name)) {
      throw forbidden(resource, name, "this namespace may not be deleted");
    }
    const decision = decideDelete(resource.plural, old, options, this.#options.clock.now());
    if (options.dryRun === true) return { object: old, isGone: false };
    switch (decision.kind) {
      case "pending":
        return { object: old, isGone: false };
      case "mark": {
        const next: ApiObject = { ...old, metadata: decision.metadata };
        if (resource.plural === "namespaces") next["status"] = { ...objectAt(old, "status"), phase: "Terminating" };
        return { object: this.store.put(resource.storage, keyOf(old), next), isGone: false };
      }
      case "remove":
        return { object: this.#remove(resource, { ...old, metadata: decision.metadata }), isGone: true };
    }
  }

  /** Changes the stored object through `change` (a private copy); for controllers and subresources. */
  modify(
    resource: ResourceType,
    namespace: string,
    name: string,
    change: (object: ApiObject) => void,
    options: WriteOptions = {},
  ): ApiObject {
    const old = this.get(resource, namespace, name);
    const next = structuredClone(old);
    change(next);
    return this.#replace(resource, old, next, options, true);
  }

  /** Stores an object as it is, whatever is wrong with it: what a server of another version might send. */
  putRaw(resource: ResourceType, object: ApiObject): ApiObject {
    const { name, namespace = "" } = object.metadata;
    return this.store.put(resource.storage, keyFor(resource, namespace, name), structuredClone(object));
  }

  /**
   * Calls a controller after each change. What it is refused (a namespace that is going away, say) is no error: it
   * will be called again with the next change. Nor may an object that it can not read stop the write that it watches.
   * Returns the unsubscribe function.
   */
  onChange(listener: (event: StoreEvent) => void): () => void {
    return this.store.subscribe((event) => {
      try {
        listener(event);
      } catch (err) {
        if (!(err instanceof ApiError)) process.emitWarning(err instanceof Error ? err : new Error(String(err)));
      }
    });
  }

  /** The resource of that name; throws when the server has none. */
  typeOf(group: string, plural: string): ResourceType {
    return resourceOf(group, plural);
  }

  /** RFC 3339 with seconds, as metav1.Time. */
  now(): string {
    return timeOf(this.#options.clock.now());
  }

  #apply(
    resource: ResourceType,
    namespace: string,
    name: string,
    old: ApiObject | undefined,
    patch: unknown,
    options: PatchOptions,
  ): ApiObject {
    if (!isObject(patch)) throw badRequest("an apply patch is an object");
    const manager = options.fieldManager ?? "";
    if (manager === "") {
      throw badRequest(
        'PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch',
      );
    }
    const applied = structuredClone(patch);
    let result: ApiObject;
    if (old === undefined) {
      if (options.subresource !== undefined) throw notFound(resource, name);
      const metadata = { ...objectAt(applied, "metadata"), name } as ObjectMeta;
      const created = { apiVersion: apiVersionOf(resource), kind: resource.kind, ...applied, metadata } as ApiObject;
      result = this.create(resource, namespace, created, options);
    } else {
      const before = this.#applied.get(old.metadata.uid ?? "")?.get(manager);
      const next = applyConfiguration(old, before, applied, mergeSchemaOf(resource.kind));
      result = this.#replace(resource, old, structuredClone(next) as ApiObject, options);
    }
    if (options.dryRun !== true) {
      const managers = this.#applied.get(result.metadata.uid ?? "") ?? new Map<string, unknown>();
      managers.set(manager, applied);
      this.#applied.set(result.metadata.uid ?? "", managers);
    }
    return result;
  }

  #replace(
    resource: ResourceType,
    old: ApiObject,
    input: ApiObject,
    options: WriteOptions,
    isInternal = false,
  ): ApiObject {
    const { name, namespace = "" } = old.metadata;
    const { uid, resourceVersion } = input.metadata;
    if (uid !== undefined && uid !== "" && uid !== old.metadata.uid) {
      throw uidMismatch(resource, name, uid, old.metadata.uid ?? "");
    }
    if (resourceVersion !== undefined && resourceVersion !== "" && resourceVersion !== old.metadata.resourceVersion) {
      throw modified(resource, name);
    }
    const next: ApiObject = { ...(isInternal ? input : scopedWrite(resource, old, input, options.subresource)) };
    next.apiVersion = old.apiVersion;
    next.kind = old.kind;
    next.metadata = updatedMetadata(old.metadata, input.metadata);
    checkShape(resource.kind, next);
    if (!isInternal) {
      const strategy = strategyOf(resource);
      const errors = validateMetadata(resource, next);
      const context = this.#context(resource);
      if (options.subresource === undefined) errors.push(...(strategy.update?.(next, old, context) ?? []));
      if (options.subresource === "resize") errors.push(...validateResize(typed<Pod>(next).spec, typed<Pod>(old).spec));
      this.#refuse(resource, next, errors);
    }
    const isChanged = resource.generationOf?.some((field) => !jsonEqual(next[field], old[field])) === true;
    if (isChanged && options.keepGeneration !== true) {
      next.metadata.generation = (old.metadata.generation ?? 0) + 1;
    }
    if (options.dryRun === true) return next;
    // A write that changes nothing is none: same resourceVersion, no event.
    if (jsonEqual(next, old)) return old;
    const isFreed =
      next.metadata.deletionTimestamp !== undefined &&
      (next.metadata.finalizers ?? []).length === 0 &&
      (next.metadata.deletionGracePeriodSeconds ?? 0) === 0 &&
      !hasSpecFinalizers(next);
    if (isFreed) return this.#remove(resource, next);
    return this.store.put(resource.storage, keyFor(resource, namespace, name), next);
  }

  #remove(resource: ResourceType, last: ApiObject): ApiObject {
    const { name, namespace = "", uid = "" } = last.metadata;
    const removed = this.store.remove(resource.storage, keyFor(resource, namespace, name), last);
    this.#applied.delete(uid);
    strategyOf(resource).removed?.(last, this.#context(resource));
    return removed ?? last;
  }

  #checkNamespace(resource: ResourceType, namespace: string, name: string): void {
    const found = this.store.get("namespaces", namespace);
    if (found === undefined) throw notFound({ group: "", plural: "namespaces" }, namespace);
    if (found.metadata.deletionTimestamp === undefined) return;
    const why = `namespace ${namespace} is being terminated`;
    throw forbidden(
      resource,
      name ?? "",
      `unable to create new content in namespace ${namespace} because it is being terminated`,
      [{ reason: "NamespaceTerminating", message: why, field: "metadata.namespace" }],
    );
  }

  #refuse(resource: ResourceType, object: ApiObject, errors: readonly FieldError[]): void {
    if (errors.length > 0) throw invalid(resource, object.metadata.name, errors);
  }

  #context(resource: ResourceType): StrategyContext {
    const { serviceAccountAdmission, clusterCIDR, taintNewNodes } = this.#options;
    return {
      store: this.store,
      network: this.network,
      resource,
      serviceAccountAdmission,
      clusterCIDR,
      taintNewNodes,
      now: () => this.now(),
    };
  }
}

function hasSpecFinalizers(object: ApiObject): boolean {
  if (object.kind !== "Namespace") return false;
  const finalizers = objectAt(object, "spec")["finalizers"];
  return Array.isArray(finalizers) && finalizers.length > 0;
}

function patchedBy(type: "strategic" | "merge" | "json", object: ApiObject, patch: unknown, kind: string): unknown {
  switch (type) {
    case "json":
      return jsonPatch(object, patch);
    case "merge":
      return mergePatch(object, patch);
    case "strategic":
      return strategicMerge(object, patch, mergeSchemaOf(kind));
  }
}

/** RFC 3339 with seconds, as the API writes metav1.Time. */
export function timeOf(ms: number): string {
  return `${new Date(ms).toISOString().slice(0, 19)}Z`;
}

/** Key of an object in the store. */
export function keyFor(resource: { namespaced: boolean }, namespace: string, name: string): string {
  return resource.namespaced ? `${namespace}/${name}` : name;
}

function keyOf({ metadata }: ApiObject): string {
  return metadata.namespace === undefined ? metadata.name : `${metadata.namespace}/${metadata.name}`;
}
