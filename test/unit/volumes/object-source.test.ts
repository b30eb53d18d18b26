import { beforeEach, describe, expect, test } from "vitest";
import type { Pod } from "../../../agent/kube/types.ts";
import { AgentError } from "../../../agent/lib/errors.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { objectRefs, refKey } from "../../../agent/volumes/object-refs.ts";
import { syncGraceMs, syncWaitMs, watchSecondsMin } from "../../../agent/volumes/object-readers.ts";
import { createObjectSource, type ObjectSourceOptions, watchIdleSyncs } from "../../../agent/volumes/object-source.ts";
import { bindingLagTriesMax } from "../../../agent/volumes/binding-lag.ts";
import { configMap, FakeServer } from "./object-source-support.ts";
import { FakeClock, makePod } from "./support.ts";

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
    ],
    imagePullSecrets: [{ name: "registry" }, {}],
  });
  expect(objectRefs(full).map(refKey).sort()).toEqual([
    "ConfigMap/shop/env-map",
    "ConfigMap/shop/from-map",
    "ConfigMap/shop/p-map",
    "Secret/shop/csi-secret",
    "Secret/shop/env-secret",
    "Secret/shop/from-secret",
    "Secret/shop/p-secret",
    "Secret/shop/registry",
    "Secret/shop/volume-secret",
  ]);
});

test("a second try that is waited for ends with the source", async () => {
  server.getFailures = [new AgentError("Forbidden", "no relationship")];
  const source = makeSource("Get");
  source.register(pod);
  const read = source.configMap("shop", "settings");
  const refused = expect(read).rejects.toThrow("aborted");
  await clock.advance(1);
  await source.close();
  await refused;
  expect([server.gets, clock.pendingTimers]).toEqual([1, 0]);
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
      { length: bindingLagTriesMax - 1 },
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
