import { mkdir, mkdtemp, readdir, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { beforeEach, expect, onTestFinished, test } from "vitest";
import type { Pod, Volume } from "../../../agent/kube/types.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { blockBytes } from "../../../agent/stats/filesystem.ts";
import { createRemoteFilesystems } from "../../../agent/stats/remote-filesystem.ts";
import {
  createVolumeMeter,
  idleAfterMs,
  lanes,
  type VolumeMeterDeps,
  volumeTimeoutMs,
} from "../../../agent/stats/volumes.ts";
import { FakeClock } from "../kube/fake-clock.ts";

const periodMs = 60_000;
let rootDir: string;
let clock: FakeClock;
let pods: Pod[];

beforeEach(async () => {
  rootDir = await mkdtemp(join(tmpdir(), "nodelet-volumes-"));
  const made = rootDir;
  onTestFinished(async () => await rm(made, { recursive: true, force: true }));
  clock = new FakeClock();
  pods = [];
});

const addPod = async (uid: string, volumes: Volume[]) => {
  pods.push({ metadata: { name: uid, namespace: "ns", uid }, spec: { containers: [], volumes } });
};
const fill = async (uid: string, plugin: string, name: string, bytes: number) => {
  const directory = join(rootDir, "pods", uid, "volumes", plugin, name);
  await mkdir(directory, { recursive: true });
  await writeFile(join(directory, "file"), Buffer.alloc(bytes, 1));
};

const publish = async (uid: string, plugin: string, name: string, version: string) => {
  const link = join(rootDir, "pods", uid, "volumes", plugin, name, "..data");
  await rm(link, { force: true });
  await symlink(version, link);
};

function start(change: Partial<VolumeMeterDeps> = {}) {
  const stop = new AbortController();
  const deps = {
    pods: { list: () => pods },
    rootDir,
    periodMs,
    clock,
    statsOf: async () => undefined,
    filesystems: createRemoteFilesystems(clock),
    log: silentLogger,
    random: () => 0.5,
    ...change,
  };
  const meter = createVolumeMeter(deps);
  const running = meter.run(stop.signal);
  onTestFinished(async () => {
    stop.abort();
    await running;
  });
  return { meter, settle: async () => await meter.settle(2_000, stop.signal) };
}

/** A tree that grows faster than it is walked. */
const endless = async (_directory: string, signal: AbortSignal) =>
  await new Promise<never>((_resolve, reject) => {
    signal.addEventListener("abort", () => reject(new Error("aborted")));
  });

/** Without a disk, so that no time passes meanwhile. */
const measured = (bytes: number) => ({
  usage: { bytes, inodes: 1 },
  filesystem: { capacityBytes: 10, availableBytes: 5, usedBytes: 5, inodes: 10, inodesFree: 5 },
});

test("the first to ask waits for figures; later ones have them at once", async () => {
  await addPod("u1", [{ name: "scratch", emptyDir: {} }]);
  await fill("u1", "kubernetes.io~empty-dir", "scratch", 100_000);
  const { meter, settle } = start();
  expect(meter.of("u1")).toEqual([]);
  await settle();
  const [volume] = meter.of("u1");
  expect(volume).toMatchObject({ isLocalEphemeral: true, stats: { name: "scratch", inodesUsed: 2 } });
  expect(volume?.stats.usedBytes).toBeGreaterThanOrEqual(100_000);
  expect(volume?.stats.capacityBytes).toBeGreaterThan(volume?.stats.usedBytes ?? 0);
});

test("each period, lengthened by up to itself, the figures are renewed", async () => {
  await addPod("u1", [{ name: "scratch", emptyDir: {} }]);
  await fill("u1", "kubernetes.io~empty-dir", "scratch", 1_000);
  const { meter, settle } = start();
  await settle();
  await fill("u1", "kubernetes.io~empty-dir", "scratch", 200_000);
  const used = () => meter.of("u1")[0]?.stats.usedBytes ?? 0;
  await clock.advance(periodMs * 1.5 - 1);
  expect(used()).toBeLessThan(200_000);
  await clock.advance(1);
  await expect.poll(used, { interval: 1 }).toBeGreaterThanOrEqual(200_000);
});

test("what only the agent writes is measured once for each version of it", async () => {
  await addPod("u1", [{ name: "conf", configMap: { name: "c" } }]);
  await fill("u1", "kubernetes.io~configmap", "conf", 1_000);
  await publish("u1", "kubernetes.io~configmap", "conf", "..2026_1");
  const { meter, settle } = start();
  await settle();
  const before = meter.of("u1");
  expect(before[0]?.isLocalEphemeral).toBe(true);
  await fill("u1", "kubernetes.io~configmap", "conf", 500_000);
  await clock.advance(periodMs * 1.5); // not further: what passes while the disk is read counts as the disk's slowness
  await expect.poll(() => meter.of("u1") !== before, { interval: 1 }).toBe(true);
  expect(meter.of("u1")[0]?.stats.usedBytes).toBe(before[0]?.stats.usedBytes);
  await publish("u1", "kubernetes.io~configmap", "conf", "..2026_2");
  await clock.advance(periodMs * 1.5);
  await expect.poll(() => meter.of("u1")[0]?.stats.usedBytes, { interval: 1 }).toBeGreaterThan(500_000);
});

test("the figures of a volume that is not set up yet are not kept", async () => {
  await addPod("u1", [{ name: "conf", configMap: { name: "comes-later" } }]);
  await mkdir(join(rootDir, "pods/u1/volumes/kubernetes.io~configmap/conf"), { recursive: true });
  const { meter, settle } = start();
  await settle();
  expect(meter.of("u1")[0]?.stats.inodesUsed).toBe(1);
  await fill("u1", "kubernetes.io~configmap", "conf", 100_000);
  await publish("u1", "kubernetes.io~configmap", "conf", "..2026_1");
  await clock.advance(periodMs * 1.5);
  await expect.poll(() => meter.of("u1")[0]?.stats.usedBytes, { interval: 1 }).toBeGreaterThan(100_000);
});

test("a clock that is set back or forth neither stops the measuring nor has it done at once", async () => {
  await addPod("u1", [{ name: "scratch", emptyDir: {} }]);
  let skewMs = 0;
  let count = 0;
  const { meter, settle } = start({
    clock: {
      now: () => clock.now() + skewMs,
      monotonic: clock.monotonic,
      sleep: async (ms, signal) => await clock.sleep(ms, signal),
      after: (ms, fn) => clock.after(ms, fn),
    },
    measure: async () => measured((count += 1)),
  });
  await settle();
  skewMs = -24 * 3_600_000;
  await clock.advance(periodMs * 3);
  expect(meter.of("u1")).toHaveLength(1);
  expect(count).toBe(3);
  skewMs = 24 * 3_600_000;
  await clock.advance(periodMs * 1.5);
  expect(meter.of("u1")).toHaveLength(1);
  expect(count).toBe(4);
});

test("nobody asks for a while: measuring stops, and the next one waits for fresh figures", async () => {
  await addPod("u1", [{ name: "scratch", emptyDir: {} }]);
  let count = 0;
  const { meter, settle } = start({ measure: async () => measured((count += 1)) });
  await settle();
  expect(meter.of("u1")).toHaveLength(1);
  await clock.advance(idleAfterMs + 2 * periodMs);
  const before = count;
  expect(before).toBeGreaterThan(5);
  await clock.advance(10 * periodMs);
  expect(count).toBe(before);
  expect(meter.of("u1")).toEqual([]);
  await settle();
  expect(meter.of("u1")).toHaveLength(1);
});

test("a volume that cannot be measured leaves the others alone", async () => {
  await addPod("u1", [
    { name: "not-mounted-yet", emptyDir: {} },
    { name: "host", hostPath: { path: "/" } },
    { name: "scratch", emptyDir: { medium: "Memory" } },
    { name: "claim", persistentVolumeClaim: { claimName: "c" } },
  ]);
  await addPod("../../..", [{ name: "scratch", emptyDir: {} }]);
  await fill("u1", "kubernetes.io~empty-dir", "scratch", 1_000);
  const { meter, settle } = start();
  await settle();
  expect(meter.of("u1").map(({ stats, isLocalEphemeral }) => [stats.name, isLocalEphemeral])).toEqual([
    ["scratch", false],
  ]);
  expect(meter.of("../../..")).toEqual([]);
});

test("what a driver counted is shown, with zeros for what it did not", async () => {
  await addPod("u1", [{ name: "data", persistentVolumeClaim: { claimName: "big" } }]);
  const asked: string[] = [];
  const times: string[] = [];
  const { meter, settle } = start({
    statsOf: async (podUID, volume) => {
      asked.push(`${podUID}/${volume}`);
      const usage = [{ unit: "BYTES" as const, available: 70, total: 100, used: 30 }];
      return { kind: "driver", driver: "disk.example", usage, condition: undefined };
    },
    onMeasured: (source) => times.push(source),
  });
  await settle();
  expect(asked).toEqual(["u1/data"]);
  expect(times).toEqual(["disk.example"]);
  expect(meter.of("u1")[0]?.stats).toEqual({
    name: "data",
    time: "2026-01-01T00:00:00Z",
    availableBytes: 70,
    capacityBytes: 100,
    usedBytes: 30,
    inodesFree: 0,
    inodes: 0,
    inodesUsed: 0,
    pvcRef: { name: "big", namespace: "ns" },
  });
});

test("a driver without any figures, or one that hangs, leaves out only its own volume", async () => {
  await addPod("u1", [
    { name: "empty", csi: { driver: "d" } },
    { name: "hanging", csi: { driver: "d" } },
    { name: "scratch", emptyDir: {} },
  ]);
  await fill("u1", "kubernetes.io~empty-dir", "scratch", 1_000);
  const { meter, settle } = start({
    statsOf: async (_uid, volume) =>
      volume === "hanging"
        ? await new Promise<never>(() => {})
        : { kind: "driver", driver: "d", usage: [], condition: undefined },
  });
  const waited = settle();
  await expect.poll(() => clock.waiting, { interval: 1 }).toBeGreaterThan(1);
  await clock.advance(volumeTimeoutMs);
  await waited;
  await expect.poll(() => meter.of("u1").map(({ stats: { name } }) => name), { interval: 1 }).toEqual(["scratch"]);
});

test("a block volume has a capacity and nothing else", async () => {
  await addPod("u1", [{ name: "raw", persistentVolumeClaim: { claimName: "raw" } }]);
  const path = join(rootDir, "link");
  const [device = ""] = await readdir("/sys/class/block");
  await symlink(`/dev/${device}`, path);
  const capacityBytes = await blockBytes(path);
  const { meter, settle } = start({ statsOf: async () => ({ kind: "block", path }) });
  await settle();
  expect(meter.of("u1")[0]?.stats).toMatchObject({ capacityBytes, usedBytes: 0, inodes: 0 });
});

test("a block volume's size is read by its device's name", async () => {
  const sizes = join(rootDir, "sys");
  for (const [name, sectors] of [
    ["sda1", "2048\n"],
    ["cciss!c0d0", "16\n"],
  ] as const) {
    await mkdir(join(sizes, name), { recursive: true });
    await writeFile(join(sizes, name, "size"), sectors);
  }
  const bytesOf = async (device: string) => {
    const link = join(rootDir, "device");
    await rm(link, { force: true });
    await symlink(device, link);
    return await blockBytes(link, sizes);
  };
  expect(await bytesOf("/dev/sda1")).toBe(1 << 20);
  expect(await bytesOf("/dev/cciss/c0d0")).toBe(8192);
  await expect(bytesOf("/dev/gone")).rejects.toThrow("ENOENT");
  await expect(bytesOf("/dev/../etc")).rejects.toThrow("ENOENT");
  await expect(bytesOf("/etc/passwd")).rejects.toThrow("which is no device");
});

test("an abnormal volume is told once, where somebody wants to know", async () => {
  await addPod("u1", [{ name: "data", persistentVolumeClaim: { claimName: "big" } }]);
  let isAbnormal = true;
  const usage = [{ unit: "INODES" as const, available: 1, total: 3, used: 2 }];
  const statsOf: VolumeMeterDeps["statsOf"] = async () => {
    return { kind: "driver", driver: "d", usage, condition: { isAbnormal, message: "a disk is gone" } };
  };
  const told: string[] = [];
  const { meter, settle } = start({
    statsOf,
    onAbnormal: (_pod, volume, message) => told.push(`${volume}: ${message}`),
  });
  const health = () => meter.of("u1")[0]?.stats.volumeHealthStats;
  await settle();
  expect(health()).toEqual({ abnormal: true });
  await clock.advance(3 * periodMs);
  expect(told).toEqual(["data: a disk is gone"]);
  isAbnormal = false;
  await clock.advance(2 * periodMs);
  expect(health()).toEqual({ abnormal: false });

  const silent = start({ statsOf });
  await silent.settle();
  expect(silent.meter.of("u1")[0]?.stats).not.toHaveProperty("volumeHealthStats");
});

test("volumes of claims are asked as filesystems, and name their claim", async () => {
  await addPod("u1", [
    { name: "data", persistentVolumeClaim: { claimName: "big" } },
    { name: "tmp", ephemeral: {} },
  ]);
  const { meter, settle } = start({ statsOf: async () => ({ kind: "filesystem", path: rootDir }) });
  await settle();
  expect(meter.of("u1").map(({ stats }) => [stats.name, stats.pvcRef])).toEqual([
    ["data", { name: "big", namespace: "ns" }],
    ["tmp", { name: "u1-tmp", namespace: "ns" }],
  ]);
  const [data] = meter.of("u1");
  expect(data?.stats.usedBytes).toBeGreaterThan(0);
  expect(data?.isLocalEphemeral).toBe(false);
});

test("a period of 0 switches it off, and nobody waits", async () => {
  await addPod("u1", [{ name: "scratch", emptyDir: {} }]);
  await fill("u1", "kubernetes.io~empty-dir", "scratch", 1_000);
  const { meter, settle } = start({ periodMs: 0 });
  await settle();
  expect(meter.of("u1")).toEqual([]);
});

test("the wait for figures has an end, and so has the measuring", async () => {
  await addPod("u1", [{ name: "scratch", emptyDir: {} }]);
  const { meter, settle } = start({ measure: endless });
  const waited = settle();
  await expect.poll(() => clock.waiting, { interval: 1 }).toBeGreaterThan(1);
  await clock.advance(2_000);
  await waited;
  expect(meter.of("u1")).toEqual([]);
});

test("a pod whose volumes are endless holds up nobody, and keeps its last figures", async () => {
  let isEndless = false;
  let bytes = 0;
  const measure: VolumeMeterDeps["measure"] = async (directory, signal) =>
    isEndless && directory.includes("huge") ? await endless(directory, signal) : measured(bytes);
  const conf = { name: "conf", configMap: { name: "c" } };
  for (let i = 0; i < lanes - 1; i += 1) {
    await addPod(`huge-${i}`, [{ name: "scratch", emptyDir: {} }, conf]);
    await mkdir(join(rootDir, `pods/huge-${i}/volumes/kubernetes.io~configmap/conf`), { recursive: true });
    await publish(`huge-${i}`, "kubernetes.io~configmap", "conf", "..2026_1");
  }
  for (const uid of ["a", "b"]) await addPod(uid, [{ name: "scratch", emptyDir: {} }]);
  const { meter, settle } = start({ measure });
  await settle();
  const used = (uid: string) => meter.of(uid).map(({ stats: { name, usedBytes } }) => [name, usedBytes]);
  const first = [
    ["scratch", 0],
    ["conf", 0],
  ];
  expect(used("huge-0")).toEqual(first);

  isEndless = true;
  bytes = 1;
  await clock.advance(periodMs * 1.5);
  expect([used("a"), used("b")]).toEqual([[["scratch", 1]], [["scratch", 1]]]);
  const before = meter.of("huge-0");
  await clock.advance(volumeTimeoutMs);
  await expect.poll(() => meter.of("huge-0") !== before, { interval: 1 }).toBe(true);
  expect(used("huge-0")).toEqual(first);

  // And it is left alone for longer than the others.
  isEndless = false;
  await clock.advance(periodMs * 1.5);
  expect(used("huge-0")).toEqual(first);
  await clock.advance(9 * volumeTimeoutMs);
  await expect.poll(() => used("huge-0")[0], { interval: 1 }).toEqual(["scratch", 1]);
});
