import { chmod, mkdir, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { usedVolumes } from "../../../agent/kube/pod-resources.ts";
import type { Pod, PodSpec, Volume } from "../../../agent/kube/types.ts";
import { AgentError } from "../../../agent/lib/errors.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { MetricsRegistry } from "../../../agent/lib/metrics.ts";
import { PodDirError } from "../../../agent/volumes/failures.ts";
import type { VolumeKind } from "../../../agent/volumes/kind.ts";
import { createPodVolumes, resyncMs, retryBackoff, type VolumeManager } from "../../../agent/volumes/manager.ts";
import { volumeFileBytesMax } from "../../../agent/volumes/volume-file.ts";
import { createVolumeMetrics, type VolumeMetrics } from "../../../agent/volumes/metrics.ts";
import { metricsText } from "../lib/metrics-support.ts";
import { FakeClock, FakeObjects, makePod, makeTempDir } from "./support.ts";

// What needs no mount: volumes on the disk. Those in memory are in the integration tests.

const never = new AbortController().signal;
const context = { podIPs: [], recursiveReadOnlySupported: false, userns: undefined };
let root: string;
let cleanUp: () => Promise<void>;
let objects: FakeObjects;
let clock: FakeClock;
let manager: VolumeManager;
let events: string[];

function start(metrics?: VolumeMetrics, kinds: VolumeKind[] = []): VolumeManager {
  return createPodVolumes({
    kinds,
    ...(metrics === undefined ? {} : { metrics }),
    rootDir: root,
    client: undefined,
    objects,
    clock,
    log: silentLogger,
    nodeAllocatable: () => ({ memory: "1Gi" }),
    selinuxEnabled: false,
    onEvent: (_pod, type, reason, message) => events.push(`${type} ${reason} ${message}`),
    random: () => 0,
  });
}

beforeEach(async () => {
  ({ dir: root, cleanUp } = await makeTempDir());
  objects = new FakeObjects();
  clock = new FakeClock();
  events = [];
  manager = start();
});
afterEach(() => cleanUp());

function podWith(volume: Volume, spec: Partial<PodSpec> = {}): Pod {
  const containers = [{ name: "app", volumeMounts: [{ name: volume.name, mountPath: "/v" }] }];
  return makePod({ containers, volumes: [volume], ...spec });
}

async function pathOf(pod: Pod): Promise<string> {
  const [mount] = await manager.mounts(pod, pod.spec.containers[0]!, new Map(), context);
  return mount?.hostPath ?? "";
}

const podUID = makePod({}).metadata.uid ?? "";
const podDir = () => join(root, "pods", podUID);
const settings = { name: "v", configMap: { name: "settings" } };

describe("setUp", () => {
  test("emptyDir: everyone may write, and a second call leaves what is there alone", async () => {
    const pod = podWith({ name: "v", emptyDir: {} });
    await manager.setUp(pod, never);
    const dir = await pathOf(pod);
    expect(dir).toBe(join(podDir(), "volumes/kubernetes.io~empty-dir/v"));
    expect((await stat(dir)).mode & 0o7777).toBe(0o777);
    await writeFile(join(dir, "data"), "kept");
    await chmod(dir, 0o700);
    manager = start(); // as after a restart
    await manager.setUp(pod, never);
    expect(await readFile(join(dir, "data"), "utf8")).toBe("kept");
    expect((await stat(dir)).mode & 0o7777).toBe(0o700);
    expect((await stat(podDir())).mode & 0o7777).toBe(0o750);
  });

  test("emptyDir of an unknown medium is refused", async () => {
    const pod = podWith({ name: "v", emptyDir: { medium: "Floppy" } });
    await expect(manager.setUp(pod, never)).rejects.toThrow(
      'MountVolume.SetUp failed for volume "v" : unknown storage medium "Floppy"',
    );
  });

  test("configMap: files with their modes, changed when the object changes", async () => {
    objects.setConfigMap("settings", { color: "blue" });
    const pod = podWith({ name: "v", configMap: { name: "settings", defaultMode: 0o440 } });
    await manager.setUp(pod, never);
    const file = join(await pathOf(pod), "color");
    expect(await readFile(file, "utf8")).toBe("blue");
    expect((await stat(file)).mode & 0o7777).toBe(0o440);

    const woken: string[] = [];
    manager.onChange((uid) => woken.push(uid));
    objects.setConfigMap("unrelated", {});
    expect(woken).toEqual([]);
    objects.setConfigMap("settings", { color: "red" });
    expect(woken).toEqual([podUID]);
    await manager.setUp(pod, never);
    expect(await readFile(file, "utf8")).toBe("red");
  });

  test("a volume that no container mounts is ignored, even if it could not be set up", async () => {
    const pod = makePod({ volumes: [{ name: "v", iscsi: {} }, settings] });
    await manager.setUp(pod, never);
    expect(await readdir(join(podDir(), "volumes"))).toEqual([]);
  });

  test("names every volume that fails, and sets the others up", async () => {
    const volumes: Volume[] = [
      { name: "good", emptyDir: {} },
      settings,
      { name: "disk", persistentVolumeClaim: { claimName: "disk" } },
    ];
    const volumeMounts = volumes.map(({ name }) => ({ name, mountPath: `/${name}` }));
    const pod = makePod({ volumes, containers: [{ name: "app", volumeMounts }] });
    await expect(manager.setUp(pod, never)).rejects.toMatchObject({
      code: "NotFound",
      message:
        'MountVolume.SetUp failed for volume "v" : configmap "settings" not found; ' +
        "Unable to attach or mount volumes: unmounted volumes=[v disk], unattached volumes=[], " +
        "failed to process volumes=[disk]: a PersistentVolumeClaim needs an API server, and this node has none",
    });
    expect(await readdir(join(podDir(), "volumes/kubernetes.io~empty-dir"))).toEqual(["good"]);
  });

  test("a missing object is asked for again with growing pauses, and at once when it appears", async () => {
    const pod = podWith(settings);
    const woken: string[] = [];
    manager.onChange((uid) => woken.push(uid));
    for (const want of [retryBackoff.baseMs, 2 * retryBackoff.baseMs]) {
      await expect(manager.setUp(pod, never)).rejects.toThrow("not found");
      expect(manager.refreshInMs(podUID)).toBe(want);
    }
    objects.setConfigMap("settings", {});
    expect(woken).toEqual([podUID]);
    await manager.setUp(pod, never);
    expect(manager.refreshInMs(podUID)).toBe(resyncMs);
    await clock.advance(resyncMs + 5);
    expect(manager.refreshInMs(podUID)).toBe(0);
  });

  test("a volume that shows no object is looked at again, too: the node and the time of day change without a word", async () => {
    let isRefreshed = true;
    const far = 24 * 3_600_000;
    const kind: VolumeKind = {
      field: "csi",
      pluginName: "example.com/clock",
      isReadOnly: true,
      isRelabelled: false,
      isRefreshed: true,
      setUp: async ({ dir }) => await Promise.resolve({ hostPath: dir, isRefreshed, refreshAtMs: clock.now() + far }),
    };
    manager = start(undefined, [kind]);
    const pod = podWith({ name: "v", csi: { driver: "any" } });
    await manager.setUp(pod, never);
    expect(manager.refreshInMs(podUID)).toBe(resyncMs);
    isRefreshed = false;
    await manager.setUp(pod, never);
    expect(manager.refreshInMs(podUID)).toBe(far);
  });

  test("a pod directory that cannot be made is no fault of a volume", async () => {
    await mkdir(join(root, "pods"), { recursive: true });
    await writeFile(podDir(), "in the way");
    const failure = await manager.setUp(podWith({ name: "v", emptyDir: {} }), never).catch((err: unknown) => err);
    expect(failure).toBeInstanceOf(PodDirError);
    expect((failure as PodDirError).events).toEqual([
      { reason: "Failed", message: expect.stringMatching(/^error making pod data directories: E(EXIST|NOTDIR)/) },
    ]);
    const odd = makePod({}, { uid: "../../x" });
    await expect(manager.setUp(odd, never)).rejects.toThrow('"../../x" is not a pod UID');
    expect(await readdir(root)).toEqual(["pods"]);
  });

  test("an optional object may be missing, and come later", async () => {
    const pod = podWith({ name: "v", configMap: { name: "settings", optional: true } });
    await manager.setUp(pod, never);
    const dir = await pathOf(pod);
    expect((await readdir(dir)).filter((name) => !name.startsWith(".."))).toEqual([]);
    objects.setConfigMap("settings", { color: "blue" });
    await manager.setUp(pod, never);
    expect(await readFile(join(dir, "color"), "utf8")).toBe("blue");
  });

  test.each(["in the same run", "after a restart"])("content outlives its object, with a warning, %s", async (when) => {
    objects.setConfigMap("settings", { color: "blue" });
    const pod = podWith(settings);
    await manager.setUp(pod, never);
    if (when === "after a restart") manager = start();
    objects.failure = new AgentError("Unavailable", "the API server is away");
    await manager.setUp(pod, never);
    expect(await readFile(join(await pathOf(pod), "color"), "utf8")).toBe("blue");
    expect(events).toEqual(['Warning FailedMount MountVolume.SetUp failed for volume "v" : the API server is away']);
    expect(manager.refreshInMs(podUID)).toBe(retryBackoff.baseMs);
  });

  test("ends as soon as it is aborted, whatever it waits for", async () => {
    objects.configMap = () => new Promise(() => {});
    const stop = new AbortController();
    const setUp = manager.setUp(podWith(settings), stop.signal);
    setTimeout(() => stop.abort(), 10);
    await expect(setUp).rejects.toThrow("aborted");
  });

  test("directories for mounts inside a read-only volume are there beforehand", async () => {
    objects.setConfigMap("settings", { color: "blue" });
    const volumeMounts = [
      { name: "v", mountPath: "/etc/app" },
      { name: "scratch", mountPath: "/etc/app/cache" },
    ];
    const pod = podWith(settings, {
      volumes: [settings, { name: "scratch", emptyDir: {} }],
      containers: [{ name: "app", volumeMounts }],
    });
    await manager.setUp(pod, never);
    expect((await stat(join(await pathOf(pod), "cache"))).isDirectory()).toBe(true);
  });

  test("a UID that is a path goes nowhere", async () => {
    const pod = makePod({}, { uid: "../../etc" });
    await expect(manager.setUp(pod, never)).rejects.toThrow('"../../etc" is not a pod UID');
    await expect(manager.removePodDir("..")).rejects.toThrow("is not a pod UID");
  });
});

describe("hostPath", () => {
  const setUp = (path: string, type?: string) =>
    manager.setUp(podWith({ name: "v", hostPath: { path, ...(type === undefined ? {} : { type }) } }), never);

  test.each([
    ["", "missing", "nothing"],
    ["Directory", "dir", "directory"],
    ["DirectoryOrCreate", "dir", "directory"],
    ["DirectoryOrCreate", "new/deep", "directory"],
    ["File", "file", "file"],
    ["FileOrCreate", "file", "file"],
    ["FileOrCreate", "new-file", "file"],
    ["Socket", "socket", "other"],
    ["CharDevice", "/dev/null", "other"],
  ])("type %j takes %s", async (type, path, want) => {
    const server = await populate();
    try {
      const full = path.startsWith("/") ? path : join(root, path);
      await setUp(full, type);
      const made = await stat(full).catch(() => undefined);
      const found =
        made === undefined ? "nothing" : made.isDirectory() ? "directory" : made.isFile() ? "file" : "other";
      expect(found).toBe(want);
    } finally {
      server.close();
    }
  });

  test.each([
    ["Directory", "file", "is not a directory"],
    ["Directory", "missing", "is not a directory"],
    ["DirectoryOrCreate", "file", "is not a directory"],
    ["File", "dir", "is not a file"],
    ["FileOrCreate", "dir", "is not a file"],
    ["FileOrCreate", "no-parent/file", "no such file or directory"],
    ["Socket", "file", "is not a socket file"],
    ["CharDevice", "file", "is not a character device"],
    ["BlockDevice", "file", "is not a block device"],
    ["Banana", "file", 'hostPath type "Banana" is not known'],
    ["toString", "file", 'hostPath type "toString" is not known'],
  ])("type %s refuses %s", async (type, path, why) => {
    const server = await populate();
    try {
      await expect(setUp(join(root, path), type)).rejects.toThrow(why);
    } finally {
      server.close();
    }
  });

  test("a path with .. is refused", async () => {
    await expect(setUp("/var/../etc")).rejects.toThrow('must not contain ".."');
  });

  async function populate() {
    await mkdir(join(root, "dir"));
    await writeFile(join(root, "file"), "");
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(join(root, "socket"), resolve));
    return server;
  }
});

describe("mounts", () => {
  test("a volume that is not there is named", async () => {
    const pod = makePod({ containers: [{ name: "app", volumeMounts: [{ name: "x", mountPath: "/x" }] }] });
    await expect(manager.mounts(pod, pod.spec.containers[0]!, new Map(), context)).rejects.toMatchObject({
      code: "Invalid",
      message: 'cannot find volume "x" to mount into container "app"',
    });
  });

  test("config volumes are read-only to containers, in the order of the spec", async () => {
    objects.setConfigMap("settings", {});
    const volumeMounts = [
      { name: "v", mountPath: "/b" },
      { name: "scratch", mountPath: "/a" },
    ];
    const pod = makePod({
      containers: [{ name: "app", volumeMounts }],
      volumes: [settings, { name: "scratch", emptyDir: {} }],
    });
    await manager.setUp(pod, never);
    const mounts = await manager.mounts(pod, pod.spec.containers[0]!, new Map(), context);
    expect(mounts.map(({ containerPath, readonly }) => [containerPath, readonly])).toEqual([
      ["/b", true],
      ["/a", false],
    ]);
  });
});

describe("readVolumeFile", () => {
  test("reads inside the volume only, and only files of a sane size", async () => {
    const pod = podWith({ name: "v", emptyDir: {} });
    await expect(manager.readVolumeFile(podUID, "v", "x")).rejects.toThrow('volume "v" is not mounted');
    await manager.setUp(pod, never);
    const dir = await pathOf(pod);
    await writeFile(join(dir, "app.env"), "K='v'");
    await mkdir(join(dir, "sub"));
    await writeFile(join(dir, "big"), Buffer.alloc(volumeFileBytesMax + 1));
    expect(await manager.readVolumeFile(podUID, "v", "app.env")).toBe("K='v'");
    await expect(manager.readVolumeFile(podUID, "v", "nope")).rejects.toMatchObject({ code: "NotFound" });
    await expect(manager.readVolumeFile(podUID, "v", "sub")).rejects.toThrow("is not a file");
    await expect(manager.readVolumeFile(podUID, "v", "big")).rejects.toThrow("is larger than");
    await expect(manager.readVolumeFile(podUID, "v", "../../../../../../etc/passwd")).rejects.toThrow(
      /out of the volume|ENOENT/,
    );
  });
});

describe("tearDown", () => {
  test("leaves nothing of the volumes, and stops waking the pod", async () => {
    objects.setConfigMap("settings", { color: "blue" });
    const woken: string[] = [];
    manager.onChange((uid) => woken.push(uid));
    await manager.setUp(podWith(settings), never);
    await writeFile(join(podDir(), "etc-hosts"), "");
    await expect(manager.removePodDir(podUID)).rejects.toThrow("its volumes are in use");
    await manager.tearDown(podUID);
    expect(await readdir(podDir())).toEqual(["etc-hosts", "plugins"]);
    expect(manager.refreshInMs(podUID)).toBeUndefined();
    objects.setConfigMap("settings", { color: "red" });
    expect(woken).toEqual([]);

    expect(await manager.podUIDsOnDisk()).toEqual([podUID]);
    await manager.removePodDir(podUID);
    expect(await manager.podUIDsOnDisk()).toEqual([]);
    await manager.tearDown(podUID);
    await manager.removePodDir(podUID);
  });

  test("works for pods of an earlier run", async () => {
    await manager.setUp(podWith({ name: "v", emptyDir: {} }), never);
    await writeFile(join(podDir(), "volumes/kubernetes.io~empty-dir/v/data"), "x");
    manager = start();
    await manager.tearDown(podUID);
    await manager.removePodDir(podUID);
    expect(await manager.podUIDsOnDisk()).toEqual([]);
  });

  test("of pods of an earlier run is counted, by what their directories told", async () => {
    const registry = new MetricsRegistry();
    const shown = async () =>
      (await metricsText(registry)).split("\n").filter((line) => /^(?:reconstruct|force_cleaned)_/.test(line));
    await manager.setUp(podWith({ name: "v", emptyDir: {} }), never);
    manager = start(createVolumeMetrics(registry, clock));
    const foreign = join(podDir(), "volumes/example.com~foreign/pv/mount");
    await mkdir(foreign, { recursive: true });
    await expect(manager.tearDown(podUID)).rejects.toThrow();
    expect(await shown()).toEqual([
      "force_cleaned_failed_volume_operation_errors_total 1",
      "force_cleaned_failed_volume_operations_total 1",
      "reconstruct_volume_operations_errors_total 1",
      "reconstruct_volume_operations_total 2",
    ]);
    await rm(join(podDir(), "volumes/example.com~foreign"), { recursive: true });
    await manager.setUp(podWith({ name: "v", emptyDir: {} }), never);
    await manager.tearDown(podUID); // of a pod that is known
    expect(await shown()).toContain("reconstruct_volume_operations_total 2");
  });

  test("content in volumes of kinds that are not ours is never deleted", async () => {
    const foreign = join(podDir(), "volumes/kubernetes.io~csi/pv/mount");
    await mkdir(foreign, { recursive: true });
    await writeFile(join(foreign, "data"), "precious");
    await expect(manager.tearDown(podUID)).rejects.toThrow();
    await expect(manager.removePodDir(podUID)).rejects.toThrow();
    expect(await readFile(join(foreign, "data"), "utf8")).toBe("precious");
  });
});

test("podUIDsOnDisk: what a file system keeps beside pods' directories is none of them", async () => {
  for (const name of [podUID, "0123456789abcdef0123456789abcdef", "lost+found", ".snapshot"]) {
    await mkdir(join(root, "pods", name), { recursive: true });
  }
  expect((await manager.podUIDsOnDisk()).toSorted()).toEqual(["0123456789abcdef0123456789abcdef", podUID]);
});

test("usedVolumes: mounts and devices of every kind of container count", () => {
  const volumes = ["a", "b", "c", "d", "unused"].map((name) => ({ name }));
  const pod = makePod({
    volumes,
    containers: [{ name: "app", volumeMounts: [{ name: "a", mountPath: "/a" }] }],
    initContainers: [{ name: "init", volumeDevices: [{ name: "b", devicePath: "/dev/b" }] }],
    ephemeralContainers: [{ name: "debug", volumeMounts: [{ name: "c", mountPath: "/c" }] }],
  });
  expect(usedVolumes(pod).map(({ name }) => name)).toEqual(["a", "b", "c"]);
});

test("volumes are counted, and timed when they come and go", async () => {
  const registry = new MetricsRegistry();
  manager = start(createVolumeMetrics(registry, clock));
  objects.setConfigMap("settings", { color: "blue" });
  const mounts = ["v", "w", "x"].map((name) => ({ name, mountPath: `/${name}` }));
  const pod = makePod({
    containers: [{ name: "app", volumeMounts: mounts }],
    volumes: [settings, { name: "w", secret: { secretName: "gone" } }, { name: "x", iscsi: {} }],
  });
  await expect(manager.setUp(pod, never)).rejects.toThrow("gone");
  await expect(manager.setUp(pod, never)).rejects.toThrow("gone");
  const before = await metricsText(registry);
  const total = (plugin: string, state: string) =>
    `volume_manager_total_volumes{plugin_name="kubernetes.io/${plugin}",state="${state}_state_of_world"} 1\n`;
  const took = (operation: string, status: string, plugin: string) =>
    `count{migrated="false",operation_name="${operation}",status="${status}",volume_plugin="kubernetes.io/${plugin}"}`;
  expect(before).toContain(total("configmap", "desired"));
  expect(before).toContain(total("configmap", "actual"));
  expect(before).toContain(total("secret", "desired"));
  expect(before).not.toContain(total("secret", "actual"));
  expect(before).toContain(`${took("volume_mount", "success", "configmap")} 1\n`); // the second time it only looked
  expect(before).toContain(`${took("volume_mount", "fail-unknown", "secret")} 2\n`);
  await manager.tearDown(podUID);
  const after = await metricsText(registry);
  expect(after).not.toContain("volume_manager_total_volumes");
  expect(after).toContain(`${took("volume_unmount", "success", "configmap")} 1\n`);
});
