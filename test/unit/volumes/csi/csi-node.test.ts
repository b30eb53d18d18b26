import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { ObjectKey, Resource } from "../../../../agent/kube/port.ts";
import type { CSINode, KubeObject, Node } from "../../../../agent/kube/types.ts";
import { AgentError } from "../../../../agent/lib/errors.ts";
import { silentLogger } from "../../../../agent/lib/log.ts";
import {
  type CSINodeKeeper,
  conflictTriesMax,
  createCSINodeKeeper,
  initRetry,
  restartGraceMs,
} from "../../../../agent/volumes/csi/csi-node.ts";
import type { NodeInfo } from "../../../../agent/volumes/csi/port.ts";
import { FakeClock, settle, stopped } from "../../kube/fake-clock.ts";
import { FakeApi } from "../../node/fake-api.ts";

const info: NodeInfo = { nodeID: "i-1", maxVolumesPerNode: 3, topology: { "t.test/zone": "z1" } };
const away = new AgentError("Unavailable", "the API server is away");
const annotation = "csi.volume.kubernetes.io/nodeid";

describe("the CSINode's keeper", () => {
  let api: FakeApi;
  let clock: FakeClock;
  let stop: AbortController;
  let keeper: CSINodeKeeper;
  let running: Promise<void>;
  let told: (string | undefined)[];

  const node = (): Node | undefined => api.object<Node>("Node", "n1");
  const csiNode = (): CSINode | undefined => api.object<CSINode>("CSINode", "n1");
  const drivers = () => csiNode()?.spec.drivers?.map(({ name }) => name);
  const addNode = (ready: "True" | "False" = "False", uid = "u1") =>
    api.set<Node>("Node", {
      metadata: { name: "n1", uid },
      status: { conditions: [{ type: "Ready", status: ready }] },
    });
  const start = async () => {
    const client = {
      ...api.client,
      delete: async <T extends KubeObject>({ kind }: Resource<T>, { name }: ObjectKey) => api.remove(kind, name),
    };
    keeper = createCSINodeKeeper({ nodeName: "n1", client, nodeStore: api.nodeStore(), clock, log: silentLogger });
    keeper.subscribe(() => void told.push(keeper.problem()));
    running = keeper.run(stop.signal);
    await settle();
  };

  beforeEach(() => {
    api = new FakeApi();
    clock = new FakeClock();
    stop = new AbortController();
    told = [];
  });
  afterEach(async () => {
    await stopped(running, stop, clock);
  });

  test("makes the CSINode as soon as there is a Node, and storage is ready then", async () => {
    await start();
    expect(api.calls).toEqual([]);
    expect(keeper.problem()).toBe("CSINode is not yet initialized");
    addNode();
    await settle();
    expect(api.log).toEqual(["get CSINode", "create CSINode"]);
    expect(keeper.problem()).toBeUndefined();
    expect(told).toEqual([undefined]);
  });

  test("a node that is Ready stays so while its new agent looks, but not for ever", async () => {
    addNode("True");
    api.failNext("get", away, 100);
    const { promise: never } = Promise.withResolvers<never>();
    const hanging = { ...api.client, get: async () => await never, delete: async () => {} };
    const patient = createCSINodeKeeper({
      nodeName: "n1",
      client: hanging,
      nodeStore: api.nodeStore(),
      clock,
      log: silentLogger,
    });
    await start();
    expect(patient.problem()).toBeUndefined();
    await clock.advance(restartGraceMs);
    expect(patient.problem()).toBe("CSINode is not yet initialized");
  });

  test("says why there is no CSINode, and tries again later and later", async () => {
    addNode();
    api.failNext("create", away, 3);
    await start();
    expect(keeper.problem()).toBe("failed to initialize CSINode: the API server is away");
    expect(told).toEqual(["failed to initialize CSINode: the API server is away"]);
    await clock.advance(initRetry.baseMs);
    await clock.advance(initRetry.baseMs * initRetry.factor);
    expect(csiNode()).toBeUndefined();
    await clock.advance(initRetry.baseMs * initRetry.factor ** 2);
    expect(csiNode()).toBeDefined();
    expect(told).toEqual(["failed to initialize CSINode: the API server is away", undefined]);
  });

  test("names a driver on Node and CSINode, and takes it out in the other order", async () => {
    addNode();
    await start();
    api.calls.length = 0;
    await keeper.set("a.test", info);
    expect(api.log).toEqual(["patch Node", "get CSINode", "update CSINode"]);
    expect(node()?.metadata).toMatchObject({
      labels: { "t.test/zone": "z1" },
      annotations: { [annotation]: '{"a.test":"i-1"}' },
    });
    expect(csiNode()?.spec.drivers).toEqual([
      { name: "a.test", nodeID: "i-1", topologyKeys: ["t.test/zone"], allocatable: { count: 3 } },
    ]);

    api.calls.length = 0;
    keeper.remove("a.test");
    await settle();
    expect(api.log).toEqual(["get CSINode", "update CSINode", "patch Node"]);
    expect(drivers()).toEqual([]);
    expect(node()?.metadata.annotations?.[annotation]).toBeUndefined();
  });

  test("a driver that goes and comes within one breath changes nothing", async () => {
    addNode();
    await start();
    await keeper.set("a.test", info);
    const { resourceVersion } = csiNode()?.metadata ?? {};
    keeper.remove("a.test");
    await keeper.set("a.test", info);
    expect(csiNode()?.metadata.resourceVersion).toBe(resourceVersion);
  });

  test("a driver is in use while the API server is away, and is named when it is back", async () => {
    addNode();
    await start();
    api.failNext("patch", away, 2);
    await keeper.set("a.test", info);
    expect(drivers()).toEqual([]);
    await clock.advance(initRetry.baseMs);
    await clock.advance(initRetry.baseMs * initRetry.factor);
    expect(drivers()).toEqual(["a.test"]);
    expect(keeper.problem()).toBeUndefined();
  });

  test("what the API server refuses is refused, and does not hold up others", async () => {
    addNode();
    await start();
    await keeper.set("a.test", info);
    api.failNext("update", new AgentError("Invalid", "spec.drivers[1].name: too long"));
    await expect(keeper.set("b.test", { ...info, topology: {} })).rejects.toMatchObject({ code: "Invalid" });
    keeper.remove("b.test");
    await keeper.set("c.test", { ...info, topology: {} });
    await clock.advance(initRetry.baseMs);
    expect(drivers()).toEqual(["a.test", "c.test"]);
  });

  test("a driver whose topology contradicts the Node is refused, before anything is sent", async () => {
    addNode();
    await start();
    await keeper.set("a.test", info);
    api.calls.length = 0;
    const other = { ...info, topology: { "t.test/zone": "z2" } };
    await expect(keeper.set("b.test", other)).rejects.toMatchObject({
      code: "Conflict",
      message: expect.stringContaining("topology value collision"),
    });
    expect(api.log).toEqual(["get CSINode"]);
  });

  test("a Node whose labels contradict a driver by now is asked about no more than others", async () => {
    addNode();
    await start();
    await keeper.set("a.test", info);
    const labelled = (zone: string, n: number) => {
      const { metadata, ...rest } = node() ?? { metadata: { name: "n1" } };
      const labels = { ...metadata.labels, "t.test/zone": zone, heartbeat: String(n) };
      api.set<Node>("Node", { ...rest, metadata: { ...metadata, labels } });
    };
    api.calls.length = 0;
    for (let n = 0; n < 3; n += 1) {
      labelled("z2", n);
      await settle();
    }
    expect(api.log).toEqual([]);
    labelled("z1", 4); // and all is well again
    await settle();
    expect(drivers()).toEqual(["a.test"]);
  });

  test("somebody else's write in between is taken in", async () => {
    addNode();
    await start();
    api.failNext("update", new AgentError("Conflict", "changed meanwhile"), conflictTriesMax - 1);
    const set = keeper.set("a.test", info);
    await settle();
    await clock.advance(10);
    await clock.advance(50);
    await clock.advance(250);
    await set;
    expect(drivers()).toEqual(["a.test"]);
  });

  test("a Node that is another one gets a CSINode of its own", async () => {
    addNode();
    await start();
    await keeper.set("a.test", info);
    addNode("False", "u2");
    await settle();
    expect(csiNode()?.metadata.ownerReferences?.[0]?.uid).toBe("u2");
    expect(drivers()).toEqual(["a.test"]);
    expect(node()?.metadata.annotations).toMatchObject({ [annotation]: '{"a.test":"i-1"}' });
  });

  test("an annotation that somebody took away is put back", async () => {
    addNode();
    await start();
    await keeper.set("a.test", info);
    addNode();
    await settle();
    expect(node()?.metadata.annotations).toMatchObject({ [annotation]: '{"a.test":"i-1"}' });
  });

  test("whoever waits when the agent stops is let go", async () => {
    addNode();
    await start();
    const { promise: never } = Promise.withResolvers<never>();
    api.client.patch = async () => await never;
    stop.abort();
    await expect(keeper.set("a.test", info)).resolves.toBeUndefined();
  });
});
