import { mkdir, mkdtemp, readFile, rm, stat, statfs, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { createApiClient, type KubeClient } from "../../agent/kube/client.ts";
import { createInformerFactory } from "../../agent/kube/informer.ts";
import { loadKubeconfig } from "../../agent/kube/kubeconfig.ts";
import { csiDrivers, csiNodes, nodes } from "../../agent/kube/resources.ts";
import type { CSINode, Node } from "../../agent/kube/types.ts";
import { systemClock } from "../../agent/lib/clock.ts";
import { exec } from "../../agent/lib/exec.ts";
import { silentLogger } from "../../agent/lib/log.ts";
import { isMountPoint } from "../../agent/lib/mount.ts";
import { createPluginManager } from "../../agent/plugins/manager.ts";
import { refreshAllocatable } from "../../agent/volumes/csi/allocatable.ts";
import { csiClientOpener } from "../../agent/volumes/csi/client.ts";
import { type CSINodeKeeper, createCSINodeKeeper } from "../../agent/volumes/csi/csi-node.ts";
import { csiDriverObjects } from "../../agent/volumes/csi/driver-objects.ts";
import { createCSIDrivers, type OwnedCSIDrivers } from "../../agent/volumes/csi/drivers.ts";
import type { VolumeCapability } from "../../agent/volumes/csi/port.ts";
import { startTestApiServer, type TestApiServer } from "../support/apiserver/server.ts";
import { type LocalCluster, startLocalCluster } from "../support/cluster/local-cluster.ts";
import { startCSIDriver, type TestCSIDriver } from "../support/csi/start.ts";
import { until } from "../support/csi/use-volumes.ts";

const clock = systemClock;
const log = silentLogger;

/** The kernel lets only processes with CAP_SYS_RESOURCE grow an ext4 that is mounted, and containers may lack that. */
async function mayGrowMounted(): Promise<boolean> {
  const status = await readFile("/proc/self/status", "utf8");
  const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(status)?.[1] ?? "0";
  return ((BigInt(`0x${effective}`) >> 24n) & 1n) === 1n;
}

/** The part of an agent that registers drivers, on the real API client. */
class TestAgent {
  readonly drivers: OwnedCSIDrivers;
  readonly keeper: CSINodeKeeper;
  readonly calls: string[] = [];
  readonly #stop = new AbortController();
  readonly #client: KubeClient;
  readonly #running: Promise<unknown>;

  private constructor(client: KubeClient, rootDir: string) {
    const { signal } = this.#stop;
    this.#client = client;
    const startInformer = createInformerFactory({ client, clock, log });
    const nodeInformer = startInformer(nodes, { fieldSelector: "metadata.name=n1" }, signal);
    const driverInformer = startInformer(csiDrivers, {}, signal);
    this.keeper = createCSINodeKeeper({ nodeName: "n1", client, nodeStore: nodeInformer.store, clock, log });
    const open = csiClientOpener(clock, ({ method, status }) => void this.calls.push(`${method} ${status}`));
    this.drivers = createCSIDrivers({ csiNode: this.keeper, log, open });
    const dir = join(rootDir, "plugins_registry");
    const manager = createPluginManager({ dir, handlers: { CSIPlugin: this.drivers.handler }, clock, log });
    const objects = csiDriverObjects(driverInformer.store);
    this.#running = Promise.all([
      nodeInformer.stopped,
      driverInformer.stopped,
      this.keeper.run(signal),
      refreshAllocatable({ drivers: this.drivers, objects, csiNode: this.keeper, clock, log }, signal),
      manager.run(signal),
    ]);
  }

  static async start(kubeconfig: string, rootDir: string): Promise<TestAgent> {
    const access = await loadKubeconfig(kubeconfig);
    const client = createApiClient({ access, userAgent: "kubelet/v1.36.0", qps: -1, burst: 100, log, clock });
    return new TestAgent(client, rootDir);
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#running;
    this.drivers.close();
    await this.#client[Symbol.asyncDispose]();
  }
}

describe("CSI drivers on a node", () => {
  let server: TestApiServer;
  let dir: string;
  let rootDir: string;
  let agent: TestAgent | undefined;
  let drivers: TestCSIDriver[];

  beforeEach(async () => {
    dir = await mkdtemp(join(tmpdir(), "nodelet-csi-"));
    rootDir = join(dir, "root");
    drivers = [];
    await mkdir(join(rootDir, "plugins_registry"), { recursive: true });
    await mkdir(join(rootDir, "plugins"), { recursive: true });
    server = await startTestApiServer();
    await writeFile(join(dir, "kubeconfig"), server.kubeconfig("node:n1"), { mode: 0o600 });
    server.objects.create(nodes, { apiVersion: "v1", kind: "Node", metadata: { name: "n1" } });
  });

  afterEach(async () => {
    await agent?.stop();
    agent = undefined;
    for (const driver of drivers) await driver.destroy();
    await server.close();
    await rm(dir, { recursive: true });
  });

  const startAgent = async () => {
    agent = await TestAgent.start(join(dir, "kubeconfig"), rootDir);
    return agent;
  };
  const startDriver = async (options: Partial<Parameters<typeof startCSIDriver>[0]> = {}) => {
    const driver = await startCSIDriver({ rootDir, dir: join(dir, `driver-${drivers.length}`), ...options });
    drivers.push(driver);
    return driver;
  };
  const csiNode = (): CSINode | undefined => server.objects.find(csiNodes, { name: "n1" });
  const node = (): Node | undefined => server.objects.find(nodes, { name: "n1" });
  const entry = (name: string) => csiNode()?.spec.drivers?.find((driver) => driver.name === name);
  const notified = async (driver: TestCSIDriver) => (await driver.calls("NotifyRegistrationStatus")).at(-1)?.request;

  test("a node without drivers gets its CSINode, owned by the Node", async () => {
    const { keeper } = await startAgent();
    const made = await until("a CSINode", csiNode);
    expect(made.metadata.ownerReferences).toMatchObject([{ kind: "Node", name: "n1", uid: node()?.metadata.uid }]);
    expect(made.metadata.annotations?.["storage.alpha.kubernetes.io/migrated-plugins"]).toMatch(
      /^kubernetes.io\/aws-ebs,kubernetes.io\/azure-disk,/,
    );
    expect(made.spec.drivers ?? []).toEqual([]);
    await until("storage is ready", () => keeper.problem() === undefined || undefined);
  });

  test("a driver that registers gets its entry, is told so, and can be asked", async () => {
    await startAgent();
    const topology = { "topology.csi.test/zone": "z1", "topology.csi.test/rack": "r7" };
    const driver = await startDriver({ nodeID: "i-123", maxVolumesPerNode: 16, topology });
    const found = await until("its entry", () => entry("csi.test"));
    expect(found).toEqual({
      name: "csi.test",
      nodeID: "i-123",
      topologyKeys: ["topology.csi.test/rack", "topology.csi.test/zone"],
      allocatable: { count: 16 },
    });
    expect(await until("it is told", async () => await notified(driver))).toEqual({
      plugin_registered: true,
      error: "",
    });
    expect(node()?.metadata.labels).toMatchObject(topology);
    expect(node()?.metadata.annotations?.["csi.volume.kubernetes.io/nodeid"]).toBe('{"csi.test":"i-123"}');
    const client = agent?.drivers.client("csi.test");
    expect([...((await client?.nodeGetCapabilities()) ?? [])].toSorted()).toEqual([
      "EXPAND_VOLUME",
      "GET_VOLUME_STATS",
      "STAGE_UNSTAGE_VOLUME",
    ]);
    expect(agent?.calls).toEqual(["/csi.v1.Node/NodeGetInfo OK", "/csi.v1.Node/NodeGetCapabilities OK"]);
  });

  test("drivers that were there before the agent are found, each for itself", async () => {
    const slow = await startDriver({ name: "slow.test" });
    await slow.fail("NodeGetInfo", { hangs: true });
    await startDriver({ name: "quick.test" });
    await startAgent();
    await until("the quick one", () => entry("quick.test"));
    expect(entry("slow.test")).toBeUndefined();
    await slow.heal();
    await until("the slow one", () => entry("slow.test"));
    expect(csiNode()?.spec.drivers?.map(({ name }) => name)).toEqual(["quick.test", "slow.test"]);
  });

  test("a driver that ends loses its entry; the others and the Node's labels stay", async () => {
    await startAgent();
    await startDriver({ name: "stays.test" });
    const driver = await startDriver({ topology: { "topology.csi.test/zone": "z1" } });
    await until("both", () => entry("csi.test") && entry("stays.test"));
    await driver.stop("SIGTERM");
    await until("its entry has gone", () => entry("csi.test") === undefined || undefined);
    await until(
      "its node ID has gone",
      () =>
        node()?.metadata.annotations?.["csi.volume.kubernetes.io/nodeid"] === '{"stays.test":"node-1"}' || undefined,
    );
    expect(node()?.metadata.labels?.["topology.csi.test/zone"]).toBe("z1");
    expect(() => agent?.drivers.client("csi.test")).toThrow(
      "driver name csi.test not found in the list of registered CSI drivers",
    );
  });

  test("a driver that is killed and started again is registered anew, with what it says now", async () => {
    await startAgent();
    const driver = await startDriver({ nodeID: "old", topology: { "topology.csi.test/zone": "z1" } });
    await until("its entry", () => entry("csi.test"));
    await driver.stop("SIGKILL");
    await driver.configure({ nodeID: "new", topology: {} });
    await driver.start();
    // The API server takes no other node ID in an entry that stays.
    expect(
      await until("its new entry", () => (entry("csi.test")?.nodeID === "new" ? entry("csi.test") : undefined)),
    ).toEqual({ name: "csi.test", nodeID: "new", topologyKeys: undefined });
    const { pid } = (await driver.calls()).at(-1) ?? {};
    await until("it answers", async () =>
      agent?.drivers
        .client("csi.test")
        .nodeGetInfo()
        .then(
          ({ nodeID }) => nodeID === "new" || undefined,
          () => undefined,
        ),
    );
    expect((await driver.calls("NotifyRegistrationStatus")).map((call) => call.pid)).toContain(pid);
  });

  test("a driver that cannot be used is told why, and tried again", async () => {
    await startAgent();
    const driver = await startDriver({ versions: ["2.0.0"] });
    expect(await until("it is told", async () => await notified(driver))).toEqual({
      plugin_registered: false,
      error: "CSI driver csi.test speaks versions 2.0.0 of CSI, none is 1.x",
    });
    expect(entry("csi.test")).toBeUndefined();
    await driver.configure({ versions: ["2.0.0", "1.5.0"] });
    await until("its entry", () => entry("csi.test"));
  });

  test("a driver whose topology contradicts the Node's labels is refused", async () => {
    await startAgent();
    const first = await startDriver({ name: "a.test", topology: { "topology.csi.test/zone": "z1" } });
    await until("the first", () => entry("a.test"));
    const driver = await startDriver({ name: "b.test", topology: { "topology.csi.test/zone": "z2" } });
    const told = await until("it is told", async () => await notified(driver));
    expect(told["plugin_registered"]).toBe(false);
    expect(told["error"]).toContain("topology value collision");
    expect(entry("b.test")).toBeUndefined();
    expect(await notified(first)).toMatchObject({ plugin_registered: true });
  });

  test("an agent that is started again leaves the entries of drivers that it has not met yet", async () => {
    await startAgent();
    const driver = await startDriver();
    await until("its entry", () => entry("csi.test"));
    const tellings = async () => (await driver.calls("NotifyRegistrationStatus")).length;
    const before = csiNode()?.metadata.resourceVersion;
    await until("it is told", async () => (await tellings()) > 0); // comes after the entry
    await agent?.stop();
    const told = await tellings();
    await startAgent();
    await until("registered again", async () => (await tellings()) > told);
    expect(csiNode()?.metadata.resourceVersion).toBe(before);
  });

  test("a Node that was deleted and registered anew gets a CSINode of its own", async () => {
    await startAgent();
    await startDriver();
    await until("its entry", () => entry("csi.test"));
    const before = csiNode()?.metadata.uid;
    server.objects.delete(nodes, { name: "n1" });
    server.objects.create(nodes, { apiVersion: "v1", kind: "Node", metadata: { name: "n1" } });
    await until("another CSINode", () => (csiNode()?.metadata.uid !== before && entry("csi.test")) || undefined);
    expect(csiNode()?.metadata.ownerReferences?.[0]?.uid).toBe(node()?.metadata.uid);
    expect(node()?.metadata.annotations?.["csi.volume.kubernetes.io/nodeid"]).toBe('{"csi.test":"node-1"}');
  });

  test("volumes are staged, published, measured and taken away", async () => {
    await startAgent();
    const driver = await startDriver();
    await until("its entry", () => entry("csi.test"));
    const client = agent?.drivers.client("csi.test");
    if (client === undefined) throw new Error("there is no agent");
    const stagingTargetPath = join(dir, "staging");
    const targetPath = join(dir, "target");
    const capability: VolumeCapability = {
      accessMode: "SINGLE_NODE_WRITER",
      access: { kind: "mount", fsType: "", mountFlags: ["noexec"], volumeMountGroup: "" },
    };
    const request = {
      volumeID: "v1",
      publishContext: { a: "b" },
      stagingTargetPath,
      capability,
      secrets: { password: "s3cret" },
    };
    await client.nodeStageVolume({ ...request, volumeContext: { size: "4Mi" } });
    await client.nodePublishVolume({ ...request, volumeContext: { size: "4Mi" }, targetPath, isReadOnly: true });
    expect(await isMountPoint(targetPath)).toBe(true);
    await expect(writeFile(join(targetPath, "x"), "x")).rejects.toThrow("EROFS");
    await writeFile(join(stagingTargetPath, "x"), "kept");
    expect(await readFile(join(targetPath, "x"), "utf8")).toBe("kept");
    const { usage, condition } = await client.nodeGetVolumeStats({
      volumeID: "v1",
      volumePath: targetPath,
      stagingTargetPath,
    });
    expect(usage).toMatchObject([{ unit: "BYTES", total: 4 << 20 }, { unit: "INODES" }]);
    expect(condition).toBeUndefined();
    const expansion = { volumeID: "v1", volumePath: targetPath, stagingTargetPath, capability, secrets: {} };
    expect(await client.nodeExpandVolume({ ...expansion, requiredBytes: 6 << 20 })).toBe(6 << 20);
    await client.nodeUnpublishVolume("v1", targetPath);
    await client.nodeUnstageVolume("v1", stagingTargetPath);
    expect(await isMountPoint(stagingTargetPath)).toBe(false);
    const [staged] = await driver.calls("NodeStageVolume");
    expect(staged?.request).toMatchObject({
      publish_context: { a: "b" },
      secrets: { password: "s3cret" },
      volume_capability: { access_mode: { mode: "SINGLE_NODE_WRITER" }, mount: { mount_flags: ["noexec"] } },
    });
  });

  test("volumes with a file system of their own, and as devices, keep their data and grow", async () => {
    const loop = await exec("losetup", ["--find"], { timeoutMs: 10_000 });
    await startAgent();
    const driver = await startDriver({ capabilities: ["STAGE_UNSTAGE_VOLUME", "EXPAND_VOLUME", "VOLUME_MOUNT_GROUP"] });
    await until("its entry", () => entry("csi.test"));
    const client = agent?.drivers.client("csi.test");
    if (client === undefined) throw new Error("there is no agent");
    const paths = { stagingTargetPath: join(dir, "staging"), targetPath: join(dir, "target") };
    const volumeContext = { backend: "ext4", size: "16Mi" };
    const mounted: VolumeCapability = {
      accessMode: "SINGLE_NODE_WRITER",
      access: { kind: "mount", fsType: "ext4", mountFlags: [], volumeMountGroup: "4321" },
    };
    const fs = { volumeID: "fs", publishContext: {}, secrets: {}, volumeContext, capability: mounted, ...paths };
    if (loop.failure !== undefined) {
      // A kernel without loop devices: the driver says so.
      await expect(client.nodeStageVolume(fs)).rejects.toMatchObject({ code: "Internal", isFinal: true });
      return;
    }
    await client.nodeStageVolume(fs);
    await client.nodePublishVolume({ ...fs, isReadOnly: false });
    expect((await stat(paths.targetPath)).gid).toBe(4321);
    await writeFile(join(paths.targetPath, "x"), "kept");
    const before = (await statfs(paths.targetPath)).blocks;
    const grown = { ...fs, volumePath: paths.targetPath, requiredBytes: 32 << 20 };
    if (await mayGrowMounted()) {
      expect(await client.nodeExpandVolume(grown)).toBe(32 << 20);
      expect((await statfs(paths.targetPath)).blocks).toBeGreaterThan(1.5 * before);
    } else {
      await expect(client.nodeExpandVolume(grown)).rejects.toThrow("resize2fs");
    }
    await client.nodeUnpublishVolume("fs", paths.targetPath);
    await client.nodeUnstageVolume("fs", paths.stagingTargetPath);
    await driver.stop("SIGKILL");
    await driver.start();
    const again = await until("it is back", async () => {
      const found = agent?.drivers.names().includes("csi.test") === true ? agent.drivers.client("csi.test") : undefined;
      if (found === client) return undefined; // the old one may reach the new process, but not for long
      return (await found?.nodeStageVolume(fs).then(
        () => true,
        () => false,
      )) === true
        ? found
        : undefined;
    });
    expect(await readFile(join(paths.stagingTargetPath, "x"), "utf8")).toBe("kept");
    await again.nodeUnstageVolume("fs", paths.stagingTargetPath);

    const block: VolumeCapability = { accessMode: "SINGLE_NODE_WRITER", access: { kind: "block" } };
    const device = { ...fs, volumeID: "raw", capability: block, targetPath: join(dir, "device") };
    await again.nodeStageVolume(device);
    await again.nodePublishVolume({ ...device, isReadOnly: false });
    expect((await stat(device.targetPath)).isBlockDevice()).toBe(true);
    await again.nodeUnpublishVolume("raw", device.targetPath);
    await again.nodeUnstageVolume("raw", device.stagingTargetPath);
    const { stdout } = await exec("losetup", ["--list", "--noheadings", "--output", "BACK-FILE"], {
      timeoutMs: 10_000,
    });
    expect(stdout).not.toContain(dir);
  });

  test("refusals say whether anything may be in place, and never what is secret", async () => {
    await startAgent();
    const driver = await startDriver();
    await until("its entry", () => entry("csi.test"));
    const client = agent?.drivers.client("csi.test");
    if (client === undefined) throw new Error("there is no agent");
    const capability: VolumeCapability = { accessMode: "SINGLE_NODE_WRITER", access: { kind: "block" } };
    const stage = async (signal?: AbortSignal) =>
      await client
        .nodeStageVolume(
          {
            volumeID: "v1",
            publishContext: {},
            stagingTargetPath: "/s",
            capability,
            secrets: { p: "s3cret" },
            volumeContext: {},
          },
          signal === undefined ? {} : { signal },
        )
        .catch((err: unknown) => err);
    await driver.fail("NodeStageVolume", { code: "InvalidArgument", message: "no such thing" });
    expect(await stage()).toMatchObject({
      code: "Invalid",
      status: "InvalidArgument",
      isFinal: true,
      message:
        "NodeStageVolume of CSI driver csi.test for volume v1: rpc error: code = InvalidArgument desc = no such thing",
    });
    await driver.fail("NodeStageVolume", { code: "Aborted" });
    expect(await stage()).toMatchObject({ status: "Aborted", isFinal: false });
    await driver.fail("NodeStageVolume", { hangs: true });
    const abort = new AbortController();
    const hanging = stage(abort.signal);
    await until("it hangs", async () => (await driver.calls("NodeStageVolume")).length === 3 || undefined);
    abort.abort();
    expect(await hanging).toMatchObject({ code: "Canceled", isFinal: false });
    const killed = stage();
    await until("it hangs", async () => (await driver.calls("NodeStageVolume")).length === 4 || undefined);
    await driver.stop("SIGKILL");
    const err = await killed;
    expect(err).toMatchObject({ code: "Unavailable", isFinal: false });
    expect(String(err)).not.toContain("s3cret");
  });
});

describe("CSI drivers on a whole node", () => {
  let cluster: LocalCluster;
  let client: KubeClient;
  let driver: TestCSIDriver | undefined;

  beforeAll(async () => {
    cluster = await startLocalCluster();
    const access = await loadKubeconfig(cluster.kubeconfig);
    client = createApiClient({ access, userAgent: "test", qps: -1, burst: 100, log, clock });
  }, 60_000);
  afterAll(async () => {
    await driver?.destroy();
    await client?.[Symbol.asyncDispose]();
    await cluster?.destroy();
  });

  const name = () => cluster.node.name;
  const csiNode = async () => await client.get(csiNodes, { name: name() }).catch(() => undefined);
  const entry = async () => (await csiNode())?.spec.drivers?.find((found) => found.name === "csi.test");
  const ready = async () => {
    const node = await client.get(nodes, { name: name() }).catch(() => undefined);
    return node?.status?.conditions?.find(({ type }) => type === "Ready");
  };

  test("the node is Ready once there is a CSINode, and a driver that registers gets its entry", async () => {
    await until("the node is Ready", async () => ((await ready())?.status === "True" ? true : undefined));
    expect(await csiNode()).toMatchObject({ metadata: { ownerReferences: [{ kind: "Node", name: name() }] } });
    driver = await startCSIDriver({
      rootDir: cluster.rootDir,
      dir: join(cluster.node.dir, "csi"),
      nodeID: name(),
      maxVolumesPerNode: 4,
    });
    expect(await until("the driver's entry", entry)).toMatchObject({ nodeID: name(), allocatable: { count: 4 } });
    await until("the driver is told", async () => (await driver?.calls("NotifyRegistrationStatus"))?.at(-1)?.code);
  });

  test("an agent that is killed finds the driver again, and the node stays Ready", async () => {
    const before = await ready();
    await cluster.agent.stop("SIGKILL");
    await cluster.agent.start();
    await until("registered again", async () => {
      const calls = await driver?.calls("NotifyRegistrationStatus");
      return calls !== undefined && calls.length >= 2 ? true : undefined;
    });
    await until("a heartbeat of the new agent", async () => {
      const now = await ready();
      return now?.lastHeartbeatTime === before?.lastHeartbeatTime ? undefined : true;
    });
    expect(await ready()).toMatchObject({ status: "True", lastTransitionTime: before?.lastTransitionTime });
    expect(await entry()).toMatchObject({ nodeID: name() });
  });

  test("a driver that ends loses its entry", async () => {
    await driver?.stop("SIGTERM");
    await until("its entry has gone", async () => ((await entry()) === undefined ? true : undefined));
  });
});
