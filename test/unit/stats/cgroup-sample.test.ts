import { mkdir, mkdtemp, rm, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { exec } from "../../../agent/lib/exec.ts";
import type { CgroupMounts } from "../../../agent/stats/cgroup-mounts.ts";
import { cgroupCreatedAt, completeRoot, sampleCgroup } from "../../../agent/stats/cgroup-sample.ts";
import { createFileReader } from "../../../agent/stats/read.ts";
import { notOnRoot, writeCgroup2 } from "../../support/stats/fake-cgroup2.ts";

let dir: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "nodelet-cgroups-"));
});
afterAll(async () => {
  await rm(dir, { recursive: true, force: true });
});

const reader = createFileReader();
const now = () => 1_000;

describe("cgroup v2", () => {
  const context = () => ({ mounts: { version: 2, root: dir } as CgroupMounts, reader, now });

  test("usage is CPU, memory and swap, and nothing else", async () => {
    await writeCgroup2(dir, "/a", { usageUs: 5_000, memoryCurrent: 100, inactiveFile: 30, swapCurrent: 7 });
    const sample = await sampleCgroup(context(), "/a", "usage");
    expect(sample).toMatchObject({
      atMs: 1_000,
      cpu: { usageNs: 5_000_000 },
      memory: { usageBytes: 100, workingSetBytes: 70, pageFaults: 45_678, majorPageFaults: 12 },
      swap: { usageBytes: 7 },
    });
    expect(sample?.swap).not.toHaveProperty("limitBytes");
    expect(sample).not.toHaveProperty("io");
    expect(sample).not.toHaveProperty("pids");
  });

  test("the page cache that was not used lately is no working set, and the rest is never negative", async () => {
    await writeCgroup2(dir, "/a", { memoryCurrent: 10, inactiveFile: 4_096 });
    expect((await sampleCgroup(context(), "/a", "usage"))?.memory?.workingSetBytes).toBe(0);
  });

  test("a summary has limits, pressure and processes", async () => {
    await writeCgroup2(dir, "/a", { memoryMax: "67108864", swapMax: "0", pids: [5, 6] });
    expect(await sampleCgroup(context(), "/a", "summary")).toMatchObject({
      cpu: { pressure: { some: { total: 1_234_567 } } },
      memory: { limitBytes: 67_108_864, pressure: { full: { total: 2_121 } } },
      swap: { limitBytes: 0 },
      io: { pressure: { some: { avg300: 0.3 } } },
      pids: [5, 6],
    });
  });

  test("all has what was throttled, killed and transferred, from this cgroup alone", async () => {
    await writeCgroup2(dir, "/a", { cpuMax: "20000 100000", oomKills: 3, pids: [5] });
    const sample = await sampleCgroup(context(), "/a", "all");
    expect(sample?.cpu).toMatchObject({
      spec: { quotaUs: 20_000, periodUs: 100_000, shares: 998 },
      throttling: {
        periods: 1_200,
        throttledPeriods: 300,
        throttledNs: 4_500_000_000,
        burstPeriods: 2,
        burstNs: 7_000_000,
      },
    });
    expect(sample?.memory?.oomKills).toBe(3);
    expect(sample?.memory?.kernelBytes).toBe(3_145_728);
    expect(sample?.tasks).toEqual({ current: 3, max: 0 });
    expect(sample?.io?.devices).toHaveLength(2);
  });

  test("without a quota nothing is throttled, so there is nothing to show", async () => {
    await writeCgroup2(dir, "/a", {});
    expect((await sampleCgroup(context(), "/a", "all"))?.cpu).not.toHaveProperty("throttling");
  });

  test("the root has no memory.current: what its memory.stat sums up to, within the machine", async () => {
    await writeCgroup2(dir, "/", { anon: 1_000, inactiveFile: 500 }, notOnRoot);
    const sample = await sampleCgroup(context(), "/", "summary");
    if (sample === undefined) throw new Error("no root");
    const whole = await completeRoot(sample, context(), { memoryBytes: 1 << 30, swapBytes: 0 });
    const file = 500 + (6 << 20);
    expect(whole.memory).toMatchObject({
      usageBytes: 1_000 + file,
      workingSetBytes: 1_000 + file - 500,
      limitBytes: 1 << 30,
    });
    expect(whole.swap?.limitBytes).toBe(0);
  });

  test("a kernel without pressure information", async () => {
    await writeCgroup2(join(dir, "old"), "/a", {}, ["cpu.pressure", "memory.pressure", "io.pressure"]);
    const mounts: CgroupMounts = { version: 2, root: join(dir, "old") };
    const sample = await sampleCgroup({ mounts, reader, now }, "/a", "summary");
    expect(sample?.cpu).not.toHaveProperty("pressure");
    expect(sample?.io).toEqual({});
  });

  test("a cgroup without the memory controller still has CPU; one that is not there has nothing", async () => {
    await mkdir(join(dir, "bare"));
    await writeFile(join(dir, "bare/cpu.stat"), "usage_usec 5\nuser_usec 3\nsystem_usec 2\n");
    expect(await sampleCgroup(context(), "/bare", "summary")).toEqual({
      atMs: 1_000,
      cpu: { usageNs: 5_000, userNs: 3_000, systemNs: 2_000 },
    });
    expect(await sampleCgroup(context(), "/gone", "all")).toBeUndefined();
  });

  test("files of rubbish are no figures", async () => {
    await mkdir(join(dir, "rubbish"));
    for (const name of ["cpu.stat", "memory.current", "cgroup.procs"]) {
      await writeFile(join(dir, "rubbish", name), "\u0000\u0001 what?\n\n");
    }
    expect(await sampleCgroup(context(), "/rubbish", "all")).toBeUndefined();
  });

  test("when it was made: children that come later do not move it, and it cannot have been before the boot", async () => {
    await writeCgroup2(dir, "/born", {});
    await utimes(join(dir, "born/cgroup.events"), 1_700_000_000, 1_700_000_000);
    const bootedAtMs = 1_600_000_000_000;
    expect(await cgroupCreatedAt(context().mounts, "/born", bootedAtMs)).toBe(1_700_000_000_000);
    expect(await cgroupCreatedAt(context().mounts, "/gone", bootedAtMs)).toBeUndefined();
    expect(await cgroupCreatedAt(context().mounts, "/born", 1_700_000_001_000)).toBe(1_700_000_001_000);
  });
});

describe("cgroup v1", () => {
  // As Linux 6.1 writes them, with both controllers of a pair in one directory and blkio apart.
  const files: Record<string, Record<string, string>> = {
    "cpu,cpuacct": {
      "cpuacct.usage": "123456789\n",
      "cpuacct.stat": "user 500\nsystem 200\n",
      "cpu.stat": "nr_periods 50\nnr_throttled 40\nthrottled_time 3000000000\nnr_bursts 0\nburst_time 0\n",
      "cpu.cfs_quota_us": "20000\n",
      "cpu.cfs_period_us": "100000\n",
      "cpu.shares": "204\n",
      "cgroup.procs": "11\n12\n",
    },
    memory: {
      "memory.usage_in_bytes": "60000\n",
      "memory.limit_in_bytes": "9223372036854771712\n",
      "memory.memsw.limit_in_bytes": "70000\n",
      "memory.max_usage_in_bytes": "65000\n",
      "memory.failcnt": "4\n",
      "memory.soft_limit_in_bytes": "9223372036854771712\n",
      "memory.kmem.usage_in_bytes": "2000\n",
      "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
      "memory.stat":
        "cache 1\nrss 2\nmapped_file 3\nswap 4\npgfault 5\npgmajfault 6\ninactive_file 7\nactive_file 8\n" +
        "hierarchical_memory_limit 9223372036854771712\ntotal_cache 10000\ntotal_rss 40000\ntotal_mapped_file 3000\n" +
        "total_swap 50\ntotal_pgfault 700\ntotal_pgmajfault 8\ntotal_inactive_file 9000\ntotal_active_file 1000\n",
    },
    blkio: {
      "blkio.throttle.io_service_bytes_recursive": "8:0 Read 100\n8:0 Write 200\nTotal 300\n",
      "blkio.throttle.io_serviced_recursive": "8:0 Read 1\n8:0 Write 2\nTotal 3\n",
    },
    pids: { "pids.current": "9\n", "pids.max": "100\n" },
  };
  const mounts: CgroupMounts = {
    version: 1,
    get roots() {
      const at = (name: string) => join(dir, "v1", name);
      return new Map([
        ["cpu" as const, at("cpu,cpuacct")],
        ["cpuacct" as const, at("cpu,cpuacct")],
        ["memory" as const, at("memory")],
        ["blkio" as const, at("blkio")],
        ["pids" as const, at("pids")],
      ]);
    },
  };
  beforeAll(async () => {
    for (const [controller, texts] of Object.entries(files)) {
      await mkdir(join(dir, "v1", controller, "a"), { recursive: true });
      for (const [name, text] of Object.entries(texts)) await writeFile(join(dir, "v1", controller, "a", name), text);
    }
  });

  test("everything", async () => {
    expect(await sampleCgroup({ mounts, reader, now }, "/a", "all")).toEqual({
      atMs: 1_000,
      cpu: {
        usageNs: 123_456_789,
        userNs: 5_000_000_000,
        systemNs: 2_000_000_000,
        spec: { shares: 204, periodUs: 100_000, quotaUs: 20_000 },
        throttling: {
          periods: 50,
          throttledPeriods: 40,
          throttledNs: 3_000_000_000,
          burstPeriods: 0,
          burstNs: 0,
        },
      },
      memory: {
        usageBytes: 60_000,
        workingSetBytes: 51_000,
        rssBytes: 40_000,
        cacheBytes: 10_000,
        mappedBytes: 3_000,
        pageFaults: 5,
        majorPageFaults: 6,
        treePageFaults: 700,
        treeMajorPageFaults: 8,
        maxUsageBytes: 65_000,
        failures: 4,
        kernelBytes: 2_000,
        activeFileBytes: 1_000,
        inactiveFileBytes: 9_000,
        oomKills: 2,
      },
      swap: { usageBytes: 50, limitBytes: 70_000 },
      io: { devices: [{ major: 8, minor: 0, readBytes: 100, writtenBytes: 200, reads: 1, writes: 2 }] },
      pids: [11, 12],
      tasks: { current: 9, max: 100 },
    });
  });

  test("the root's limits are the machine's", async () => {
    const context = { mounts, reader, now };
    const sample = await sampleCgroup(context, "/a", "usage");
    if (sample === undefined) throw new Error("no sample");
    expect(await completeRoot(sample, context, { memoryBytes: 1 << 30, swapBytes: 1 << 20 })).toMatchObject({
      memory: { limitBytes: 1 << 30 },
      swap: { usageBytes: 50, limitBytes: 1 << 20 },
    });
  });
});

test("a list that comes in short pieces is read to its end", async () => {
  const path = join(dir, "pieces");
  await exec("mkfifo", [path], { timeoutMs: 5_000 });
  const written = exec("sh", ["-c", '{ printf one; sleep 0.05; printf two; } > "$1"', "sh", path], {
    timeoutMs: 5_000,
  });
  expect(await reader.list(path)).toBe("onetwo");
  await written;
});

test("files longer than one read are read to their end", async () => {
  const path = join(dir, "long");
  const text = Array.from({ length: 20_000 }, (_, i) => `${i}\n`).join("");
  await writeFile(path, text);
  expect(await reader.list(path)).toBe(text);
  expect(await reader.text(path)).toBe(text);
  expect(await reader.text(join(dir, "gone"))).toBeUndefined();
  expect(await reader.text(dir)).toBeUndefined();
});
