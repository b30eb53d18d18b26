import type { ApiClient, Resource, StartInformer } from "../kube/port.ts";
import { uidOf } from "../kube/pod-resources.ts";
import { configMaps, secrets } from "../kube/resources.ts";
import type { ConfigMap, Node, Pod, Secret } from "../kube/types.ts";
import type { Clock } from "../lib/clock.ts";
import { AgentError, hasCode } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { awaiting } from "./awaits.ts";
import { withBindingLag } from "./binding-lag.ts";
import { CachedReader, LiveReader, type ObjectReader, trimObject, WatchedObject } from "./object-readers.ts";
import { type ObjectRef, objectRefs, refKey } from "./object-refs.ts";
import type { ObjectSource } from "./port.ts";

export interface ObjectSourceOptions {
  /** undefined: there is no API server (standalone); every lookup is refused. */
  client: ApiClient | undefined;
  /** For strategy Watch; without it objects are cached instead. */
  startInformer?: StartInformer;
  clock: Clock;
  log: Logger;
  /** `configMapAndSecretChangeDetectionStrategy`. */
  strategy: "Watch" | "Cache" | "Get";
  /** Strategy Cache: how long an object counts as fresh; asked at each lookup, because a node annotation may set it. */
  ttlMs?: () => number;
  /** `syncFrequency`: a watch that nobody read for five times as long is stopped. */
  syncFrequencyMs?: number;
}

// Freshness of a cached object when the node has no such annotation.
export const cacheTTLMsDefault = 60_000;
// In seconds; the control plane raises it with the size of the cluster.
const ttlAnnotation = "node.alpha.kubernetes.io/ttl";
// kubelet's default syncFrequency; an object unread for 5 × that (at least 1 min) needs no watch.
const syncFrequencyMsDefault = 60_000;
export const watchIdleSyncs = 5;
export const watchIdleMsMin = 60_000;
// One object is small: a server that needs longer than this counts as away.
const getTimeoutMs = 10_000;

type Known = ConfigMap | Secret;
type Listener = (kind: ObjectRef["kind"], namespace: string, name: string) => void;

/** How long strategy Cache believes in an object, as the node's annotation says. */
export function cacheTTLMs(node: Node | undefined): number {
  const text = node?.metadata.annotations?.[ttlAnnotation] ?? "";
  return /^[+-]?\d{1,9}$/.test(text) ? Number(text) * 1_000 : cacheTTLMsDefault;
}

/** An {@link ObjectSource} that owns watches. */
export interface OwnedObjectSource extends ObjectSource {
  /** Stops all watches. */
  close(): Promise<void>;
}

/**
 * ConfigMaps and Secrets by strategy: one watch per referenced object, a cache with a lifetime, or a GET for each lookup.
 * An object that no registered pod refers to is refused: the node may not read it.
 */
export function createObjectSource(options: ObjectSourceOptions): OwnedObjectSource {
  const { clock, log, strategy, client, startInformer, ttlMs = () => cacheTTLMsDefault } = options;
  const idleMs = Math.max(watchIdleMsMin, watchIdleSyncs * (options.syncFrequencyMs ?? syncFrequencyMsDefault));
  const listeners = new Set<Listener>();
  const stop = new AbortController();
  const entries = new Map<string, { ref: ObjectRef; podUIDs: Set<string>; reader: ObjectReader<Known> }>();
  const keysOfPod = new Map<string, Set<string>>();

  function createReader(ref: ObjectRef): ObjectReader<Known> {
    const resource: Resource<Known> = ref.kind === "ConfigMap" ? configMaps : secrets;
    const get = async (how?: { mayBeOld: boolean }) =>
      await getObject(client, resource, ref, { clock, signal: stop.signal, ...how });
    if (strategy === "Get") return new LiveReader(get);
    if (strategy === "Cache" || startInformer === undefined) return new CachedReader({ get, clock, ttlMs });
    const onChange = () => {
      log.debug({ kind: ref.kind, namespace: ref.namespace, name: ref.name }, "referenced object changed");
      for (const listener of listeners) listener(ref.kind, ref.namespace, ref.name);
    };
    return new WatchedObject({ ref, resource, startInformer, get, clock, idleMs, onChange });
  }

  async function read(ref: ObjectRef): Promise<Known> {
    const { kind, namespace, name } = ref;
    if (client === undefined) {
      throw new AgentError(
        "Unimplemented",
        `cannot read ${kind} ${namespace}/${name}: nodelet runs without an API server`,
      );
    }
    const entry = entries.get(refKey(ref));
    if (entry === undefined) throw new AgentError("Internal", `object "${namespace}"/"${name}" not registered`);
    const object = await entry.reader.read();
    if (object === undefined) {
      throw new AgentError("NotFound", `${kind.toLowerCase()} "${name}" not found`, awaiting("object"));
    }
    return object;
  }

  function release(podUID: string, key: string): void {
    const entry = entries.get(key);
    if (entry === undefined) return;
    entry.podUIDs.delete(podUID);
    if (entry.podUIDs.size > 0) return;
    entries.delete(key);
    void entry.reader.stop(); // never rejects
  }

  return {
    register(pod: Pod) {
      if (client === undefined) return;
      const podUID = uidOf(pod);
      const before = keysOfPod.get(podUID) ?? new Set<string>();
      const now = new Set<string>();
      for (const ref of objectRefs(pod)) {
        const key = refKey(ref);
        now.add(key);
        let entry = entries.get(key);
        if (entry === undefined) {
          entry = { ref, podUIDs: new Set(), reader: createReader(ref) };
          entries.set(key, entry);
        } else if (!before.has(key)) {
          entry.reader.invalidate();
        }
        entry.podUIDs.add(podUID);
      }
      keysOfPod.set(podUID, now);
      for (const key of before) if (!now.has(key)) release(podUID, key);
    },
    unregister(podUID) {
      for (const key of keysOfPod.get(podUID) ?? []) release(podUID, key);
      keysOfPod.delete(podUID);
    },
    configMap: (namespace, name) => read({ kind: "ConfigMap", namespace, name }),
    secret: (namespace, name) => read({ kind: "Secret", namespace, name }),
    onChange(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    async close() {
      stop.abort();
      const readers = [...entries.values()].map(({ reader }) => reader);
      entries.clear();
      keysOfPod.clear();
      await Promise.all(readers.map((reader) => reader.stop()));
    },
  };
}

/** @returns undefined if the server says that there is no such object */
async function getObject<T extends Known>(
  client: ApiClient | undefined,
  resource: Resource<T>,
  { namespace, name }: ObjectRef,
  { clock, signal, mayBeOld = false }: { clock: Clock; signal: AbortSignal; mayBeOld?: boolean },
): Promise<T | undefined> {
  const options = { signal, timeoutMs: getTimeoutMs, ...(mayBeOld ? { resourceVersion: "0" as const } : {}) };
  try {
    const ask = async () => await client?.get(resource, { namespace, name }, options);
    const object = await withBindingLag(ask, clock, signal);
    return object === undefined ? undefined : trimObject(object);
  } catch (err) {
    if (hasCode(err, "NotFound")) return undefined;
    throw err;
  }
}
