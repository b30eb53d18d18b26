import { AgentError } from "../../../agent/lib/errors.ts";
import type { ApiClient, ObjectKey, Resource, Store, StoreChange } from "../../../agent/kube/port.ts";
import type { KubeObject, Node } from "../../../agent/kube/types.ts";
import { strategicMerge } from "../../support/apiserver/strategic-merge.ts";
import { mergeSchemaOf } from "../../support/apiserver/strategic-schema.ts";

/** One call that reached the server. */
export interface Call {
  verb: "get" | "create" | "update" | "patch";
  kind: string;
  body?: unknown;
}

/** Nodes and leases in memory, with scripted failures. Only what the node agent calls is there. */
export class FakeApi {
  readonly calls: Call[] = [];
  resets = 0;
  readonly #objects = new Map<string, KubeObject>();
  readonly #failures: { verb: string; error: AgentError }[] = [];
  readonly #listeners = new Set<(change: StoreChange<Node>) => void>();
  #revision = 0;

  /** The next call of this verb is refused. */
  failNext(verb: Call["verb"], error: AgentError, times = 1): void {
    for (let i = 0; i < times; i += 1) this.#failures.push({ verb, error });
  }

  /** Puts an object there as somebody else would, and tells watchers. */
  set<T extends KubeObject>(kind: string, object: T): T {
    this.#revision += 1;
    const stored = {
      ...object,
      metadata: { uid: `uid-${kind}`, ...object.metadata, resourceVersion: String(this.#revision) },
    };
    const key = `${kind}/${object.metadata.name}`;
    const old = this.#objects.get(key);
    this.#objects.set(key, stored);
    if (kind === "Node") {
      const change = { key: object.metadata.name, old, object: stored };
      for (const listener of this.#listeners) listener(change);
    }
    return stored;
  }

  remove(kind: string, name: string): void {
    this.#objects.delete(`${kind}/${name}`);
  }

  object<T extends KubeObject>(kind: string, name: string): T | undefined {
    return this.#objects.get(`${kind}/${name}`) as T | undefined;
  }

  /** Verbs so far, `create Node`. */
  get log(): string[] {
    return this.calls.map(({ verb, kind }) => `${verb} ${kind}`);
  }

  readonly client = {
    get: async <T extends KubeObject>(resource: Resource<T>, key: ObjectKey): Promise<T> => {
      this.#enter("get", resource);
      return this.#need<T>(resource, key.name);
    },
    create: async <T extends KubeObject>(resource: Resource<T>, object: T): Promise<T> => {
      this.#enter("create", resource, object);
      const isThere = this.#objects.has(`${resource.kind}/${object.metadata.name}`);
      if (isThere) throw new AgentError("AlreadyExists", "it exists");
      return this.set(resource.kind, object);
    },
    update: async <T extends KubeObject>(resource: Resource<T>, object: T): Promise<T> => {
      this.#enter("update", resource, object);
      const current = this.#need<T>(resource, object.metadata.name);
      const isStale = current.metadata.resourceVersion !== object.metadata.resourceVersion;
      if (isStale) throw new AgentError("Conflict", "changed meanwhile");
      return this.set(resource.kind, object);
    },
    patch: async <T extends KubeObject>(resource: Resource<T>, key: ObjectKey, patch: unknown): Promise<T> => {
      this.#enter("patch", resource, patch);
      const merged = strategicMerge(this.#need<T>(resource, key.name), patch, mergeSchemaOf(resource.kind)) as T;
      return this.set(resource.kind, merged);
    },
    resetConnections: () => {
      this.resets += 1;
    },
  } as unknown as ApiClient;

  /** A watch of one Node that is always current. */
  nodeStore(): Store<Node> {
    return {
      hasSynced: true,
      synced: async () => {},
      get: (name: string) => this.object<Node>("Node", name),
      list: () => [],
      size: 0,
      byIndex: () => [],
      subscribe: (listener) => {
        this.#listeners.add(listener);
        return () => this.#listeners.delete(listener);
      },
    };
  }

  #enter<T extends KubeObject>(verb: Call["verb"], resource: Resource<T>, body?: unknown): void {
    this.calls.push({ verb, kind: resource.kind, ...(body === undefined ? {} : { body: structuredClone(body) }) });
    const index = this.#failures.findIndex((failure) => failure.verb === verb);
    const [failure] = index < 0 ? [] : this.#failures.splice(index, 1);
    if (failure !== undefined) throw failure.error;
  }

  #need<T extends KubeObject>(resource: Resource<T>, name: string): T {
    const object = this.object<T>(resource.kind, name);
    if (object === undefined) throw new AgentError("NotFound", `${resource.plural} "${name}" not found`);
    return object;
  }
}
