import type { Clock } from "../lib/clock.ts";
import type { Logger } from "../lib/log.ts";
import type { ExecPluginMetrics } from "./exec-metrics.ts";
import type { KubeObject, ObjectMeta, ObjectReference } from "./types.ts";

/** One API resource: where it lives and, by the type parameter, what its objects look like. See resources.ts. */
export interface Resource<T extends KubeObject> {
  /** "" for the core group. */
  readonly group: string;
  readonly version: string;
  readonly plural: string;
  readonly kind: string;
  readonly namespaced: boolean;
  /** Never set; carries the object type. */
  readonly _type?: T;
}

/** Names one object. `namespace` is absent for cluster-scoped resources. */
export interface ObjectKey {
  namespace?: string;
  name: string;
}

export interface CallOptions {
  signal?: AbortSignal;
  /** Default 30 s. */
  timeoutMs?: number;
}

export type PatchType = "strategic" | "merge" | "json" | "apply";

/**
 * The API server, typed. Every method rejects with an `AgentError` whose code is the server's reason
 * (NotFound, AlreadyExists, Conflict, Gone, TooManyRequests, …) or Unavailable/DeadlineExceeded when it could not be
 * asked. A 429 or 503 with Retry-After is waited out and retried a few times inside the call.
 */
export interface ApiClient {
  /** @param options.resourceVersion "0": whatever the server has at hand will do; absent: the newest */
  get<T extends KubeObject>(
    resource: Resource<T>,
    key: ObjectKey,
    options?: CallOptions & { resourceVersion?: "0" },
  ): Promise<T>;
  /** All objects, read in pages. `resourceVersion` is the list's. */
  list<T extends KubeObject>(
    resource: Resource<T>,
    query: { namespace?: string; labelSelector?: string; fieldSelector?: string },
    options?: CallOptions,
  ): Promise<{ items: T[]; resourceVersion: string }>;
  create<T extends KubeObject>(resource: Resource<T>, object: T, options?: CallOptions): Promise<T>;
  /** PUT; the object's resourceVersion makes it optimistic. */
  update<T extends KubeObject>(
    resource: Resource<T>,
    object: T,
    options?: CallOptions & { subresource?: string },
  ): Promise<T>;
  /** A `metadata.uid` inside `patch` is the UID precondition: the server answers Conflict for another object of that name. */
  patch<T extends KubeObject>(
    resource: Resource<T>,
    key: ObjectKey,
    patch: unknown,
    options: CallOptions & { type: PatchType; subresource?: string },
  ): Promise<T>;
  delete<T extends KubeObject>(
    resource: Resource<T>,
    key: ObjectKey,
    options?: CallOptions & { gracePeriodSeconds?: number; uid?: string },
  ): Promise<void>;
  /** POST to a subresource whose input and output types differ from the object's (`token`, `eviction`, …). */
  createSubresource<In, Out>(
    resource: Resource<KubeObject>,
    key: ObjectKey,
    subresource: string,
    body: In,
    options?: CallOptions,
  ): Promise<Out>;
  /** Any other call: `/healthz`, token and access reviews. Body and answer are JSON. */
  request<Out>(method: "GET" | "POST", path: string, body?: unknown, options?: CallOptions): Promise<Out>;
  /** Drops pooled connections, so that the next call connects anew (rotated certificate, suspected half-open socket). */
  resetConnections(): void;
}

/** What happened to one object of a store. `old` is absent on the first sight, `object` after deletion. */
export interface StoreChange<T> {
  readonly key: string;
  readonly old: T | undefined;
  readonly object: T | undefined;
}

/** A local, always current copy of a list. Objects in it are shared: never mutate them. */
export interface Store<T extends KubeObject> {
  /** True once the first complete list is in. It stays true while the server is away. */
  readonly hasSynced: boolean;
  /** Resolves with the first sync; rejects with an AbortError when `signal` aborts. */
  synced(signal?: AbortSignal): Promise<void>;
  /** Key as made by {@link keyOf}. */
  get(key: string): T | undefined;
  list(): Iterable<T>;
  readonly size: number;
  /** Objects for which the index function returned `value`. */
  byIndex(index: string, value: string): readonly T[];
  /**
   * Calls `listener` for every change after the first sync; at once with the present objects (as additions) if already
   * synced, else right after the sync. Listeners must not throw and must not block. Returns the unsubscribe function.
   */
  subscribe(listener: (change: StoreChange<T>) => void): () => void;
}

export interface InformerOptions<T extends KubeObject> {
  namespace?: string;
  labelSelector?: string;
  fieldSelector?: string;
  /** Named functions from an object to the values under which `byIndex` finds it. */
  indexes?: Record<string, (object: T) => readonly string[]>;
  /** Called on every object before it is stored; drops what nobody reads. */
  trim?: (object: T) => T;
  /** Each watch lasts once to twice as long, unless something ends it; default 5 min. */
  watchSecondsMin?: number;
}

/** Keeps a store current by list and watch until `stop` of `startInformer` aborts. */
export interface Informer<T extends KubeObject> {
  readonly store: Store<T>;
  /** Resolves when the informer has stopped (after its signal aborted). Never rejects. */
  readonly stopped: Promise<void>;
  /** Unix ms of the last byte the server sent for this resource: data, bookmark or list. */
  readonly lastHeardAtMs: number;
}

/** Starts an informer. Server trouble is retried forever with jittered backoff and logged on change only. */
export type StartInformer = <T extends KubeObject>(
  resource: Resource<T>,
  options: InformerOptions<T>,
  stop: AbortSignal,
) => Informer<T>;

/** Records events. Never throws, never blocks, drops under overload: events are advice for people. */
export interface EventRecorder {
  /**
   * @param reason CamelCase word, @param message text for people; equal events are counted, similar ones aggregated.
   * @param action what was tried, as a CamelCase word
   */
  event(about: ObjectReference, type: "Normal" | "Warning", reason: string, message: string, action?: string): void;
}

/** What the kube modules need from outside. */
export interface KubeDeps {
  clock: Clock;
  log: Logger;
  /** Where runs of kubeconfigs' exec plugins are counted. */
  execPlugins?: ExecPluginMetrics;
}

/** `namespace/name`, or `name` for cluster-scoped objects: the key used by stores. */
export function keyOf(meta: Pick<ObjectMeta, "namespace" | "name">): string {
  return meta.namespace === undefined || meta.namespace === "" ? meta.name : `${meta.namespace}/${meta.name}`;
}
