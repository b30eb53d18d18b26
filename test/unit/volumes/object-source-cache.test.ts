import { beforeEach, describe, expect, test } from "vitest";
import type { ConfigMap } from "../../../agent/kube/types.ts";
import { AgentError } from "../../../agent/lib/errors.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import {
  cacheTTLMs,
  cacheTTLMsDefault,
  createObjectSource,
  type ObjectSourceOptions,
} from "../../../agent/volumes/object-source.ts";
import { configMap, FakeServer } from "./object-source-support.ts";
import { FakeClock, makePod, settle } from "./support.ts";

// Strategies that ask: Cache believes an answer for a while, Get never.

const withSettings = { volumes: [{ name: "v", configMap: { name: "settings" } }] };
const pod = makePod(withSettings);
let clock: FakeClock;
let server: FakeServer;

function makeSource(strategy: ObjectSourceOptions["strategy"], more: Partial<ObjectSourceOptions> = {}) {
  return createObjectSource({
    client: server.client,
    startInformer: server.startInformer, // which is not to be used
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

  test("keeps of an object what somebody reads", async () => {
    const metadata = {
      name: "settings",
      namespace: "shop",
      resourceVersion: "1",
      uid: "u",
      annotations: { big: "text" },
    };
    server.object = { metadata: { ...metadata, managedFields: [{}] } as ConfigMap["metadata"], data: { a: "1" } };
    const source = makeSource("Cache");
    source.register(pod);
    const { annotations: _, ...kept } = metadata;
    expect(await source.configMap("shop", "settings")).toEqual({ metadata: kept, data: { a: "1" } });
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
