import { addAbortListener } from "node:events";
import { isDeepStrictEqual } from "node:util";
import { configSeenAnnotation, configSourceAnnotation, isMirrorPod, uidOf } from "../../kube/pod-resources.ts";
import { keyOf, type Store, type StoreChange } from "../../kube/port.ts";
import type { Pod } from "../../kube/types.ts";
import type { Clock } from "../../lib/clock.ts";
import { describePod } from "../names.ts";
import type { Deliver, MirrorSet, PodSet } from "./port.ts";
import { type PodSourceName, rfc3339Nano, type StaticSourceName } from "./static-pod.ts";

type Listener = (change: StoreChange<Pod>) => void;

export interface PodSourcesOptions {
  /** Those that are configured: until each of them has told what it has, nothing may be taken for superfluous. */
  sources: readonly PodSourceName[];
  /** A source has two pods of one name, or two of one UID: the later one is left out. */
  onDuplicate(pod: Pod, message: string): void;
  /** The pod as this node understands it; default: as it is. Pure. */
  adapt?(pod: Pod): Pod;
  clock: Pick<Clock, "now">;
}

/**
 * The pods of all sources as one set. Static ones come in complete sets of their source, those of the API server one by
 * one from its store; mirror pods among these are kept apart.
 */
export class PodSources implements PodSet {
  readonly #onDuplicate: PodSourcesOptions["onDuplicate"];
  readonly #adapt: (pod: Pod) => Pod;
  readonly #clock: Pick<Clock, "now">;
  readonly #awaited: Set<PodSourceName>;
  readonly #synced = Promise.withResolvers<void>();
  readonly #apiSynced = Promise.withResolvers<void>();
  readonly #static = new Map<StaticSourceName, ReadonlyMap<string, Pod>>();
  readonly #fromApi = new Map<string, Pod>();
  readonly #mirrors = new Map<string, Pod>();
  readonly #listeners = new Set<Listener>();
  readonly #mirrorListeners = new Set<Listener>();

  constructor({ sources, onDuplicate, adapt = (pod) => pod, clock }: PodSourcesOptions) {
    this.#onDuplicate = onDuplicate;
    this.#adapt = adapt;
    this.#clock = clock;
    this.#awaited = new Set(sources);
    this.#settle();
  }

  get hasSynced(): boolean {
    return this.#awaited.size === 0;
  }

  async synced(signal: AbortSignal): Promise<void> {
    await unlessAborted(this.#synced.promise, signal);
  }

  async apiSynced(signal: AbortSignal): Promise<void> {
    await unlessAborted(this.#apiSynced.promise, signal);
  }

  *list(): Generator<Pod> {
    for (const pods of this.#static.values()) yield* pods.values();
    yield* this.#fromApi.values();
  }

  byUID(podUID: string): Pod | undefined {
    for (const pods of this.#static.values()) {
      const pod = pods.get(podUID);
      if (pod !== undefined) return pod;
    }
    return this.#fromApi.get(podUID);
  }

  find(namespace: string, name: string): Pod | undefined {
    for (const pod of this.list()) {
      if (pod.metadata.name === name && pod.metadata.namespace === namespace) return pod;
    }
    return undefined;
  }

  subscribe(listener: Listener): () => void {
    return subscribe(this.#listeners, listener, this.list());
  }

  readonly mirrors: MirrorSet = {
    synced: async (signal) => await this.apiSynced(signal),
    get: (key) => this.#mirrors.get(key),
    list: () => this.#mirrors.values(),
    subscribe: (listener) => subscribe(this.#mirrorListeners, listener, this.#mirrors.values()),
  };

  /** What a static source delivers to. */
  receiver(source: StaticSourceName): Deliver {
    return (pods) => this.#deliver(source, pods);
  }

  #deliver(source: StaticSourceName, pods: readonly Pod[]): void {
    const before = this.#static.get(source) ?? new Map<string, Pod>();
    const now = new Map<string, Pod>();
    for (const pod of this.#withoutDuplicates(pods).map(this.#adapt)) {
      const old = before.get(uidOf(pod));
      now.set(uidOf(pod), old !== undefined && isSame(old, pod) ? old : pod);
    }
    this.#static.set(source, now);
    // Removals first: an edited manifest is another pod of the same name.
    for (const [uid, old] of before) if (!now.has(uid)) this.#tell(old, undefined);
    for (const [uid, pod] of now) {
      const old = before.get(uid);
      if (old !== pod) this.#tell(old, pod);
    }
    this.#seen(source);
  }

  /** Follows the API server's store of this node's pods. @returns ends it */
  follow(store: Store<Pod>): () => void {
    const stop = new AbortController();
    const unsubscribe = store.subscribe(({ old, object }) => this.#onApi(old, object));
    store.synced(stop.signal).then(
      () => this.#seen("api"),
      () => {}, // nobody follows any more
    );
    return () => {
      stop.abort();
      unsubscribe();
    };
  }

  #onApi(old: Pod | undefined, object: Pod | undefined): void {
    const pod = object ?? old;
    if (pod === undefined) return;
    if (isMirrorPod(pod)) {
      const key = keyOf(pod.metadata);
      if (object === undefined) this.#mirrors.delete(key);
      else this.#mirrors.set(key, object);
      for (const listener of [...this.#mirrorListeners]) listener({ key, old, object });
      return;
    }
    const uid = uidOf(pod);
    const before = this.#fromApi.get(uid);
    if (object === undefined) this.#fromApi.delete(uid);
    else this.#fromApi.set(uid, fromApi(this.#adapt(object), seenOf(before) ?? rfc3339Nano(this.#clock.now())));
    this.#tell(before, this.#fromApi.get(uid));
  }

  #withoutDuplicates(pods: readonly Pod[]): Pod[] {
    const names = new Set<string>();
    const uids = new Set<string>();
    return pods.filter((pod) => {
      const key = keyOf(pod.metadata);
      if (names.has(key) || uids.has(uidOf(pod))) {
        const what = names.has(key) ? `name ${key}` : `UID ${uidOf(pod)}`;
        this.#onDuplicate(pod, `static pod ${describePod(pod)} is left out: another manifest has the same ${what}`);
        return false;
      }
      names.add(key);
      uids.add(uidOf(pod));
      return true;
    });
  }

  #tell(old: Pod | undefined, object: Pod | undefined): void {
    const pod = object ?? old;
    if (pod === undefined) return;
    for (const listener of [...this.#listeners]) listener({ key: keyOf(pod.metadata), old, object });
  }

  #seen(source: PodSourceName): void {
    this.#awaited.delete(source);
    this.#settle();
  }

  #settle(): void {
    if (!this.#awaited.has("api")) this.#apiSynced.resolve();
    if (this.hasSynced) this.#synced.resolve();
  }
}

async function unlessAborted(wanted: Promise<void>, signal: AbortSignal): Promise<void> {
  signal.throwIfAborted();
  const { promise, reject } = Promise.withResolvers<never>();
  using _link = addAbortListener(signal, () => reject(signal.reason));
  await Promise.race([wanted, promise]);
}

function subscribe(listeners: Set<Listener>, listener: Listener, present: Iterable<Pod>): () => void {
  const own: Listener = (change) => listener(change); // one listener may subscribe twice
  listeners.add(own);
  for (const object of [...present]) listener({ key: keyOf(object.metadata), old: undefined, object });
  return () => listeners.delete(own);
}

// Where a pod comes from and since when it is here is for us to say: who creates pods must not make one look like a static
// pod. Its containers can read both, and so can the runtime.
function fromApi(pod: Pod, seen: string): Pod {
  const annotations = { ...pod.metadata.annotations, [configSeenAnnotation]: seen, [configSourceAnnotation]: "api" };
  return { ...pod, metadata: { ...pod.metadata, annotations } };
}

function seenOf(pod: Pod | undefined): string | undefined {
  return pod?.metadata.annotations?.[configSeenAnnotation];
}

// When it was first seen stays as it was.
function isSame(old: Pod, pod: Pod): boolean {
  const bare = ({ metadata, ...rest }: Pod) => {
    const { [configSeenAnnotation]: _, ...annotations } = metadata.annotations ?? {};
    return { ...rest, metadata: { ...metadata, annotations } };
  };
  return old === pod || isDeepStrictEqual(bare(old), bare(pod));
}
