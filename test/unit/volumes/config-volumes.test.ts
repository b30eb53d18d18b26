import { lstat, readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { ConfigMap, Pod, PodSpec, Volume } from "../../../agent/kube/types.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { createPodVolumes, type VolumeManager } from "../../../agent/volumes/manager.ts";
import { base64, FakeClock, FakeObjects, makePod, makeTempDir, strangers } from "./support.ts";
import { hiddenNames, visible } from "./writer-support.ts";

// What a configMap volume becomes, from object to files. Kinds that lie in memory are in the integration tests.

const never = new AbortController().signal;
const podUID = makePod({}).metadata.uid ?? "";
let root: string;
let cleanUp: () => Promise<void>;
let objects: FakeObjects;
let manager: VolumeManager;
let events: string[];

function start(): VolumeManager {
  return createPodVolumes({
    rootDir: root,
    client: undefined,
    objects,
    clock: new FakeClock(),
    log: silentLogger,
    nodeAllocatable: () => ({}),
    selinuxEnabled: false,
    onEvent: (_pod, type, reason, message) => events.push(`${type} ${reason} ${message}`),
    random: () => 0,
  });
}

beforeEach(async () => {
  ({ dir: root, cleanUp } = await makeTempDir());
  objects = new FakeObjects();
  events = [];
  manager = start();
});
afterEach(async () => {
  manager.close();
  await cleanUp();
});

const dir = () => join(root, "pods", podUID, "volumes/kubernetes.io~configmap/v");

function podWith(configMap: Volume["configMap"], spec: Partial<PodSpec> = {}): Pod {
  const containers = [{ name: "app", volumeMounts: [{ name: "v", mountPath: "/v" }] }];
  return makePod({ containers, volumes: [{ name: "v", configMap: { name: "settings", ...configMap } }], ...spec });
}

function put(object: Partial<ConfigMap>): void {
  objects.configMaps.set("shop/settings", { metadata: { name: "settings", namespace: "shop" }, ...object });
}

const modeOf = async (path: string) => ((await stat(join(dir(), path))).mode & 0o7777).toString(8);

describe("content", () => {
  test("data and binaryData, of which the latter wins, up to a MiB", async () => {
    const big = "x".repeat(1 << 20);
    const bytes = Buffer.from([0, 255, 254, 10]);
    put({
      data: { both: "text", big, empty: "" },
      binaryData: { both: base64("binary"), bytes: bytes.toString("base64") },
    });
    await manager.setUp(podWith({}), never);
    const seen = await visible(dir());
    expect({ ...seen, bytes: undefined, big: seen["big"] === big }).toEqual({
      both: "binary",
      big: true,
      empty: "",
      bytes: undefined,
    });
    expect((await readFile(join(dir(), "bytes"))).equals(bytes)).toBe(true);
  });

  test("items look in data and in binaryData", async () => {
    put({ data: { text: "1" }, binaryData: { bin: base64("2") } });
    const items = [
      { key: "text", path: "a/text" },
      { key: "bin", path: "b/bin", mode: 0o600 },
    ];
    await manager.setUp(podWith({ items, defaultMode: 0o440 }), never);
    expect(await visible(dir())).toEqual({ "a/text": "1", "b/bin": "2" });
    expect([await modeOf("a/text"), await modeOf("b/bin"), await modeOf("a")]).toEqual(["440", "600", "755"]);
  });

  test.each([
    { name: "default", configMap: {}, fsGroup: undefined, want: "644" },
    { name: "defaultMode", configMap: { defaultMode: 0o400 }, fsGroup: undefined, want: "400" },
    { name: "zero is a mode", configMap: { defaultMode: 0 }, fsGroup: undefined, want: "0" },
    { name: "an fsGroup may read", configMap: { defaultMode: 0o400 }, fsGroup: strangers.gid, want: "440" },
  ])("mode: $name", async ({ configMap, fsGroup, want }) => {
    put({ data: { key: "1" } });
    const securityContext = fsGroup === undefined ? {} : { fsGroup };
    await manager.setUp(podWith(configMap, { securityContext }), never);
    expect(await modeOf("key")).toBe(want);
    expect((await stat(join(dir(), "key"))).gid).toBe(fsGroup ?? process.getgid?.());
    expect(await modeOf(".")).toBe(fsGroup === undefined ? "777" : "2777");
  });
});

describe("what cannot be files", () => {
  test.each([
    { name: "a key that leads out", object: { data: { "../../../etc/passwd": "x" } }, why: 'must not contain ".."' },
    { name: "a key that is ours", object: { data: { "..data": "x" } }, why: 'path "..data" must not start with ".."' },
    {
      name: "a key like a version",
      object: { data: { "..2026_01_31_23_59_59.1": "x" } },
      why: 'must not start with ".."',
    },
    { name: "a key of binaryData", object: { binaryData: { "..": base64("x") } }, why: 'must not contain ".."' },
    {
      name: "a path that is ours",
      object: { data: { k: "x" } },
      items: [{ key: "k", path: "..data_tmp" }],
      why: '"..data_tmp"',
    },
    {
      name: "an absolute path",
      object: { data: { k: "x" } },
      items: [{ key: "k", path: "/etc/passwd" }],
      why: "is absolute",
    },
    {
      name: "a file that is a directory, too",
      object: { data: { k: "x" } },
      items: [
        { key: "k", path: "a" },
        { key: "k", path: "a/b" },
      ],
      why: 'path "a/b" leads through "a"',
    },
    {
      name: "a missing key",
      object: { data: {} },
      items: [{ key: "k", path: "a" }],
      why: "references non-existent config key: k",
    },
  ] as { name: string; object: Partial<ConfigMap>; items?: { key: string; path: string }[]; why: string }[])(
    "$name is refused in words",
    async ({ object, items, why }) => {
      put(object);
      const setUp = manager.setUp(podWith(items === undefined ? {} : { items }), never);
      await expect(setUp).rejects.toMatchObject({ code: "Invalid", message: expect.stringContaining(why) as string });
      await expect(lstat(join(dir(), "..data"))).rejects.toThrow("ENOENT");
    },
  );

  test("a first write that fails takes the volume down", async () => {
    put({ data: { "..data": "x" } });
    await expect(manager.setUp(podWith({}), never)).rejects.toThrow();
    await expect(lstat(dir())).rejects.toThrow("ENOENT");
    expect(await readdir(join(root, "pods", podUID, "plugins/kubernetes.io~empty-dir"))).toEqual([]);
  });

  test("a file in the place of another volume's mount", async () => {
    put({ data: { cache: "x", ok: "y" } });
    const volumeMounts = [
      { name: "v", mountPath: "/etc/app" },
      { name: "w", mountPath: "/etc/app/cache" },
    ];
    const pod = podWith({}, { containers: [{ name: "app", volumeMounts }] });
    const volumes = [...(pod.spec.volumes ?? []), { name: "w", emptyDir: {} }];
    await expect(manager.setUp({ ...pod, spec: { ...pod.spec, volumes } }, never)).rejects.toThrow(
      'path "cache" is taken by a directory that another volume is mounted at',
    );
  });

  test("a mountPath that leads out of the container", async () => {
    put({ data: { key: "x" } });
    const containers = [{ name: "app", volumeMounts: [{ name: "v", mountPath: "../v" }] }];
    await expect(manager.setUp(podWith({}, { containers }), never)).rejects.toThrow(
      'mountPath "../v" of container "app" leads out of the container',
    );
  });

  test("in an update: the old content stays, and an event says why", async () => {
    put({ data: { key: "old" } });
    await manager.setUp(podWith({}), never);
    put({ data: { key: "new", "..data": "x" } });
    await manager.setUp(podWith({}), never);
    expect(await visible(dir())).toEqual({ key: "old" });
    expect(events).toEqual([
      'Warning FailedMount MountVolume.SetUp failed for volume "v" : path "..data" must not start with ".."',
    ]);
  });
});

describe("an object that comes and goes", () => {
  test("optional: its files go with it, and come back", async () => {
    const pod = podWith({ optional: true });
    for (const data of [{ key: "1" }, undefined, { key: "2", more: "3" }]) {
      if (data === undefined) objects.configMaps.clear();
      else put({ data });
      await manager.setUp(pod, never);
      expect(await visible(dir())).toEqual(data ?? {});
      expect(await hiddenNames(dir())).toHaveLength(2);
    }
    expect(events).toEqual([]);
  });

  test("optional: a listed key may be missing", async () => {
    put({ data: { there: "1" } });
    const items = ["there", "absent"].map((key) => ({ key, path: key }));
    await manager.setUp(podWith({ optional: true, items }), never);
    expect(await visible(dir())).toEqual({ there: "1" });
  });

  test("not optional: its files outlive it, and follow the new one", async () => {
    const pod = podWith({});
    put({ data: { key: "1", gone: "1" } });
    await manager.setUp(pod, never);
    objects.configMaps.clear();
    await manager.setUp(pod, never);
    expect(await visible(dir())).toEqual({ key: "1", gone: "1" });
    expect(events).toEqual([
      'Warning FailedMount MountVolume.SetUp failed for volume "v" : configmap "settings" not found',
    ]);
    manager = start(); // also across a restart of the agent
    await manager.setUp(pod, never);
    expect(await visible(dir())).toEqual({ key: "1", gone: "1" });
    put({ data: { key: "2" } });
    await manager.setUp(pod, never);
    expect(await visible(dir())).toEqual({ key: "2" });
  });
});
