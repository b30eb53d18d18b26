import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { linuxResources, type ResourceContext } from "../../../../agent/kube/pod-resources.ts";
import type { Pod, PodSpec } from "../../../../agent/kube/types.ts";
import { createLogger } from "../../../../agent/lib/log.ts";
import {
  cgroupDirectory,
  readOOMScoreAdjMin,
  reportOOMScoreAdjMin,
  writeCgroupFiles,
} from "../../../../agent/runtime/docker/host-limits.ts";
import { cgroupWrites, dockerResources, memoryBytesMin } from "../../../../agent/runtime/docker/resources.ts";
import type { LinuxResources } from "../../../../agent/runtime/port.ts";

const what = "container app in pod shop/web";
const mi = 1024 * 1024;

const cases: { name: string; resources: LinuxResources; want: object }[] = [
  { name: "nothing said, nothing set", resources: {}, want: {} },
  {
    name: "CPU",
    resources: { cpuShares: 102, cpuPeriod: 100_000, cpuQuota: 50_000, cpusetCpus: "0-1", cpusetMems: "0" },
    want: { CpuShares: 102, CpuPeriod: 100_000, CpuQuota: 50_000, CpusetCpus: "0-1", CpusetMems: "0" },
  },
  { name: "no CPU limit any more", resources: { cpuQuota: -1 }, want: { CpuQuota: -1 } },
  {
    name: "memory without a word on swap leaves swap alone; Docker's default would add as much again",
    resources: { memoryLimitBytes: 64 * mi },
    want: { Memory: 64 * mi, MemorySwap: -1 },
  },
  {
    name: "memory and swap of cgroup v1, together",
    resources: { memoryLimitBytes: 64 * mi, memorySwapLimitBytes: 64 * mi },
    want: { Memory: 64 * mi, MemorySwap: 64 * mi },
  },
  {
    name: "no swap on cgroup v2",
    resources: { memoryLimitBytes: 64 * mi, unified: { "memory.swap.max": "0" } },
    want: { Memory: 64 * mi, MemorySwap: 64 * mi },
  },
  {
    name: "some swap on cgroup v2",
    resources: { memoryLimitBytes: 64 * mi, unified: { "memory.swap.max": String(10 * mi) } },
    want: { Memory: 64 * mi, MemorySwap: 74 * mi },
  },
  {
    name: "swap without a memory limit is not Docker's to set",
    resources: { unified: { "memory.swap.max": "5" } },
    want: {},
  },
  {
    name: "the smallest memory limit",
    resources: { memoryLimitBytes: memoryBytesMin },
    want: { Memory: 6 * mi, MemorySwap: -1 },
  },
];
for (const { name, resources, want } of cases) {
  test(`dockerResources: ${name}`, () => expect(dockerResources(what, resources)).toEqual(want));
}

test("a memory limit that Docker does not take is refused with the smallest one", () => {
  expect(() => dockerResources(what, { memoryLimitBytes: memoryBytesMin - 1 })).toThrow(
    `${what}: a memory limit of 6291455 bytes is below 6291456 (6Mi), the smallest that Docker sets`,
  );
});

test("cgroupWrites: what Docker has no words for", () => {
  const resources: LinuxResources = {
    unified: { "memory.oom.group": "1" },
    hugepageLimits: [{ pageSize: "2MB", limit: 4 * mi }],
  };
  expect(cgroupWrites(what, resources, 2)).toEqual([
    { controller: "memory", file: "memory.oom.group", content: "1", isOptional: false },
    { controller: "hugetlb", file: "hugetlb.2MB.max", content: "4194304", isOptional: true },
    { controller: "hugetlb", file: "hugetlb.2MB.rsvd.max", content: "4194304", isOptional: true },
  ]);
  const { unified: _, ...pages } = resources;
  expect(cgroupWrites(what, pages, 1).map(({ file }) => file)).toEqual([
    "hugetlb.2MB.limit_in_bytes",
    "hugetlb.2MB.rsvd.limit_in_bytes",
  ]);
  expect(() => cgroupWrites(what, resources, 1)).toThrow(
    /memory\.oom\.group is a file of cgroup v2, and this node has cgroup v1/,
  );
  expect(() => cgroupWrites(what, { unified: { "../x": "1" } }, 2)).toThrow(/cgroup file "..\/x" cannot be set/);
});

const v2mounts = "26 20 0:23 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw";
const v1mounts = [
  "30 20 0:25 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct",
  "31 20 0:26 /docker/outer /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory",
  "32 20 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
].join("\n");

const directories: { name: string; args: Parameters<typeof cgroupDirectory>; want: string | undefined }[] = [
  {
    name: "v2",
    args: [v2mounts, "0::/kubepods/podu1/c1\n", "memory", 2],
    want: "/sys/fs/cgroup/kubepods/podu1/c1",
  },
  {
    name: "v1 by controller",
    args: [v1mounts, "4:cpu,cpuacct:/kubepods/c1\n0::/\n", "cpu", 1],
    want: "/sys/fs/cgroup/cpu,cpuacct/kubepods/c1",
  },
  {
    name: "v1 inside a container, whose mount shows a part of the hierarchy",
    args: [v1mounts, "5:memory:/docker/outer/kubepods/c1\n", "memory", 1],
    want: "/sys/fs/cgroup/memory/kubepods/c1",
  },
  { name: "the part itself", args: [v1mounts, "5:memory:/docker/outer\n", "memory", 1], want: "/sys/fs/cgroup/memory" },
  { name: "no such controller", args: [v1mounts, "5:memory:/c1\n", "hugetlb", 1], want: undefined },
  { name: "a controller that is not mounted", args: [v1mounts, "6:hugetlb:/c1\n", "hugetlb", 1], want: undefined },
];
for (const { name, args, want } of directories) {
  test(`cgroupDirectory: ${name}`, () => expect(cgroupDirectory(...args)).toBe(want));
}

/** A /proc and a cgroup v2 hierarchy with one container's cgroup, that has these files. */
async function fakeHost(files: Record<string, string>): Promise<{ procDir: string; cgroup: string }> {
  const dir = await mkdtemp(join(tmpdir(), "nodelet-cgroup-"));
  onTestFinished(async () => await rm(dir, { recursive: true, force: true }));
  const cgroup = join(dir, "cgroup/c1");
  await mkdir(cgroup, { recursive: true });
  await mkdir(join(dir, "proc/self"), { recursive: true });
  await mkdir(join(dir, "proc/42"), { recursive: true });
  await writeFile(join(dir, "proc/self/mountinfo"), `26 20 0:23 / ${join(dir, "cgroup")} rw - cgroup2 cgroup2 rw\n`);
  await writeFile(join(dir, "proc/42/cgroup"), "0::/c1\n");
  for (const [name, text] of Object.entries(files)) await writeFile(join(cgroup, name), text);
  return { procDir: join(dir, "proc"), cgroup };
}

test("writeCgroupFiles writes what the kernel has and leaves out huge pages that it does not have", async () => {
  const { procDir, cgroup } = await fakeHost({ "memory.oom.group": "0" });
  const writes = cgroupWrites(
    what,
    { unified: { "memory.oom.group": "1" }, hugepageLimits: [{ pageSize: "2MB", limit: 0 }] },
    2,
  );
  await writeCgroupFiles(writes, { what, pid: 42, version: 2, procDir });
  expect(await readFile(join(cgroup, "memory.oom.group"), "utf8")).toBe("1");
});

test("limits that are set already stay as they are, if only those that are not are asked for", async () => {
  const unset = "9223372036854771712\n";
  const { procDir, cgroup } = await fakeHost({
    "memory.high": "500\n",
    "memory.swap.max": "max\n",
    "memory.min": "0\n",
  });
  await writeFile(join(cgroup, "hugetlb.2MB.max"), unset);
  const unified = { "memory.high": "400", "memory.swap.max": "0", "memory.min": "7", "hugetlb.2MB.max": "0" };
  const writes = cgroupWrites(what, { unified }, 2);
  await writeCgroupFiles(writes, { what, pid: 42, version: 2, procDir, isOnlyUnset: true });
  const contents = Object.keys(unified).map(async (file) => (await readFile(join(cgroup, file), "utf8")).trim());
  // A write to these files replaces what they hold, to ordinary ones only their beginning.
  expect(await Promise.all(contents)).toEqual(["500", "0ax", "7", expect.stringMatching(/^0/)]);
});

test("a limit that cannot be set is an error that names it; a container that has ended is none", async () => {
  const { procDir } = await fakeHost({});
  const writes = cgroupWrites(what, { unified: { "memory.swap.max": "0" } }, 2);
  await expect(writeCgroupFiles(writes, { what, pid: 42, version: 2, procDir })).rejects.toThrow(
    /^container app in pod shop\/web: memory\.swap\.max cannot be set to 0: /,
  );
  await writeCgroupFiles(writes, { what, pid: 43, version: 2, procDir });
});

test("the lowest oom_score_adj is one's own without CAP_SYS_RESOURCE", async () => {
  const { procDir } = await fakeHost({});
  const caps = async (bits: string) => await writeFile(join(procDir, "self/status"), `Name:\tx\nCapEff:\t${bits}\n`);
  await writeFile(join(procDir, "self/oom_score_adj"), "-500\n");
  await caps("000001ffffffffff");
  expect(await readOOMScoreAdjMin(procDir)).toBe(-1000);
  await caps("000001fffeffffff");
  expect(await readOOMScoreAdjMin(procDir)).toBe(-500);
});

test("containers that cannot be kept from the kernel's OOM killer as they should are told of", () => {
  const lines: string[] = [];
  const log = createLogger({ level: "info", stream: { write: (line) => void lines.push(line) } });
  reportOOMScoreAdjMin({ oomScoreAdjMin: -1000 }, log);
  expect(lines).toEqual([]);
  reportOOMScoreAdjMin({ oomScoreAdjMin: -500 }, log);
  expect(lines.join("")).toMatch(/-500.*lacks CAP_SYS_RESOURCE/);
});

// Swap of a container, as the reference gives it, in what Docker is told and what is written beside. Node: 8Gi memory, 4Gi swap.
const node: ResourceContext = {
  cgroupVersion: 2,
  memoryCapacityBytes: 8_192 * mi,
  cpuCFSQuota: true,
  cpuPeriodUs: 100_000,
  hugePageSizes: [],
  singleProcessOOMKill: true,
  swapControllerAvailable: true,
  swapBehavior: "LimitedSwap",
  swapCapacityBytes: 4_096 * mi,
};
const swapRows: {
  name: string;
  request?: string;
  limit?: string;
  spec?: Partial<PodSpec>;
  change?: Partial<ResourceContext>;
  memory?: object;
  file?: string;
}[] = [
  {
    name: "NoSwap with a limit",
    request: "64Mi",
    limit: "128Mi",
    change: { swapBehavior: "NoSwap" },
    memory: { Memory: 128 * mi, MemorySwap: 128 * mi },
    file: "0",
  },
  { name: "NoSwap without a limit", request: "64Mi", change: { swapBehavior: "NoSwap" }, file: "0" },
  { name: "best effort", file: "0" },
  {
    name: "guaranteed",
    request: "64Mi",
    limit: "64Mi",
    memory: { Memory: 64 * mi, MemorySwap: 64 * mi },
    file: "0",
  },
  {
    name: "burstable: its share of the node's swap",
    request: "64Mi",
    limit: "128Mi",
    memory: { Memory: 128 * mi, MemorySwap: 160 * mi },
    file: String(32 * mi),
  },
  { name: "burstable without a limit, of which Docker knows nothing", request: "64Mi", file: String(32 * mi) },
  {
    name: "critical",
    request: "64Mi",
    limit: "128Mi",
    spec: { priorityClassName: "system-node-critical", priority: 2_000_001_000 },
    memory: { Memory: 128 * mi, MemorySwap: 128 * mi },
    file: "0",
  },
  {
    name: "a kernel that does not count swap: nothing is said, not even Docker's default",
    request: "64Mi",
    limit: "128Mi",
    change: { swapControllerAvailable: false },
    memory: { Memory: 128 * mi, MemorySwap: -1 },
  },
  {
    name: "cgroup v1 with a limit",
    request: "64Mi",
    limit: "128Mi",
    change: { cgroupVersion: 1, swapBehavior: "NoSwap" },
    memory: { Memory: 128 * mi, MemorySwap: 128 * mi },
  },
  {
    name: "cgroup v1 without a limit",
    request: "64Mi",
    change: { cgroupVersion: 1, swapBehavior: "NoSwap" },
  },
];
test.each(swapRows)("swap: $name", ({ request, limit, spec, change, memory = {}, file }) => {
  const container = {
    name: "app",
    resources: {
      ...(request === undefined ? {} : { requests: { cpu: limit === request ? "1" : "100m", memory: request } }),
      ...(limit === undefined ? {} : { limits: { cpu: "1", memory: limit } }),
    },
  };
  const context = { ...node, ...change };
  const pod: Pod = { metadata: { name: "web", namespace: "shop" }, spec: { containers: [container], ...spec } };
  const resources = linuxResources(pod, container, context);
  const { Memory, MemorySwap } = dockerResources(what, resources);
  expect({ Memory, MemorySwap }).toEqual({ Memory: undefined, MemorySwap: undefined, ...memory });
  const written = cgroupWrites(what, resources, context.cgroupVersion).filter((one) => one.file.includes("swap"));
  expect(written.map(({ file: name, content }) => `${name} ${content}`)).toEqual(
    file === undefined ? [] : [`memory.swap.max ${file}`],
  );
});
