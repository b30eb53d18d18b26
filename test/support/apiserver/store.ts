import { expired } from "./status.ts";
import type { ApiObject } from "./types.ts";

/** One committed change. `previous` is absent for ADDED; `object` of DELETED is the last state with the deletion's version. */
export interface StoreEvent {
  readonly type: "ADDED" | "MODIFIED" | "DELETED";
  readonly storage: string;
  readonly key: string;
  readonly revision: number;
  readonly object: ApiObject;
  readonly previous: ApiObject | undefined;
}

/** For some storages: the value that an object is found under by {@link Store.indexed}, undefined for none. */
export type StoreIndexes = Readonly<Record<string, (object: ApiObject) => string | undefined>>;

interface Shelf {
  objects: Map<string, ApiObject>;
  /** Objects by the value of the storage's index, then by key. */
  index: Map<string, Map<string, ApiObject>>;
  /** Oldest first. */
  history: StoreEvent[];
  /** States up to this revision can no longer be asked for. */
  compacted: number;
}

/**
 * Objects in memory under one counter of revisions, with the recent past: that is what watches resume from and what
 * pages of one list are cut from. Knows nothing of what objects mean.
 */
export class Store {
  #revision: number;
  readonly #historyMax: number;
  readonly #shelves = new Map<string, Shelf>();
  readonly #listeners = new Set<(event: StoreEvent) => void>();
  readonly #first: number;
  readonly #indexes: StoreIndexes;

  /** @param historyMax changes kept for each kind of object */
  constructor(firstRevision: number, historyMax: number, indexes: StoreIndexes = {}) {
    this.#indexes = indexes;
    this.#revision = firstRevision;
    this.#first = firstRevision;
    this.#historyMax = historyMax;
  }

  /** The newest revision; the resourceVersion of a list made now. */
  get revision(): number {
    return this.#revision;
  }

  get(storage: string, key: string): ApiObject | undefined {
    return this.#shelves.get(storage)?.objects.get(key);
  }

  /** All objects, sorted by key as etcd would. */
  list(storage: string): [string, ApiObject][] {
    return [...(this.#shelves.get(storage)?.objects ?? [])].toSorted(byKey);
  }

  /** Objects in no order, without a copy. */
  values(storage: string): Iterable<ApiObject> {
    return this.#shelves.get(storage)?.objects.values() ?? [];
  }

  /** Present objects of a storage whose index function gives `value`. */
  indexed(storage: string, value: string): ApiObject[] {
    return [...(this.#shelves.get(storage)?.index.get(value)?.values() ?? [])];
  }

  /** Stores a new state under the next revision and tells the listeners. Returns the object with its resourceVersion. */
  put(storage: string, key: string, object: ApiObject): ApiObject {
    const shelf = this.#shelf(storage);
    const previous = shelf.objects.get(key);
    const revision = ++this.#revision;
    const stored = withRevision(object, revision);
    shelf.objects.set(key, stored);
    this.#reindex(shelf, storage, key, previous, stored);
    const type = previous === undefined ? "ADDED" : "MODIFIED";
    this.#commit(shelf, { type, storage, key, revision, object: stored, previous });
    return stored;
  }

  /** Removes an object; `last` is its state in the DELETED event, the stored one unless given. */
  remove(storage: string, key: string, last?: ApiObject): ApiObject | undefined {
    const shelf = this.#shelf(storage);
    const previous = shelf.objects.get(key);
    if (previous === undefined) return undefined;
    const revision = ++this.#revision;
    const object = withRevision(last ?? previous, revision);
    shelf.objects.delete(key);
    this.#reindex(shelf, storage, key, previous, undefined);
    this.#commit(shelf, { type: "DELETED", storage, key, revision, object, previous });
    return object;
  }

  /** All objects as they were at `revision`. Throws 410 Expired when that is too long ago. */
  listAt(storage: string, revision: number): [string, ApiObject][] {
    if (revision >= this.#revision) return this.list(storage);
    const shelf = this.#shelf(storage);
    if (revision < shelf.compacted) {
      throw expired(
        "The provided continue parameter is too old to display a consistent list result. " +
          "You can start a new list without the continue parameter.",
      );
    }
    const objects = new Map(shelf.objects);
    for (let i = shelf.history.length - 1; i >= 0; i--) {
      const event = shelf.history[i];
      if (event === undefined || event.revision <= revision) break;
      if (event.previous === undefined) {
        objects.delete(event.key);
      } else {
        objects.set(event.key, event.previous);
      }
    }
    return [...objects].toSorted(byKey);
  }

  /** Changes after `revision`, oldest first; undefined when some of them are already forgotten. */
  eventsAfter(storage: string, revision: number): readonly StoreEvent[] | undefined {
    const shelf = this.#shelf(storage);
    if (revision < shelf.compacted) return undefined;
    const at = shelf.history.findIndex((event) => event.revision > revision);
    return at < 0 ? [] : shelf.history.slice(at);
  }

  /** First revision a watch of `storage` can still start from. */
  compactedRevision(storage: string): number {
    return this.#shelf(storage).compacted;
  }

  /** Forgets the past, so that watches and pages from before now get 410. */
  compact(storage?: string): void {
    for (const [name, shelf] of this.#shelves) {
      if (storage !== undefined && name !== storage) continue;
      shelf.history = [];
      shelf.compacted = this.#revision;
    }
  }

  /** Calls `listener` synchronously after each commit, in order. It must not throw. Returns the unsubscribe function. */
  subscribe(listener: (event: StoreEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  #shelf(storage: string): Shelf {
    let shelf = this.#shelves.get(storage);
    if (shelf === undefined) {
      shelf = { objects: new Map(), index: new Map(), history: [], compacted: this.#first };
      this.#shelves.set(storage, shelf);
    }
    return shelf;
  }

  #reindex(shelf: Shelf, storage: string, key: string, old: ApiObject | undefined, now: ApiObject | undefined): void {
    const valueOf = this.#indexes[storage];
    if (valueOf === undefined) return;
    const oldValue = old === undefined ? undefined : valueOf(old);
    if (oldValue !== undefined) shelf.index.get(oldValue)?.delete(key);
    const value = now === undefined ? undefined : valueOf(now);
    if (now === undefined || value === undefined) return;
    const bucket = shelf.index.get(value) ?? new Map<string, ApiObject>();
    shelf.index.set(value, bucket.set(key, now));
  }

  #commit(shelf: Shelf, event: StoreEvent): void {
    shelf.history.push(event);
    // Cutting half at once keeps the cost of forgetting constant for each change.
    if (shelf.history.length > 2 * this.#historyMax) {
      const dropped = shelf.history.splice(0, shelf.history.length - this.#historyMax);
      shelf.compacted = dropped.at(-1)?.revision ?? shelf.compacted;
    }
    this.#pending.push(event);
    if (this.#delivering) return;
    // A listener may write in turn: its events wait here, so that everyone sees one order.
    this.#delivering = true;
    try {
      for (let next = this.#pending.shift(); next !== undefined; next = this.#pending.shift()) {
        for (const listener of [...this.#listeners]) listener(next);
      }
    } finally {
      this.#delivering = false;
    }
  }

  readonly #pending: StoreEvent[] = [];
  #delivering = false;
}

function withRevision(object: ApiObject, revision: number): ApiObject {
  return { ...object, metadata: { ...object.metadata, resourceVersion: String(revision) } };
}

function byKey([a]: [string, ApiObject], [b]: [string, ApiObject]): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
