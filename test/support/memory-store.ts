import { keyOf, type Store, type StoreChange } from "../../agent/kube/port.ts";
import type { KubeObject } from "../../agent/kube/types.ts";

/** A store that tests fill by hand. */
export class MemoryStore<T extends KubeObject> implements Store<T> {
  readonly #objects = new Map<string, T>();
  readonly #listeners = new Set<(change: StoreChange<T>) => void>();
  readonly #synced = Promise.withResolvers<void>();
  #hasSynced = false;

  get hasSynced(): boolean {
    return this.#hasSynced;
  }

  get size(): number {
    return this.#objects.size;
  }

  /** The first list is complete. */
  markSynced(): this {
    if (this.#hasSynced) return this;
    this.#hasSynced = true;
    this.#synced.resolve();
    for (const listener of this.#listeners) this.#replay(listener);
    return this;
  }

  /** Adds or replaces objects. */
  put(...objects: T[]): this {
    for (const object of objects) {
      const key = keyOf(object.metadata);
      const old = this.#objects.get(key);
      this.#objects.set(key, object);
      this.#tell({ key, old, object });
    }
    return this;
  }

  remove(key: string): void {
    const old = this.#objects.get(key);
    if (old === undefined) return;
    this.#objects.delete(key);
    this.#tell({ key, old, object: undefined });
  }

  async synced(signal?: AbortSignal): Promise<void> {
    if (signal === undefined) return this.#synced.promise;
    signal.throwIfAborted();
    const aborted = Promise.withResolvers<never>();
    const onAbort = () => aborted.reject(signal.reason);
    signal.addEventListener("abort", onAbort, { once: true });
    try {
      await Promise.race([this.#synced.promise, aborted.promise]);
    } finally {
      signal.removeEventListener("abort", onAbort);
    }
  }

  get(key: string): T | undefined {
    return this.#objects.get(key);
  }

  list(): Iterable<T> {
    return this.#objects.values();
  }

  byIndex(): readonly T[] {
    return [];
  }

  subscribe(listener: (change: StoreChange<T>) => void): () => void {
    this.#listeners.add(listener);
    if (this.#hasSynced) this.#replay(listener);
    return () => this.#listeners.delete(listener);
  }

  #replay(listener: (change: StoreChange<T>) => void): void {
    for (const [key, object] of this.#objects) listener({ key, old: undefined, object });
  }

  #tell(change: StoreChange<T>): void {
    if (this.#hasSynced) for (const listener of this.#listeners) listener(change);
  }
}
