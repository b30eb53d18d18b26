import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { systemClock } from "../../../../agent/lib/clock.ts";
import { silentLogger } from "../../../../agent/lib/log.ts";
import { findContainerCgroup, readContainerCgroup } from "../../../../agent/runtime/docker/cgroup-figures.ts";
import { createDockerDisk, layersSizeOf, type TreeUsage } from "../../../../agent/runtime/docker/fs-usage.ts";
import { createDockerStats, sandboxProcess } from "../../../../agent/runtime/docker/stats.ts";
import { type Answer, fakeDocker } from "./fake-docker.ts";
import { ownLabels } from "./own-labels.ts";

const id = "c".repeat(64);

/** A pod's container, in a list. */
const listed = (Id: string) => ({ Id, Names: ["/k8s_app_web_shop_u_0"], Labels: ownLabels });

const mountsV1 = (root = "/") =>
  ["cpu,cpuacct", "memory"]
    .map((name) => `30 29 0:26 ${root} /sys/fs/cgroup/${name} rw - cgroup cgroup rw,${name}\n`)
    .join("");
const mountsV2 = "30 29 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";

test("a container's cgroup, with both drivers and versions", () => {
  const cases: {
    name: string;
    version: 1 | 2;
    mounts: string;
    text: string;
    want: { cpu: string; memory: string } | undefined;
  }[] = [
    {
      name: "v1",
      version: 1,
      mounts: mountsV1(),
      text: `5:memory:/kubepods/burstable/podu1/${id}\n3:cpu,cpuacct:/kubepods/burstable/podu1/${id}\n0::/x\n`,
      want: {
        cpu: `/sys/fs/cgroup/cpu,cpuacct/kubepods/burstable/podu1/${id}`,
        memory: `/sys/fs/cgroup/memory/kubepods/burstable/podu1/${id}`,
      },
    },
    {
      name: "v2, systemd, and a cgroup that the container made itself",
      version: 2,
      mounts: mountsV2,
      text: `0::/kubepods.slice/kubepods-podu1.slice/docker-${id}.scope/init\n`,
      want: {
        cpu: `/sys/fs/cgroup/kubepods.slice/kubepods-podu1.slice/docker-${id}.scope`,
        memory: `/sys/fs/cgroup/kubepods.slice/kubepods-podu1.slice/docker-${id}.scope`,
      },
    },
    {
      name: "another process under the same number",
      version: 2,
      mounts: mountsV2,
      text: "0::/system.slice/ssh.service\n",
      want: undefined,
    },
    {
      name: "v1 in a container, which sees a part of the hierarchy",
      version: 1,
      mounts: mountsV1("/docker/outer"),
      text: `5:memory:/docker/outer/podu1/${id}\n3:cpu,cpuacct:/docker/outer/podu1/${id}\n`,
      want: { cpu: `/sys/fs/cgroup/cpu,cpuacct/podu1/${id}`, memory: `/sys/fs/cgroup/memory/podu1/${id}` },
    },
    { name: "nothing there", version: 1, mounts: mountsV1(), text: "", want: undefined },
  ];
  for (const { name, version, mounts, text, want } of cases) {
    const found = findContainerCgroup(mounts, text, id, version);
    expect(found, name).toEqual(want === undefined ? undefined : { version, ...want });
  }
});

test("memory, swap and CPU time, as far as the kernel tells", async () => {
  const v2 = {
    "memory.current": "5000\n",
    "memory.stat": "anon 2000\nfile 900\ninactive_file 1000\n",
    "cpu.stat": "usage_usec 7\n",
    "memory.swap.current": "300\n",
  };
  const memory = { timestampMs: 1, usageBytes: 5_000, workingSetBytes: 4_000, rssBytes: 2_000 };
  const cpu = { timestampMs: 1, usageCoreNanoSeconds: 7_000 };
  const v1 = {
    "memory.usage_in_bytes": "5000\n",
    "memory.stat": "rss 1\ntotal_rss 2000\ntotal_inactive_file 1000\n",
    "cpuacct.usage": "7000\n",
  };
  const cases: { name: string; version: 1 | 2; files: Record<string, string>; want: object }[] = [
    {
      name: "v2 with a limit",
      version: 2,
      files: { ...v2, "memory.swap.max": "1000\n" },
      want: { cpu, memory, swap: { timestampMs: 1, usageBytes: 300, availableBytes: 700 } },
    },
    {
      name: "v2 without one",
      version: 2,
      files: { ...v2, "memory.swap.max": "max\n" },
      want: { cpu, memory, swap: { timestampMs: 1, usageBytes: 300 } },
    },
    {
      name: "v1",
      version: 1,
      files: { ...v1, "memory.stat": `${v1["memory.stat"]}total_swap 300\n` },
      want: { cpu, memory, swap: { timestampMs: 1, usageBytes: 300 } },
    },
    { name: "v1 that does not count swap", version: 1, files: v1, want: { cpu, memory } },
    { name: "a cgroup that is gone", version: 2, files: {}, want: {} },
  ];
  for (const { name, version, files, want } of cases) {
    const dir = await mkdtemp(join(tmpdir(), "nodelet-figures-"));
    for (const [file, content] of Object.entries(files)) await writeFile(join(dir, file), content);
    const figures = await readContainerCgroup({ version, cpu: dir, memory: dir }, () => 1);
    await rm(dir, { recursive: true });
    expect(figures, name).toEqual(want);
  }
});

async function setUp(
  answer: Answer,
  info: Record<string, unknown> = {},
  measured: TreeUsage = { bytes: 1, inodes: 1 },
) {
  const fake = await fakeDocker(answer, info);
  const asked: string[] = [];
  const disk = createDockerDisk(fake.client, {
    measureTree: (directory) => {
      asked.push(directory);
      return Promise.resolve(measured);
    },
    clock: systemClock,
    log: silentLogger,
  });
  return {
    ...fake,
    disk,
    asked,
    stats: createDockerStats(fake.client, { disk, nodeName: "node-1", clock: systemClock }),
  };
}

test("all running containers of pods cost one list, and a look at each new one", async () => {
  const upper = "/data/overlay2/x/diff";
  await using t = await setUp(({ path }) => {
    if (path === "/containers/json") return [listed(id), listed("gone"), { ...listed("copy"), Names: ["/copy"] }];
    if (path === `/containers/${id}/json`) {
      return { Id: id, State: { Pid: process.pid }, GraphDriver: { Data: { UpperDir: upper } } };
    }
    return undefined;
  });
  const [stats, ...others] = await t.stats.containerStats();
  expect(others).toEqual([]);
  // This process is in no container's cgroup, so that nothing is told of its memory.
  expect(stats).toEqual({
    containerID: id,
    writableLayer: {
      timestampMs: expect.any(Number) as number,
      mountpoint: t.client.daemon.rootDir,
      usedBytes: 1,
      inodesUsed: 1,
    },
  });
  expect(t.asked).toEqual([upper]);
  t.disk.close();
});

test.each([
  { daemon: "20.10 to 28", answer: { LayersSize: 4_200, Images: [{}] }, want: 4_200 },
  { daemon: "20.10 to 28 without images", answer: { LayersSize: 0, Images: null }, want: 0 },
  { daemon: "29", answer: { LayersSize: 4_200, Images: [{}] }, want: 4_200 },
  { daemon: "29 without images", answer: { Images: [], Containers: [] }, want: 0 },
  { daemon: "something else", answer: { message: "?" }, want: undefined },
  { daemon: "nothing", answer: null, want: undefined },
])("the size of all layers, as Engine $daemon tells it", ({ answer, want }) => {
  expect(layersSizeOf(answer)).toBe(want);
});

test("where layers are no directories the daemon is asked for sizes", async () => {
  await using t = await setUp(
    ({ path, query }) => {
      if (path === "/containers/json") return [{ ...listed(id), ...(query.has("size") ? { SizeRw: 42 } : {}) }];
      if (path === "/system/df") return { LayersSize: 4_200 };
      return { Id: id, State: { Pid: 0 }, GraphDriver: { Name: "btrfs", Data: null } };
    },
    { Driver: "btrfs" },
  );
  const [stats] = await t.stats.containerStats();
  expect(stats?.writableLayer).toMatchObject({ usedBytes: 42 });
  expect(await t.disk.imageFs()).toMatchObject({ mountpoint: t.client.daemon.rootDir, usedBytes: 4_200 });
  expect(t.asked).toEqual([]);
  t.disk.close();
});

test("images and layers are measured where the storage driver keeps them", async () => {
  await using t = await setUp(() => undefined, {}, { bytes: 77, inodes: 7 });
  await mkdir(join(t.client.daemon.rootDir, "overlay2"));
  expect(await t.disk.imageFs()).toEqual({
    timestampMs: expect.any(Number) as number,
    mountpoint: t.client.daemon.rootDir,
    usedBytes: 77,
    inodesUsed: 7,
  });
  t.disk.close();
});

test("figures follow the daemon to another store, which may be on another disk", async () => {
  const info: Record<string, unknown> = { Driver: "overlay2" };
  await using t = await setUp(({ path }) => {
    if (path === "/containers/json") return [{ ...listed(id), SizeRw: 42 }];
    if (path === "/system/df") return { LayersSize: 4_200 };
    return { Id: id, State: { Pid: 0 }, GraphDriver: { Name: "overlayfs", Data: null } };
  }, info);
  const { rootDir } = t.client.daemon;
  const containerd = join(rootDir, "containerd/daemon");
  await mkdir(join(containerd, "io.containerd.snapshotter.v1.overlayfs"), { recursive: true });
  await mkdir(join(rootDir, "overlay2"));
  expect(await t.disk.root()).toBe(rootDir);

  Object.assign(info, {
    Driver: "overlayfs",
    DriverStatus: [["driver-type", "io.containerd.snapshotter.v1"]],
    Containerd: { Address: join(rootDir, "containerd.sock") },
  });
  await t.client.refresh();
  expect(await t.disk.imageFs()).toMatchObject({ mountpoint: containerd, usedBytes: 4_200 });
  expect((await t.stats.containerStats())[0]?.writableLayer).toMatchObject({ mountpoint: containerd, usedBytes: 42 });
  expect(t.asked).toEqual([]);
  t.disk.close();
});

test("a daemon that tells no size leaves it out", async () => {
  await using t = await setUp(() => ({}), { Driver: "zfs" });
  expect(await t.disk.imageFs()).toEqual({
    timestampMs: expect.any(Number) as number,
    mountpoint: t.client.daemon.rootDir,
  });
  t.disk.close();
});

test("a sandbox's process, while it has one", async () => {
  const state = { Pid: 4_711 };
  await using t = await setUp(({ path }) =>
    path === "/containers/s1/json" ? { Id: "s1", State: state, Config: { Image: "pause:3" } } : undefined,
  );
  expect(await sandboxProcess(t.client, "s1")).toEqual({ pid: 4_711, image: "pause:3" });
  state.Pid = 0;
  expect(await sandboxProcess(t.client, "s1")).toEqual({ image: "pause:3" });
  await expect(sandboxProcess(t.client, "s2")).rejects.toMatchObject({ code: "NotFound" });
});
