import { stat } from "node:fs/promises";
import { join } from "node:path";
import { optional } from "./optional.ts";
import { cgroupDir, type CgroupMounts, type StatsController } from "./cgroup-mounts.ts";
import {
  type DeviceIO,
  finiteLimit,
  keyedNumber,
  parseBlkio,
  parseIOStat,
  parseNumber,
  parsePIDs,
  parsePressure,
  parseSwapUsed,
  type Pressure,
} from "./parse.ts";
import type { FileReader } from "./read.ts";

/** Figures of one cgroup at one moment. Cumulative unless said otherwise; what the kernel does not tell is absent. */
export interface CgroupSample {
  /** Unix ms. */
  atMs: number;
  cpu?: CPUSample;
  memory?: MemorySample;
  /** Bytes; `limitBytes` is absent when there is none. */
  swap?: { usageBytes: number; limitBytes?: number };
  /** Present where transfers are accounted; v1 has no pressure. */
  io?: { pressure?: Pressure; devices?: DeviceIO[] };
  /** Processes in this cgroup itself, not in those below. */
  pids?: number[];
  /** Tasks in it and below, and how many there may be (0: no limit). */
  tasks?: { current: number; max: number };
}

export interface CPUSample {
  usageNs: number;
  userNs?: number;
  systemNs?: number;
  pressure?: Pressure;
  /** Only under a quota. */
  throttling?: {
    periods: number;
    throttledPeriods: number;
    throttledNs: number;
    burstPeriods?: number;
    burstNs?: number;
  };
  spec?: { shares: number; periodUs: number; quotaUs?: number };
}

export interface MemorySample {
  usageBytes: number;
  workingSetBytes: number;
  rssBytes: number;
  cacheBytes: number;
  mappedBytes: number;
  pageFaults: number;
  majorPageFaults: number;
  /** Including the cgroups below; on v2 all figures do. */
  treePageFaults: number;
  treeMajorPageFaults: number;
  pressure?: Pressure;
  /** Absent: none. */
  limitBytes?: number;
  maxUsageBytes?: number;
  failures?: number;
  kernelBytes?: number;
  activeFileBytes?: number;
  inactiveFileBytes?: number;
  reservationBytes?: number;
  oomKills?: number;
}

/** How much is read: CPU and memory; also what a full summary shows; everything. Each includes the ones before. */
export const sampleLevels = ["usage", "summary", "all"] as const;
export type SampleLevel = (typeof sampleLevels)[number];

export interface SampleContext {
  mounts: CgroupMounts;
  reader: FileReader;
  now(): number;
}

/** The machine's own size, which is the limit of the root cgroup. */
export interface MachineSize {
  memoryBytes: number;
  swapBytes: number;
}

/** Reads one cgroup. Undefined if it is not there. */
export async function sampleCgroup(
  { mounts, reader, now }: SampleContext,
  path: string,
  level: SampleLevel,
): Promise<CgroupSample | undefined> {
  const files = new CgroupFiles(mounts, reader, path);
  const sample = mounts.version === 2 ? await sampleV2(files, level, now()) : await sampleV1(files, level, now());
  return sample.cpu === undefined && sample.memory === undefined ? undefined : sample;
}

/** Puts the machine's limits, and on v2 the sums that the kernel keeps for no root, into the sample of the root cgroup. */
export async function completeRoot(
  sample: CgroupSample,
  { mounts, reader }: SampleContext,
  machine: MachineSize,
): Promise<CgroupSample> {
  const { memory, swap } = sample;
  if (memory === undefined) return sample;
  const usageBytes = mounts.version === 1 ? swap?.usageBytes : parseSwapUsed(await reader.list("/proc/meminfo"));
  return {
    ...sample,
    memory: { ...memory, limitBytes: machine.memoryBytes },
    swap: { usageBytes: usageBytes ?? 0, limitBytes: machine.swapBytes },
  };
}

/**
 * When the cgroup was made, in Unix ms, as the reference tells it; undefined if it is not there. Good enough to be shown and
 * no more: the kernel makes the inodes of cgroups when somebody looks at them, and again after it needed the memory, so
 * their times may be those of our own first look.
 *
 * @param bootedAtMs nothing is older
 */
export async function cgroupCreatedAt(
  mounts: CgroupMounts,
  path: string,
  bootedAtMs: number,
): Promise<number | undefined> {
  const directory = cgroupDir(mounts, "cpu", path) ?? cgroupDir(mounts, "memory", path);
  if (directory === undefined) return undefined;
  // The directory's own time moves with every cgroup made below it.
  const never = mounts.version === 2 ? "cgroup.events" : "cgroup.clone_children";
  const times = await Promise.all(
    [directory, join(directory, never)].map((each) =>
      stat(each).then(
        ({ mtimeMs }) => mtimeMs,
        () => Number.POSITIVE_INFINITY,
      ),
    ),
  );
  const earliest = Math.min(...times);
  return Number.isFinite(earliest) ? Math.max(earliest, bootedAtMs) : undefined;
}

class CgroupFiles {
  readonly #mounts: CgroupMounts;
  readonly #reader: FileReader;
  readonly #path: string;

  constructor(mounts: CgroupMounts, reader: FileReader, path: string) {
    this.#mounts = mounts;
    this.#reader = reader;
    this.#path = path;
  }

  has(controller: StatsController): boolean {
    return cgroupDir(this.#mounts, controller, this.#path) !== undefined;
  }

  async text(controller: StatsController, file: string): Promise<string | undefined> {
    const directory = cgroupDir(this.#mounts, controller, this.#path);
    return directory === undefined ? undefined : await this.#reader.text(`${directory}/${file}`);
  }

  async number(controller: StatsController, file: string): Promise<number | undefined> {
    return parseNumber(await this.text(controller, file));
  }

  async pids(controller: StatsController): Promise<number[] | undefined> {
    const directory = cgroupDir(this.#mounts, controller, this.#path);
    return directory === undefined ? undefined : parsePIDs(await this.#reader.list(`${directory}/cgroup.procs`));
  }
}

const nsPerUs = 1_000;

async function sampleV2(files: CgroupFiles, level: SampleLevel, atMs: number): Promise<CgroupSample> {
  const sample: CgroupSample = { atMs };
  const cpuStat = await files.text("cpu", "cpu.stat");
  const us = (key: string) => (keyedNumber(cpuStat, key) ?? 0) * nsPerUs;
  if (keyedNumber(cpuStat, "usage_usec") !== undefined) {
    sample.cpu = { usageNs: us("usage_usec"), userNs: us("user_usec"), systemNs: us("system_usec") };
  }
  const memoryStat = await files.text("memory", "memory.stat");
  if (memoryStat !== undefined) {
    const memory = memoryV2(memoryStat, await files.number("memory", "memory.current"));
    sample.memory = memory;
    const swapUsage = await files.number("memory", "memory.swap.current");
    const swapLimit = finiteLimit(await files.number("memory", "memory.swap.max"));
    sample.swap = { usageBytes: swapUsage ?? 0, ...(swapLimit === undefined ? {} : { limitBytes: swapLimit }) };
  }
  if (level === "usage") return sample;

  const limit = finiteLimit(await files.number("memory", "memory.max"));
  if (sample.memory !== undefined && limit !== undefined) sample.memory.limitBytes = limit;
  const [cpuPressure, memoryPressure, ioPressure] = [
    parsePressure(await files.text("cpu", "cpu.pressure")),
    parsePressure(await files.text("memory", "memory.pressure")),
    parsePressure(await files.text("blkio", "io.pressure")),
  ];
  if (sample.cpu !== undefined && cpuPressure !== undefined) sample.cpu.pressure = cpuPressure;
  if (sample.memory !== undefined && memoryPressure !== undefined) sample.memory.pressure = memoryPressure;
  if (ioPressure !== undefined) sample.io = { pressure: ioPressure };
  else if ((await files.text("blkio", "io.stat")) !== undefined) sample.io = {};
  const pids = await files.pids("cpu");
  if (pids !== undefined) sample.pids = pids;
  if (level === "summary") return sample;

  const ioStat = await files.text("blkio", "io.stat");
  if (ioStat !== undefined) sample.io = { ...sample.io, devices: parseIOStat(ioStat) };
  if (sample.cpu !== undefined) {
    const spec = cpuSpecV2(await files.text("cpu", "cpu.max"), await files.number("cpu", "cpu.weight"));
    if (spec !== undefined) sample.cpu.spec = spec;
    if (spec?.quotaUs !== undefined) {
      sample.cpu.throttling = {
        periods: keyedNumber(cpuStat, "nr_periods") ?? 0,
        throttledPeriods: keyedNumber(cpuStat, "nr_throttled") ?? 0,
        throttledNs: us("throttled_usec"),
        burstPeriods: keyedNumber(cpuStat, "nr_bursts") ?? 0,
        burstNs: us("burst_usec"),
      };
    }
  }
  if (sample.memory !== undefined) {
    // The victim's own cgroup alone counts, as in the kernel's log; kernels before 5.2 only have the sum over the tree.
    const events = (await files.text("memory", "memory.events.local")) ?? (await files.text("memory", "memory.events"));
    Object.assign(
      sample.memory,
      optional({
        maxUsageBytes: await files.number("memory", "memory.peak"),
        kernelBytes: keyedNumber(memoryStat, "kernel") ?? keyedNumber(memoryStat, "slab"),
        activeFileBytes: keyedNumber(memoryStat, "active_file"),
        inactiveFileBytes: keyedNumber(memoryStat, "inactive_file"),
        reservationBytes: finiteLimit(await files.number("memory", "memory.high")),
        oomKills: keyedNumber(events, "oom_kill"),
      }),
    );
  }
  await addTasks(sample, files);
  return sample;
}

function memoryV2(stat: string, current: number | undefined): MemorySample {
  const value = (key: string) => keyedNumber(stat, key) ?? 0;
  // The root has no memory.current.
  const usageBytes = current ?? value("anon") + value("file");
  return {
    usageBytes,
    workingSetBytes: Math.max(0, usageBytes - value("inactive_file")),
    rssBytes: value("anon"),
    cacheBytes: value("file"),
    mappedBytes: value("file_mapped"),
    pageFaults: value("pgfault"),
    majorPageFaults: value("pgmajfault"),
    treePageFaults: value("pgfault"),
    treeMajorPageFaults: value("pgmajfault"),
  };
}

/** `cpu.max` and `cpu.weight`, in v1's words. */
export function cpuSpecV2(max: string | undefined, weight: number | undefined): CPUSample["spec"] {
  const [quota, period] = max?.trim().split(" ") ?? [];
  if (period === undefined || weight === undefined) return undefined;
  // The linear rule of the field, by which shares of 2 … 262144 became weights of 1 … 10000.
  const shares = 2 + Math.floor(((weight - 1) * 262_142) / 9_999);
  return { shares, periodUs: Number(period), ...(quota === "max" ? {} : { quotaUs: Number(quota) }) };
}

// USER_HZ of cpuacct.stat is 100 on every Linux that Node.js runs on.
const nsPerTick = 10_000_000;

async function sampleV1(files: CgroupFiles, level: SampleLevel, atMs: number): Promise<CgroupSample> {
  const sample: CgroupSample = { atMs };
  const usageNs = await files.number("cpuacct", "cpuacct.usage");
  if (usageNs !== undefined) sample.cpu = { usageNs };
  const memoryStat = await files.text("memory", "memory.stat");
  const usageBytes = await files.number("memory", "memory.usage_in_bytes");
  if (memoryStat !== undefined && usageBytes !== undefined) {
    sample.memory = memoryV1(memoryStat, usageBytes);
    const swapLimit = finiteLimit(await files.number("memory", "memory.memsw.limit_in_bytes"));
    const swapUsage = keyedNumber(memoryStat, "total_swap") ?? 0;
    sample.swap = { usageBytes: swapUsage, ...(swapLimit === undefined ? {} : { limitBytes: swapLimit }) };
  }
  if (level === "usage") return sample;

  const limit = finiteLimit(await files.number("memory", "memory.limit_in_bytes"));
  if (sample.memory !== undefined && limit !== undefined) sample.memory.limitBytes = limit;
  if (files.has("blkio")) sample.io = {};
  const pids = await files.pids("cpu");
  if (pids !== undefined) sample.pids = pids;
  if (level === "summary") return sample;

  const [bytes, operations] = await blkioTexts(files);
  if (bytes !== undefined) sample.io = { devices: parseBlkio(bytes, operations) };

  if (sample.cpu !== undefined) {
    const times = await files.text("cpuacct", "cpuacct.stat");
    const shares = await files.number("cpu", "cpu.shares");
    const periodUs = await files.number("cpu", "cpu.cfs_period_us");
    const quotaUs = await files.number("cpu", "cpu.cfs_quota_us");
    sample.cpu.userNs = (keyedNumber(times, "user") ?? 0) * nsPerTick;
    sample.cpu.systemNs = (keyedNumber(times, "system") ?? 0) * nsPerTick;
    const hasQuota = quotaUs !== undefined && quotaUs > 0;
    if (shares !== undefined && periodUs !== undefined) {
      sample.cpu.spec = { shares, periodUs, ...(hasQuota ? { quotaUs } : {}) };
    }
    if (hasQuota) {
      const cpuStat = await files.text("cpu", "cpu.stat");
      sample.cpu.throttling = {
        periods: keyedNumber(cpuStat, "nr_periods") ?? 0,
        throttledPeriods: keyedNumber(cpuStat, "nr_throttled") ?? 0,
        throttledNs: keyedNumber(cpuStat, "throttled_time") ?? 0,
        ...optional({ burstPeriods: keyedNumber(cpuStat, "nr_bursts"), burstNs: keyedNumber(cpuStat, "burst_time") }),
      };
    }
  }
  if (sample.memory !== undefined) {
    Object.assign(
      sample.memory,
      optional({
        maxUsageBytes: await files.number("memory", "memory.max_usage_in_bytes"),
        failures: await files.number("memory", "memory.failcnt"),
        kernelBytes: await files.number("memory", "memory.kmem.usage_in_bytes"),
        activeFileBytes: keyedNumber(memoryStat, "total_active_file"),
        inactiveFileBytes: keyedNumber(memoryStat, "total_inactive_file"),
        reservationBytes: finiteLimit(await files.number("memory", "memory.soft_limit_in_bytes")),
        oomKills: keyedNumber(await files.text("memory", "memory.oom_control"), "oom_kill"),
      }),
    );
  }
  await addTasks(sample, files);
  return sample;
}

function memoryV1(stat: string, usageBytes: number): MemorySample {
  const value = (key: string) => keyedNumber(stat, key) ?? 0;
  return {
    usageBytes,
    workingSetBytes: Math.max(0, usageBytes - value("total_inactive_file")),
    rssBytes: value("total_rss"),
    cacheBytes: value("total_cache"),
    mappedBytes: value("total_mapped_file"),
    pageFaults: value("pgfault"),
    majorPageFaults: value("pgmajfault"),
    treePageFaults: value("total_pgfault"),
    treeMajorPageFaults: value("total_pgmajfault"),
  };
}

/**
 * Transferred bytes and operations. The throttling layer sees every transfer, whatever the scheduler; files that end in
 * "recursive" include the cgroups below.
 */
async function blkioTexts(files: CgroupFiles): Promise<[string | undefined, string | undefined]> {
  for (const [prefix, suffix] of [
    ["blkio.throttle", "_recursive"],
    ["blkio.bfq", "_recursive"],
    ["blkio.throttle", ""],
  ]) {
    const bytes = await files.text("blkio", `${prefix}.io_service_bytes${suffix}`);
    if (bytes !== undefined) return [bytes, await files.text("blkio", `${prefix}.io_serviced${suffix}`)];
  }
  return [undefined, undefined];
}

async function addTasks(sample: CgroupSample, files: CgroupFiles): Promise<void> {
  const current = await files.number("pids", "pids.current");
  if (current === undefined) return; // a root has none
  const max = await files.number("pids", "pids.max");
  sample.tasks = { current, max: max === undefined || !Number.isFinite(max) ? 0 : max };
}
