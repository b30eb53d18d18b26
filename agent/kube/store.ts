import { addAbortListener } from "node:events";
import { AgentError } from "../lib/errors.ts";
import { keyOf, type Store, type StoreChange } from "./port.ts";
import type { KubeObject } from "./types.ts";

type Listener<T> = (change: StoreChange<T>) => void;
type IndexFunction<T> = (object: T) => readonly string[];

export interface StoreOptions<T> {
  indexes?: Record<string, IndexFunction<T>>;
  /** Called between objects of a big replacement; lets other work run now and then. */
  breathe: () => Promise<void> | undefined;
  /** A listener or index function threw, which they must not; everything else goes on. */
  onError: (err: unknown) => void;
}

/** The writable side of a {@link Store}. One informer owns it; its methods must not overlap. */
export class ObjectStore<T extends KubeObject> implements Store<T> {
  readonly #options: StoreOptions<T>;
  readonly #objects = new Map<string, T>();
  readonly #indexes = new Map<string, { valuesOf: IndexFunction<T>; found: Map<string, Map<string, T>> }>();
  readonly #listeners = new Set<Listener<T>>();
  /** Subscribed before the first sync; they get everything right after it. */
  readonly #waiting = new Set<Listener<T>>();
  readonly #synced = Promise.withResolvers<void>();
  #hasSynced = false;

  constructor(options: StoreOptions<T>) {
    this.#options = options;
    for (const [name, valuesOf] of Object.entries(options.indexes ?? {})) {
      this.#indexes.set(name, { valuesOf, found: new Map() });
    }
  }

  get hasSynced(): boolean {
    return this.#hasSynced;
  }

  get size(): number {
    return this.#objects.size;
  }

  get(key: string): T | undefined {
    return this.#objects.get(key);
  }

  list(): Iterable<T> {
    return this.#objects.values();
  }

  byIndex(index: string, value: string): readonly T[] {
    const entry = this.#indexes.get(index);
    if (entry === undefined) throw new AgentError("Internal", `store has no index ${index}`);
    return [...(entry.found.get(value)?.values() ?? [])];
  }

  async synced(signal?: AbortSignal): Promise<void> {
    if (signal === undefined || this.#hasSynced) return this.#synced.promise;
    const { promise, reject } = Promise.withResolvers<never>();
    const link = addAbortListener(signal, () => reject(signal.reason));
    try {
      await Promise.race([this.#synced.promise, promise]);
    } finally {
      link[Symbol.dispose]();
    }
  }

  subscribe(listener: Listener<T>): () => void {
    // A function of its own: one listener may subscribe twice.
    const own: Listener<T> = (change) => listener(change);
    if (this.#hasSynced) {
      this.#listeners.add(own);
      for (const [key, object] of Array.from(this.#objects)) this.#tell(own, { key, old: undefined, object });
    } else {
      this.#waiting.add(own);
    }
    return () => {
      this.#listeners.delete(own);
      this.#waiting.delete(own);
    };
  }

  /**
   * Makes the store hold exactly `objects`, telling listeners only what differs: first what is new or changed, then what
   * vanished, so that a Service whose slice was replaced by another is never without endpoints. An object that was
   * replaced by another of the same name is a deletion and an addition. The first call is the first sync.
   */
  async replace(objects: ReadonlyMap<string, T>): Promise<void> {
    const { breathe } = this.#options;
    for (const object of objects.values()) {
      this.put(object);
      const pause = breathe();
      if (pause !== undefined) await pause;
    }
    for (const key of Array.from(this.#objects.keys())) {
      if (!objects.has(key)) this.delete(key);
      const pause = breathe();
      if (pause !== undefined) await pause;
    }
    if (this.#hasSynced) return;
    for (const listener of this.#waiting) {
      for (const [key, object] of this.#objects) {
        if (!this.#waiting.has(listener)) break; // unsubscribed meanwhile
        this.#tell(listener, { key, old: undefined, object });
        const pause = breathe();
        if (pause !== undefined) await pause;
      }
      if (this.#waiting.delete(listener)) this.#listeners.add(listener);
    }
    this.#hasSynced = true;
    this.#synced.resolve();
  }

  /** Adds or replaces one object. The same resourceVersion again is no change. */
  put(object: T): void {
    const key = keyOf(object.metadata);
    let old = this.#objects.get(key);
    if (old !== undefined && isSameVersion(old, object)) return;
    if (old !== undefined && old.metadata.uid !== object.metadata.uid) {
      this.delete(key);
      old = undefined;
    }
    this.#reindex(key, old, object);
    this.#objects.set(key, object);
    this.#tellAll({ key, old, object });
  }

  /** Removes one object; nothing happens if it is not there. */
  delete(key: string): void {
    const old = this.#objects.get(key);
    if (old === undefined) return;
    this.#reindex(key, old, undefined);
    this.#objects.delete(key);
    this.#tellAll({ key, old, object: undefined });
  }

  #reindex(key: string, old: T | undefined, object: T | undefined): void {
    for (const { valuesOf, found } of this.#indexes.values()) {
      for (const value of this.#values(valuesOf, old)) {
        const keys = found.get(value);
        keys?.delete(key);
        if (keys?.size === 0) found.delete(value);
      }
      for (const value of this.#values(valuesOf, object)) {
        const keys = found.get(value);
        if (keys === undefined) found.set(value, new Map([[key, object as T]]));
        else keys.set(key, object as T);
      }
    }
  }

  #values(valuesOf: IndexFunction<T>, object: T | undefined): readonly string[] {
    if (object === undefined) return [];
    try {
      return valuesOf(object);
    } catch (err) {
      this.#options.onError(err);
      return [];
    }
  }

  #tellAll(change: StoreChange<T>): void {
    // A copy: who subscribes inside a listener has already been told the present state.
    for (const listener of Array.from(this.#listeners)) this.#tell(listener, change);
  }

  #tell(listener: Listener<T>, change: StoreChange<T>): void {
    try {
      listener(change);
    } catch (err) {
      this.#options.onError(err);
    }
  }
}

function isSameVersion(a: KubeObject, b: KubeObject): boolean {
  const { uid, resourceVersion } = a.metadata;
  return resourceVersion !== undefined && resourceVersion === b.metadata.resourceVersion && uid === b.metadata.uid;
}
