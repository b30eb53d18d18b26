import type { Informer, Resource, StartInformer } from "../kube/port.ts";
import { keyOf } from "../kube/port.ts";
import type { ConfigMap, KubeObject, ObjectMeta, Secret } from "../kube/types.ts";
import type { Clock, Timer } from "../lib/clock.ts";
import { AgentError, messageOf } from "../lib/errors.ts";
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

/** @param mayBeOld an answer from the API server's own cache is good enough: it costs its database nothing */
type Get<T> = (options?: { mayBeOld: boolean }) => Promise<T | undefined>;

/** Asks at each read. */
export class LiveReader<T extends KubeObject> implements ObjectReader<T> {
  readonly read: () => Promise<T | undefined>;

  constructor(get: Get<T>) {
    this.read = async () => await get();
  }

  invalidate(): void {}

  async stop(): Promise<void> {}
}

/**
 * Reads by GET and believes for a while that an object is as it was. That there is none is not believed but asked again;
 * it stands, as the last known object does, while the server cannot answer.
 */
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
    if (cached?.object !== undefined && this.#clock.monotonic() - cached.readAtMs < this.#ttlMs()) return cached.object;
    this.#inFlight ??= this.#fetch();
    try {
      return await this.#inFlight;
    } catch (err) {
      if (cached === undefined) throw err;
      return cached.object;
    }
  }

  invalidate(): void {
    this.#cached = undefined;
    this.#inFlight = undefined; // it may have been answered before the reason for this
  }

  stop(): Promise<void> {
    this.invalidate();
    return Promise.resolve();
  }

  #fetch(): Promise<T | undefined> {
    const before = this.#cached?.object;
    const fetching = this.#get({ mayBeOld: before !== undefined })
      .then((object) => {
        if (this.#inFlight !== fetching) return object;
        // The server's cache may be behind what we have: then the next read asks once more.
        if (object !== undefined && before !== undefined && isOlder(object, before)) return before;
        this.#cached = { object, readAtMs: this.#clock.monotonic() };
        return object;
      })
      .finally(() => {
        if (this.#inFlight === fetching) this.#inFlight = undefined;
      });
    return fetching;
  }
}

/** Resource versions of one kind are numbers that grow; what is none is taken for newer. */
function isOlder(a: KubeObject, b: KubeObject): boolean {
  const [versionA = "", versionB = ""] = [a.metadata.resourceVersion, b.metadata.resourceVersion];
  if (!/^\d+$/.test(versionA) || !/^\d+$/.test(versionB)) return false;
  return BigInt(versionA) < BigInt(versionB);
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
// kubelet's limit for the first list. Whoever asks again later finds the watch further on, or the server's answer.
export const syncWaitMs = 1_000;
// kubelet's too: there are as many of these watches as there are objects that pods refer to, and they rarely say anything.
export const watchSecondsMin = 30 * 60;
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
  /** A GET under way, which readers share: a server that is slow gets no second one. */
  #asking: Promise<T | undefined> | undefined;
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
    const query = {
      namespace: ref.namespace,
      fieldSelector: `metadata.name=${ref.name}`,
      watchSecondsMin,
      trim: trimObject<T>,
    };
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

  /**
   * The store's answer once it has synced, or a GET's if that comes first. A refused GET leaves the watch its time.
   * Rejects when nothing has come after {@link syncWaitMs}, with what the GET had to say if anything.
   */
  async #firstRead(): Promise<T | undefined> {
    const { clock, ref } = this.#options;
    const informer = this.#watch?.informer;
    if (informer === undefined) return this.#ask();
    const done = new AbortController();
    let refusal: unknown;
    const fromWatch = informer.store.synced(done.signal).then(() => informer.store.get(this.#key));
    const fromServer = clock.sleep(syncGraceMs, done.signal).then(async () => {
      try {
        return await this.#ask();
      } catch (err) {
        refusal = err;
        throw err;
      }
    });
    const timeout = clock.sleep(syncWaitMs, done.signal).then(() => {
      const why = refusal === undefined ? "timed out waiting for the condition" : messageOf(refusal);
      const code = refusal instanceof AgentError ? refusal.code : "Unavailable";
      throw new AgentError(code, `failed to sync ${ref.kind.toLowerCase()} cache: ${why}`, { cause: refusal });
    });
    try {
      return await Promise.race([Promise.any([fromWatch, fromServer]), timeout]);
    } finally {
      done.abort(); // ends the losers, or leaves them an answer that nobody needs any more
    }
  }

  #ask(): Promise<T | undefined> {
    this.#asking ??= this.#options.get().finally(() => {
      this.#asking = undefined;
    });
    return this.#asking;
  }
}

/** Drops what no reader looks at, managedFields above all: they are often larger than the data. */
export function trimObject<T extends KubeObject>(object: T): T {
  return { ...object, metadata: trimMetadata(object.metadata) };
}

/** What says which object it is, and which version of it. */
export function trimMetadata({ name, namespace, uid, resourceVersion }: ObjectMeta): ObjectMeta {
  return {
    name,
    ...(namespace === undefined ? {} : { namespace }),
    ...(uid === undefined ? {} : { uid }),
    ...(resourceVersion === undefined ? {} : { resourceVersion }),
  };
}
