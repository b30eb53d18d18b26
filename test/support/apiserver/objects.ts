import { randomUUID } from "node:crypto";
import type { ObjectKey, PatchType, Resource } from "../../../agent/kube/port.ts";
import type { KubeObject } from "../../../agent/kube/types.ts";
import type { Registry } from "./registry.ts";
import { findResource } from "./resources.ts";
import { matcherOf } from "./selectors.ts";
import { ApiError } from "./status.ts";
import { type ApiObject, type ResourceType, typed, untyped } from "./types.ts";

const waitMsDefault = 10_000;

/**
 * The server's objects for tests in the same process: the same verbs, defaults and errors (ApiError) as over the
 * network, but at once. Returned objects are shared with the store: never mutate them.
 */
export class Objects {
  readonly #registry: Registry;

  constructor(registry: Registry) {
    this.#registry = registry;
  }

  /** Throws ApiError 404 when there is none; see {@link find}. */
  get<T extends KubeObject>(resource: Resource<T>, key: ObjectKey): T {
    return typed<T>(this.#registry.get(typeOf(resource), namespaceOf(resource, key), key.name));
  }

  find<T extends KubeObject>(resource: Resource<T>, key: ObjectKey): T | undefined {
    try {
      return this.get(resource, key);
    } catch (err) {
      if (err instanceof ApiError && err.code === 404) return undefined;
      throw err;
    }
  }

  list<T extends KubeObject>(
    resource: Resource<T>,
    query: { namespace?: string; labelSelector?: string; fieldSelector?: string } = {},
  ): T[] {
    const matches = matcherOf(query.labelSelector, query.fieldSelector);
    return this.#registry.store
      .list(typeOf(resource).storage)
      .map(([, object]) => object)
      .filter((o) => (query.namespace === undefined || o.metadata.namespace === query.namespace) && matches(o))
      .map((object) => typed<T>(object));
  }

  /** A namespaced object without a namespace goes to `default`. */
  create<T extends KubeObject>(resource: Resource<T>, object: T): T {
    const namespace = resource.namespaced ? (object.metadata.namespace ?? "default") : "";
    return typed<T>(this.#registry.create(typeOf(resource), namespace, untyped(object)));
  }

  /** Stores an object without defaults, checks or conversion, to see what a client makes of a malformed one. */
  putRaw(resource: Resource<KubeObject>, object: unknown): void {
    const sent = object as ApiObject;
    const namespace = resource.namespaced ? (sent.metadata.namespace ?? "default") : undefined;
    const metadata = { uid: randomUUID(), ...sent.metadata, ...(namespace === undefined ? {} : { namespace }) };
    this.#registry.putRaw(typeOf(resource), { ...sent, metadata });
  }

  update<T extends KubeObject>(resource: Resource<T>, object: T, options: { subresource?: string } = {}): T {
    const namespace = resource.namespaced ? (object.metadata.namespace ?? "default") : "";
    return typed<T>(this.#registry.update(typeOf(resource), namespace, object.metadata.name, untyped(object), options));
  }

  patch<T extends KubeObject>(
    resource: Resource<T>,
    key: ObjectKey,
    patch: unknown,
    options: { type?: PatchType; subresource?: string } = {},
  ): T {
    const { type = "strategic", subresource } = options;
    const patched = this.#registry.patch(typeOf(resource), namespaceOf(resource, key), key.name, patch, {
      type,
      fieldManager: "test",
      ...(subresource === undefined ? {} : { subresource }),
    });
    return typed<T>(patched);
  }

  delete(
    resource: Resource<KubeObject>,
    key: ObjectKey,
    options: { gracePeriodSeconds?: number; uid?: string } = {},
  ): void {
    const { gracePeriodSeconds, uid } = options;
    this.#registry.delete(typeOf(resource), namespaceOf(resource, key), key.name, {
      ...(gracePeriodSeconds === undefined ? {} : { gracePeriodSeconds }),
      ...(uid === undefined ? {} : { preconditions: { uid } }),
    });
  }

  /**
   * Resolves with the object (undefined once it is gone) as soon as `predicate` holds; looks at every change.
   * Rejects after `timeoutMs` with the last state in the message.
   */
  async waitFor<T extends KubeObject>(
    resource: Resource<T>,
    key: ObjectKey,
    predicate: (object: T | undefined) => boolean,
    options: { timeoutMs?: number; signal?: AbortSignal } = {},
  ): Promise<T | undefined> {
    const { timeoutMs = waitMsDefault, signal } = options;
    const type = typeOf(resource);
    return new Promise<T | undefined>((resolve, reject) => {
      const look = () => {
        const object = this.find(resource, key);
        let holds: boolean;
        try {
          holds = predicate(object);
        } catch (err) {
          stop();
          reject(err instanceof Error ? err : new Error(String(err)));
          return true;
        }
        if (!holds) return false;
        stop();
        resolve(object);
        return true;
      };
      const fail = (why: string) => {
        stop();
        const state = JSON.stringify(this.find(resource, key));
        reject(new Error(`${type.kind} ${key.namespace ?? ""}/${key.name}: ${why}; its last state: ${state}`));
      };
      const onAbort = () => fail("the wait was aborted");
      const timer = setTimeout(() => fail(`not as expected within ${timeoutMs} ms`), timeoutMs);
      const unsubscribe = this.#registry.store.subscribe((event) => {
        if (event.storage === type.storage && event.object.metadata.name === key.name) look();
      });
      const stop = () => {
        clearTimeout(timer);
        unsubscribe();
        signal?.removeEventListener("abort", onAbort);
      };
      signal?.addEventListener("abort", onAbort, { once: true });
      look();
    });
  }

  /** Calls `listener` after each change of one kind of object. Returns the unsubscribe function. */
  subscribe<T extends KubeObject>(
    resource: Resource<T>,
    listener: (type: "ADDED" | "MODIFIED" | "DELETED", object: T) => void,
  ): () => void {
    const { storage } = typeOf(resource);
    return this.#registry.store.subscribe((event) => {
      if (event.storage === storage) listener(event.type, typed<T>(event.object));
    });
  }
}

function typeOf(resource: Resource<KubeObject>): ResourceType {
  const found = findResource(resource.group, resource.version, resource.plural);
  if (found === undefined) throw new Error(`the test API server has no resource ${resource.plural}.${resource.group}`);
  return found;
}

function namespaceOf(resource: Resource<KubeObject>, key: ObjectKey): string {
  return resource.namespaced ? (key.namespace ?? "default") : "";
}
