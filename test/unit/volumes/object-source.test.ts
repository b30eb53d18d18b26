import { beforeEach, describe, expect, test } from "vitest";
import type { ApiClient, Informer, StartInformer, Store, StoreChange } from "../../../agent/kube/port.ts";
import type { ConfigMap, KubeObject, Pod } from "../../../agent/kube/types.ts";
import { AgentError } from "../../../agent/lib/errors.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { objectRefs, refKey } from "../../../agent/volumes/object-refs.ts";
import { syncGraceMs, syncWaitMs, watchSecondsMin } from "../../../agent/volumes/object-readers.ts";
import {
  cacheTTLMs,
  cacheTTLMsDefault,
  createObjectSource,
  forbiddenTriesMax,
  type ObjectSourceOptions,
  watchIdleSyncs,
} from "../../../agent/volumes/object-source.ts";
import { FakeClock, makePod, settle } from "./support.ts";

/** One object at a fake API server, watched by fake informers that sync only when told. */
class FakeServer {
  object: ConfigMap | undefined = configMap("1");
  gets = 0;
  /** resourceVersion that each GET asked for. */
  asked: (string | undefined)[] = [];
  getFailures: AgentError[] = [];
  getDelayMs = 0;
  watches: FakeWatch[] = [];
  readonly clock: FakeClock;
  readonly client: ApiClient;

  constructor(clock: FakeClock) {
    this.clock = clock;
    this.client = {
      get: async (_resource: unknown, _key: unknown, options?: { resourceVersion?: string }) => {
        this.gets += 1;
        this.asked.push(options?.resourceVersion);
        const { object } = this;
        if (this.getDelayMs > 0) await clock.sleep(this.getDelayMs);
        const failure = this.getFailures.shift();
        if (failure !== undefined) throw failure;
        if (object === undefined) throw new AgentError("NotFound", "not there");
        return object;
      },
    } as unknown as ApiClient;
  }

  startInformer: StartInformer = <T extends KubeObject>(
    _resource: unknown,
    options: { namespace?: string; fieldSelector?: string; watchSecondsMin?: number; trim?: (object: T) => T },
    stop: AbortSignal,
  ) => {
    const query = `${options.namespace}?${options.fieldSelector} for ${options.watchSecondsMin} s`;
    const watch = new FakeWatch(this, query, stop);
    this.watches.push(watch);
    return watch as unknown as Informer<T>;
  };

  get open(): FakeWatch[] {
    return this.watches.filter(({ stop }) => !stop.aborted);
  }

  set(object: ConfigMap | undefined): void {
    const old = this.object;
    this.object = object;
    for (const watch of this.open) if (watch.hasSynced) watch.emit(old, object);
  }
}

class FakeWatch {
  hasSynced = false;
  stopped = Promise.resolve();
  listeners = new Set<(change: StoreChange<ConfigMap>) => void>();
  waiters: (() => void)[] = [];
  readonly server: FakeServer;
  readonly query: string;
  readonly stop: AbortSignal;
  readonly store: Pick<Store<ConfigMap>, "get" | "synced" | "subscribe"> & { readonly hasSynced: boolean };

  constructor(server: FakeServer, query: string, stop: AbortSignal) {
    this.server = server;
    this.query = query;
    this.stop = stop;
    const hasSynced = () => this.hasSynced;
    this.store = {
      get hasSynced() {
        return hasSynced();
      },
      get: (key) => (key === "shop/settings" ? server.object : undefined),
      synced: (signal) =>
        new Promise((resolve, reject) => {
          if (this.hasSynced) resolve();
          this.waiters.push(resolve);
          signal?.addEventListener("abort", () => reject(new DOMException("aborted", "AbortError")));
        }),
      subscribe: (listener) => {
        this.listeners.add(listener);
        return () => this.listeners.delete(listener);
      },
    };
  }

  sync(): void {
    this.hasSynced = true;
    for (const resolve of this.waiters) resolve();
    if (this.server.object !== undefined) this.emit(undefined, this.server.object);
  }

  emit(old: ConfigMap | undefined, object: ConfigMap | undefined): void {
    for (const listener of this.listeners) listener({ key: "shop/settings", old, object });
  }
}

function configMap(resourceVersion: string, more: Partial<ConfigMap> = {}): ConfigMap {
  return { metadata: { name: "settings", namespace: "shop", resourceVersion }, data: { v: resourceVersion }, ...more };
}

const withSettings = { volumes: [{ name: "v", configMap: { name: "settings" } }] };
const pod = makePod(withSettings);
let clock: FakeClock;
let server: FakeServer;

function makeSource(strategy: ObjectSourceOptions["strategy"], more: Partial<ObjectSourceOptions> = {}) {
  return createObjectSource({
    client: server.client,
    startInformer: server.startInformer,
    clock,
    log: silentLogger,
    strategy,
    ...more,
  });
}

beforeEach(() => {
  clock = new FakeClock();
  server = new FakeServer(clock);
});

test("objectRefs: finds every reference once, whatever container or volume it stands in", () => {
  const full: Pod = makePod({
    containers: [
      {
        name: "app",
        env: [
          { name: "A", valueFrom: { configMapKeyRef: { name: "env-map", key: "k" } } },
          { name: "B", valueFrom: { secretKeyRef: { name: "env-secret", key: "k" } } },
        ],
      },
    ],
    initContainers: [{ name: "init", envFrom: [{ configMapRef: { name: "from-map" } }] }],
    ephemeralContainers: [{ name: "debug", envFrom: [{ secretRef: { name: "from-secret" } }, { secretRef: {} }] }],
    volumes: [
      { name: "a", configMap: { name: "env-map" } },
      { name: "b", secret: { secretName: "volume-secret" } },
      { name: "c", projected: { sources: [{ configMap: { name: "p-map" } }, { secret: { name: "p-secret" } }] } },
      { name: "d", csi: { driver: "csi.example", nodePublishSecretRef: { name: "csi-secret" } } },
      { name: "e", iscsi: { secretRef: { name: "chap-secret" } } },
      { name: "f", flexVolume: { secretRef: { name: "flex-secret" } } },
      { name: "g", iscsi: { secretRef: null } },
    ],
    imagePullSecrets: [{ name: "registry" }, {}],
  });
  expect(objectRefs(full).map(refKey).sort()).toEqual([
    "ConfigMap/shop/env-map",
    "ConfigMap/shop/from-map",
    "ConfigMap/shop/p-map",
    "Secret/shop/chap-secret",
    "Secret/shop/csi-secret",
    "Secret/shop/env-secret",
    "Secret/shop/flex-secret",
    "Secret/shop/from-secret",
    "Secret/shop/p-secret",
    "Secret/shop/registry",
    "Secret/shop/volume-secret",
  ]);
});

describe("every strategy", () => {
  test.each(["Watch", "Cache", "Get"] as const)("%s: an object nobody registered is refused", async (strategy) => {
    const source = makeSource(strategy);
    await expect(source.configMap("shop", "settings")).rejects.toThrow('object "shop"/"settings" not registered');
    source.register(pod);
    source.unregister(pod.metadata.uid ?? "");
    await expect(source.configMap("shop", "settings")).rejects.toThrow("not registered");
  });

  test.each(["Watch", "Cache", "Get"] as const)(
    "%s: a missing object is NotFound by kind and name",
    async (strategy) => {
      server.object = undefined;
      const source = makeSource(strategy);
      source.register(pod);
      const read = source.configMap("shop", "settings");
      await Promise.all([
        expect(read).rejects.toMatchObject({ code: "NotFound", message: 'configmap "settings" not found' }),
        clock.advance(syncGraceMs),
      ]);
    },
  );

  test("without an API server every lookup says so", async () => {
    const source = makeSource("Watch", { client: undefined });
    source.register(pod);
    await expect(source.secret("shop", "x")).rejects.toThrow("runs without an API server");
  });
});

describe("Watch", () => {
  test("one field-selected watch per object, shared by pods, gone with the last of them", () => {
    const source = makeSource("Watch");
    source.register(pod);
    source.register(pod);
    source.register(makePod(withSettings, { uid: "second" }));
    expect(server.open.map(({ query }) => query)).toEqual([`shop?metadata.name=settings for ${watchSecondsMin} s`]);
    source.unregister("second");
    expect(server.open).toHaveLength(1);
    source.unregister(pod.metadata.uid ?? "");
    expect(server.open).toHaveLength(0);
    expect(clock.pendingTimers).toBe(0);
  });

  test("a pod that no longer refers to an object releases it", () => {
    const source = makeSource("Watch");
    source.register(pod);
    source.register(makePod({}));
    expect(server.open).toHaveLength(0);
  });

  test("a watch that synced in time answers without a GET, also while the server is away", async () => {
    const source = makeSource("Watch");
    source.register(pod);
    server.watches[0]?.sync();
    expect((await source.configMap("shop", "settings")).data).toEqual({ v: "1" });
    expect(server.gets).toBe(0);
  });

  test("the first read waits a moment for the sync", async () => {
    const source = makeSource("Watch");
    source.register(pod);
    const read = source.configMap("shop", "settings");
    await clock.advance(syncGraceMs - 1);
    server.watches[0]?.sync();
    expect((await read).data).toEqual({ v: "1" });
    await clock.advance(1000);
    expect(server.gets).toBe(0);
  });

  test("a watch that does not sync costs no more than the grace and one GET", async () => {
    const source = makeSource("Watch");
    source.register(pod);
    const read = source.configMap("shop", "settings");
    await clock.advance(syncGraceMs);
    expect((await read).data).toEqual({ v: "1" });
    expect(server.gets).toBe(1);
  });

  test.each([
    {
      name: "nothing answers",
      failures: [],
      want: "failed to sync configmap cache: timed out waiting for the condition",
    },
    {
      name: "the GET failed",
      failures: [new AgentError("Internal", "etcd is on fire")],
      want: "failed to sync configmap cache: etcd is on fire",
    },
  ])("the first read gives up after a second: $name", async ({ failures, want }) => {
    server.getDelayMs = failures.length === 0 ? 60_000 : 0;
    server.getFailures = failures;
    const source = makeSource("Watch");
    const heard: string[] = [];
    source.onChange((_kind, _namespace, name) => heard.push(name));
    source.register(pod);
    const read = source.configMap("shop", "settings");
    const outcome = expect(read).rejects.toThrow(want);
    await clock.advance(syncWaitMs);
    await outcome;
    server.watches[0]?.sync();
    expect(heard).toEqual(["settings"]); // whoever failed tries again
    expect((await source.configMap("shop", "settings")).data).toEqual({ v: "1" });
    expect(server.gets).toBe(1);
  });

  test("a GET that fails leaves the watch its time", async () => {
    server.getFailures = [new AgentError("Unavailable", "hiccup")];
    const source = makeSource("Watch");
    source.register(pod);
    const read = source.configMap("shop", "settings");
    await clock.advance(syncWaitMs / 2);
    server.watches[0]?.sync();
    expect((await read).data).toEqual({ v: "1" });
  });

  test("a server that is slow is asked once, however many read", async () => {
    server.getDelayMs = 60_000;
    const source = makeSource("Watch");
    source.register(pod);
    for (let i = 0; i < 3; i += 1) {
      const reads = [source.configMap("shop", "settings"), source.configMap("shop", "settings")];
      const outcomes = Promise.all(reads.map((read) => expect(read).rejects.toThrow("failed to sync configmap cache")));
      await clock.advance(syncWaitMs);
      await outcomes;
    }
    expect(server.gets).toBe(1);
  });

  test("an object deleted and made again under a running pod is told twice and read anew", async () => {
    const source = makeSource("Watch");
    const heard: string[] = [];
    source.onChange((_kind, _namespace, name) => heard.push(name));
    source.register(pod);
    server.watches[0]?.sync();
    await source.configMap("shop", "settings");
    server.set(undefined);
    await expect(source.configMap("shop", "settings")).rejects.toMatchObject({ code: "NotFound" });
    server.set(configMap("7"));
    expect(heard).toHaveLength(2);
    expect((await source.configMap("shop", "settings")).data).toEqual({ v: "7" });
    expect(server.gets).toBe(0);
  });

  test("a GET refused because the binding is news is tried again", async () => {
    server.getFailures = Array.from(
      { length: forbiddenTriesMax - 1 },
      () => new AgentError("Forbidden", "no relationship"),
    );
    const source = makeSource("Watch");
    source.register(pod);
    const read = source.configMap("shop", "settings");
    await clock.advance(1000);
    expect((await read).data).toEqual({ v: "1" });
  });

  test("tells of changes, not of what was read anyway", async () => {
    const source = makeSource("Watch");
    const heard: string[] = [];
    source.onChange((kind, namespace, name) => heard.push(`${kind}/${namespace}/${name}`));
    source.register(pod);
    server.watches[0]?.sync();
    expect(heard).toEqual([]); // nobody has read the old one
    await source.configMap("shop", "settings");
    server.set(configMap("2"));
    expect(heard).toEqual(["ConfigMap/shop/settings"]);
    server.set(undefined);
    expect(heard).toHaveLength(2);
  });

  test("tells whoever missed an object when it appears", async () => {
    server.object = undefined;
    const source = makeSource("Watch");
    const heard: string[] = [];
    source.onChange((_kind, _namespace, name) => heard.push(name));
    source.register(pod);
    server.watches[0]?.sync();
    await expect(source.configMap("shop", "settings")).rejects.toThrow("not found");
    server.set(configMap("1"));
    expect(heard).toEqual(["settings"]);
  });

  test("an immutable object needs no watch and is not read again", async () => {
    server.object = configMap("1", { immutable: true });
    const source = makeSource("Watch");
    source.register(pod);
    server.watches[0]?.sync();
    await source.configMap("shop", "settings");
    expect(server.open).toHaveLength(0);
    server.object = configMap("2");
    expect((await source.configMap("shop", "settings")).data).toEqual({ v: "1" });
    expect(server.watches).toHaveLength(1);
  });

  test("a watch nobody reads rests, and the next read starts it again", async () => {
    const source = makeSource("Watch", { syncFrequencyMs: 60_000 });
    source.register(pod);
    server.watches[0]?.sync();
    await clock.advance(watchIdleSyncs * 60_000 - 1000);
    await source.configMap("shop", "settings");
    await clock.advance(60_000);
    expect(server.open).toHaveLength(1);
    await clock.advance(watchIdleSyncs * 60_000);
    expect(server.open).toHaveLength(0);
    const read = source.configMap("shop", "settings");
    expect(server.open).toHaveLength(1);
    await clock.advance(syncGraceMs);
    await read;
  });

  test("close ends all watches", async () => {
    const source = makeSource("Watch");
    source.register(pod);
    await source.close();
    expect(server.open).toHaveLength(0);
    expect(clock.pendingTimers).toBe(0);
  });
});

describe("Cache", () => {
  test("believes an object for its lifetime, and then asks for whatever the server has at hand", async () => {
    const source = makeSource("Cache");
    source.register(pod);
    await source.configMap("shop", "settings");
    server.object = configMap("2");
    await clock.advance(cacheTTLMsDefault - 1);
    expect((await source.configMap("shop", "settings")).data).toEqual({ v: "1" });
    expect(server.gets).toBe(1);
    await clock.advance(1);
    expect((await source.configMap("shop", "settings")).data).toEqual({ v: "2" });
    expect(server.asked).toEqual([undefined, "0"]);
  });

  test("that there is none is asked again, and stands while the server is away", async () => {
    server.object = undefined;
    const source = makeSource("Cache");
    source.register(pod);
    await expect(source.configMap("shop", "settings")).rejects.toThrow("not found");
    server.getFailures = [new AgentError("Unavailable", "away")];
    await expect(source.configMap("shop", "settings")).rejects.toThrow("not found");
    server.object = configMap("1");
    expect((await source.configMap("shop", "settings")).data).toEqual({ v: "1" });
    expect(server.asked).toEqual([undefined, undefined, undefined]);
  });

  test.each([
    { name: "older: kept as it was", version: "9", want: "10", gets: 3 },
    { name: "newer", version: "11", want: "11", gets: 2 },
    { name: "not to be compared", version: "x", want: "x", gets: 2 },
  ])("an answer from the server's cache that is $name", async ({ version, want, gets }) => {
    server.object = configMap("10");
    const source = makeSource("Cache");
    source.register(pod);
    await source.configMap("shop", "settings");
    await clock.advance(cacheTTLMsDefault);
    server.object = configMap(version);
    expect((await source.configMap("shop", "settings")).data).toEqual({ v: want });
    await source.configMap("shop", "settings");
    expect(server.gets).toBe(gets); // what was too old is not believed for a lifetime
  });

  test("the lifetime may change at any time", async () => {
    let ttlMs = 1000;
    const source = makeSource("Cache", { ttlMs: () => ttlMs });
    source.register(pod);
    await source.configMap("shop", "settings");
    await clock.advance(1000);
    ttlMs = 5000;
    await source.configMap("shop", "settings");
    expect(server.gets).toBe(1);
  });

  test("a pod that starts does not get what another read before", async () => {
    const source = makeSource("Cache");
    source.register(pod);
    await source.configMap("shop", "settings");
    server.object = configMap("2");
    source.register(makePod(withSettings, { uid: "second" }));
    expect((await source.configMap("shop", "settings")).data).toEqual({ v: "2" });
  });

  test("nor what was on its way before it", async () => {
    server.getDelayMs = 10;
    const source = makeSource("Cache");
    source.register(pod);
    const early = source.configMap("shop", "settings");
    await settle();
    server.object = configMap("2");
    source.register(makePod(withSettings, { uid: "second" }));
    const late = source.configMap("shop", "settings");
    await clock.advance(10);
    expect([(await early).data, (await late).data]).toEqual([{ v: "1" }, { v: "2" }]);
    expect((await source.configMap("shop", "settings")).data).toEqual({ v: "2" });
  });

  test("nor an old one because the server is away", async () => {
    const source = makeSource("Cache");
    source.register(pod);
    await source.configMap("shop", "settings");
    source.register(makePod(withSettings, { uid: "second" }));
    server.getFailures = [new AgentError("Unavailable", "away")];
    await expect(source.configMap("shop", "settings")).rejects.toThrow("away");
  });

  test("serves the old object while the server is away", async () => {
    const source = makeSource("Cache");
    source.register(pod);
    await source.configMap("shop", "settings");
    await clock.advance(cacheTTLMsDefault);
    server.getFailures = [new AgentError("Unavailable", "away")];
    expect((await source.configMap("shop", "settings")).data).toEqual({ v: "1" });
  });

  test("readers at the same time share a GET", async () => {
    server.getDelayMs = 10;
    const source = makeSource("Cache");
    source.register(pod);
    const reads = Promise.all([source.configMap("shop", "settings"), source.configMap("shop", "settings")]);
    await clock.advance(10);
    await reads;
    expect(server.gets).toBe(1);
  });
});

test.each([
  { name: "no node yet", node: undefined, wantMs: cacheTTLMsDefault },
  { name: "no annotation", node: { metadata: { name: "n1" } }, wantMs: cacheTTLMsDefault },
  { name: "seconds", ttl: "300", wantMs: 300_000 },
  { name: "0: never believed", ttl: "0", wantMs: 0 },
  { name: "nonsense", ttl: "5m", wantMs: cacheTTLMsDefault },
])("cacheTTLMs: $name", ({ node, ttl, wantMs }) => {
  const annotated = { metadata: { name: "n1", annotations: { "node.alpha.kubernetes.io/ttl": ttl ?? "" } } };
  expect(cacheTTLMs(ttl === undefined ? node : annotated)).toBe(wantMs);
});

test("Get: asks each time and hides no error", async () => {
  const source = makeSource("Get");
  source.register(pod);
  await source.configMap("shop", "settings");
  await source.configMap("shop", "settings");
  expect(server.gets).toBe(2);
  server.getFailures = [new AgentError("Unavailable", "away")];
  await expect(source.configMap("shop", "settings")).rejects.toThrow("away");
  await settle();
});
