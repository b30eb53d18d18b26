import type { Informer, Resource, StartInformer } from "../kube/port.ts";
import { keyOf } from "../kube/port.ts";
import type { ConfigMap, KubeObject, Secret } from "../kube/types.ts";
import type { Clock, Timer } from "../lib/clock.ts";
import type { ObjectRef } from "./object-refs.ts";

/** How one referenced object is kept. */
export interface ObjectReader<T> {
  /** The object as far as known; undefined: the server says there is none. Rejects when it cannot be asked. */
  read(): Promise<T | undefined>;
  /** A pod that starts now must not get what was read long ago. */
  invalidate(): void;
  /** Idempotent; resolves when nothing of it runs any more. */
  stop(): Promise<void>;
}

type Get<T> = () => Promise<T | undefined>;

/** Reads by GET and believes the answer for a while; with a lifetime of 0 for as long as that one GET takes. */
export class CachedReader<T extends KubeObject> implements ObjectReader<T> {
  readonly #get: Get<T>;
  readonly #clock: Clock;
  readonly #ttlMs: () => number;
  #cached: { object: T | undefined; readAtMs: number } | undefined;
  #inFlight: Promise<T | undefined> | undefined;

  constructor(options: { get: Get<T>; clock: Clock; ttlMs: () => number }) {
    this.#get = options.get;
    this.#clock = options.clock;
    this.#ttlMs = options.ttlMs;
  }

  async read(): Promise<T | undefined> {
    const cached = this.#cached;
    const ttlMs = this.#ttlMs();
    if (cached !== undefined && this.#clock.monotonic() - cached.readAtMs < ttlMs) return cached.object;
    this.#inFlight ??= this.#fetch().finally(() => {
      this.#inFlight = undefined;
    });
    try {
      return await this.#inFlight;
    } catch (err) {
      // An old object beats none while the server is away. Whoever asked for a GET each time wants the truth.
      if (cached?.object !== undefined && ttlMs > 0) return cached.object;
      throw err;
    }
  }

  invalidate(): void {
    if (this.#cached !== undefined) this.#cached = { ...this.#cached, readAtMs: Number.NEGATIVE_INFINITY };
  }

  stop(): Promise<void> {
    this.#cached = undefined;
    return Promise.resolve();
  }

  async #fetch(): Promise<T | undefined> {
    const object = await this.#get();
    this.#cached = { object, readAtMs: this.#clock.monotonic() };
    return object;
  }
}

export interface WatchedObjectOptions<T extends KubeObject> {
  ref: ObjectRef;
  resource: Resource<T>;
  startInformer: StartInformer;
  get: Get<T>;
  clock: Clock;
  /** The watch ends when nobody has read for this long; the next read starts it again. */
  idleMs: number;
  /** The object appeared, changed or went away after the first sync. */
  onChange(): void;
}

// The watch was started with the pod's registration and normally has its first list before anybody reads. Past this
// moment a GET is sent as well, and whichever answers first counts.
export const syncGraceMs = 20;
// Differs from every resourceVersion: whoever could not read wants to hear of whatever comes.
const unreadable = "unreadable";

/**
 * Keeps one object by a watch of its own (the node may watch single objects only).
 *
 *   watching ──idle──▶ resting ──read──▶ watching
 *      └──immutable object seen──▶ settled, for good
 */
export class WatchedObject<T extends KubeObject & Pick<ConfigMap & Secret, "immutable">> implements ObjectReader<T> {
  readonly #options: WatchedObjectOptions<T>;
  readonly #key: string;
  #watch: { informer: Informer<T>; abort: AbortController; idleTimer: Timer } | undefined;
  #settled: T | undefined;
  /** What the last reader got; undefined: nobody has read yet, so that nobody's content is out of date. */
  #given: { resourceVersion: string | undefined } | undefined;
  #lastReadMs: number;
  #isStopped = false;

  constructor(options: WatchedObjectOptions<T>) {
    this.#options = options;
    this.#key = keyOf(options.ref);
    this.#lastReadMs = options.clock.monotonic();
    this.#start();
  }

  async read(): Promise<T | undefined> {
    if (this.#settled !== undefined) return this.#settled;
    this.#lastReadMs = this.#options.clock.monotonic();
    this.#start();
    const store = this.#watch?.informer.store;
    let object: T | undefined;
    try {
      if (store?.hasSynced !== true) object = await this.#firstRead();
    } catch (err) {
      this.#given = { resourceVersion: unreadable };
      throw err;
    }
    if (store?.hasSynced === true) object = store.get(this.#key);
    this.#given = { resourceVersion: object?.metadata.resourceVersion };
    if (object?.immutable === true && !this.#isStopped) {
      this.#settled = object;
      await this.#rest();
    }
    return object;
  }

  /** A watch is always current. */
  invalidate(): void {}

  async stop(): Promise<void> {
    this.#isStopped = true;
    await this.#rest();
  }

  #start(): void {
    if (this.#watch !== undefined || this.#isStopped) return;
    const { startInformer, resource, ref, onChange } = this.#options;
    const abort = new AbortController();
    const query = { namespace: ref.namespace, fieldSelector: `metadata.name=${ref.name}`, trim: trimObject<T> };
    const informer = startInformer(resource, query, abort.signal);
    informer.store.subscribe(({ object }) => {
      if (abort.signal.aborted || this.#given === undefined) return;
      if (this.#given.resourceVersion !== object?.metadata.resourceVersion) onChange();
    });
    this.#watch = { informer, abort, idleTimer: this.#armIdle() };
  }

  #armIdle(): Timer {
    const { clock, idleMs } = this.#options;
    return clock.after(Math.max(this.#lastReadMs + idleMs - clock.monotonic(), 1), () => {
      if (this.#watch === undefined) return;
      if (clock.monotonic() - this.#lastReadMs < idleMs) this.#watch.idleTimer = this.#armIdle();
      else void this.#rest();
    });
  }

  async #rest(): Promise<void> {
    const watch = this.#watch;
    this.#watch = undefined;
    watch?.idleTimer.cancel();
    watch?.abort.abort();
    await watch?.informer.stopped;
  }

  /** The store's answer once it has synced, or a GET's if that comes first. */
  async #firstRead(): Promise<T | undefined> {
    const { clock, get } = this.#options;
    const informer = this.#watch?.informer;
    if (informer === undefined) return get();
    const done = new AbortController();
    const fromWatch = informer.store.synced(done.signal).then(() => informer.store.get(this.#key));
    const fromServer = clock.sleep(syncGraceMs, done.signal).then(get);
    try {
      return await Promise.race([fromWatch, fromServer]);
    } finally {
      done.abort(); // ends the loser, or leaves it an answer that nobody needs any more
    }
  }
}

/** Drops what no reader looks at, managedFields above all: they are often larger than the data. */
function trimObject<T extends KubeObject>(object: T): T {
  const { name, namespace, uid, resourceVersion } = object.metadata;
  const metadata = {
    name,
    ...(namespace === undefined ? {} : { namespace }),
    ...(uid === undefined ? {} : { uid }),
    ...(resourceVersion === undefined ? {} : { resourceVersion }),
  };
  return { ...object, metadata };
}
