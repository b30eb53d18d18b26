import type { ImageFsInfo } from "../runtime/port.ts";
import { type FilesystemFigures, filesystemOf } from "./filesystem.ts";
import type { CgroupReading, Observation } from "./observe.ts";
import { optional } from "./optional.ts";
import { parseBootTime, parseNetDev, parseTaskCount } from "./parse.ts";
import type { ContainerStats, FsStats, NodeStats } from "./port.ts";
import type { FileReader } from "./read.ts";
import { cpuStats, filesystemStats, ioStats, memoryStats, networkStats, swapStats, usageOn } from "./summary.ts";
import { rfc3339, rfc3339OrNull } from "../lib/rfc3339.ts";

/** Cgroups that the summary shows beside the pods; "" or absent: not shown. */
export interface SystemCgroups {
  kubelet: string | undefined;
  runtime: string | undefined;
  misc: string | undefined;
  pods: string | undefined;
}

export interface NodeStatsOptions {
  nodeName: string;
  systemCgroups: SystemCgroups;
  /** Unix ms at which the agent started. */
  startedAtMs: number;
}

/** The reduced form: CPU, memory and swap of the machine and of the cgroups beside the pods. */
export function nodeFigures({ root, named }: Observation, options: NodeStatsOptions): NodeStats {
  const { nodeName, systemCgroups, startedAtMs } = options;
  const systemContainers = (["kubelet", "runtime", "misc", "pods"] as const).flatMap((name) => {
    const reading = named.get(systemCgroups[name] ?? "");
    const startMs = name === "kubelet" ? startedAtMs : reading?.createdAtMs;
    return reading === undefined ? [] : [systemContainer(name, reading, startMs)];
  });
  return {
    nodeName,
    ...(systemContainers.length === 0 ? {} : { systemContainers }),
    startTime: rfc3339OrNull(root.createdAtMs),
    ...optional({ cpu: cpuStats(root), memory: memoryStats(root), swap: swapStats(root) }),
  };
}

function systemContainer(name: string, reading: CgroupReading, startMs: number | undefined): ContainerStats {
  return {
    name,
    startTime: rfc3339OrNull(startMs),
    ...optional({ cpu: cpuStats(reading), memory: memoryStats(reading), swap: swapStats(reading) }),
  };
}

/** What the full form adds: read from the machine and its runtime at one moment. */
export interface NodeSurroundings {
  atMs: number;
  bootedAtMs: number;
  network: ReturnType<typeof parseNetDev>;
  /** Of the agent's root directory. */
  nodeFs: FilesystemFigures;
  imageFs: FsStats;
  rlimit: { maxpid: number; curproc: number };
}

export interface SurroundingsDeps {
  reader: FileReader;
  rootDir: string;
  pidsMax: number;
  fsInfo(): Promise<ImageFsInfo>;
  /** Unix ms. */
  now(): number;
}

/** Rejects, naming what, if a filesystem, the runtime or the number of tasks cannot be asked. */
export async function readSurroundings(deps: SurroundingsDeps): Promise<NodeSurroundings> {
  const { reader, rootDir, pidsMax } = deps;
  const atMs = deps.now();
  const [procStat, netDev, loadavg, nodeFs, imageFs] = await Promise.all([
    reader.list("/proc/stat"),
    reader.list("/proc/1/net/dev"),
    reader.text("/proc/loadavg"),
    filesystemOf(rootDir),
    readImageFs(deps),
  ]);
  const curproc = parseTaskCount(loadavg);
  if (curproc === undefined) throw new Error("the number of tasks cannot be read from /proc/loadavg");
  return {
    atMs,
    bootedAtMs: parseBootTime(procStat) ?? 0,
    network: parseNetDev(netDev),
    nodeFs,
    imageFs,
    rlimit: { maxpid: pidsMax, curproc },
  };
}

async function readImageFs({ fsInfo }: SurroundingsDeps): Promise<FsStats> {
  const [first] = (await fsInfo()).imageFilesystems;
  if (first === undefined) throw new Error("the runtime names no filesystem for images");
  const figures = await filesystemOf(first.mountpoint).catch(() => undefined);
  return usageOn(first.timestampMs, figures, optional({ bytes: first.usedBytes, inodes: first.inodesUsed }));
}

/** The full form. */
export function nodeStats(observation: Observation, around: NodeSurroundings, options: NodeStatsOptions): NodeStats {
  const reduced = nodeFigures(observation, options);
  const { atMs, bootedAtMs, network, nodeFs, imageFs, rlimit } = around;
  return {
    ...reduced,
    startTime: rfc3339OrNull(bootedAtMs),
    ...optional({
      systemContainers: reduced.systemContainers?.map((container) => {
        const path = options.systemCgroups[container.name as keyof SystemCgroups] ?? "";
        const reading = observation.named.get(path);
        return { ...container, ...optional({ io: reading === undefined ? undefined : ioStats(reading) }) };
      }),
      io: ioStats(observation.root),
      network: network === undefined ? undefined : networkStats(atMs, network),
      fs: filesystemStats(atMs, nodeFs),
      // CRI does not tell the filesystem of containers apart: the reference shows one for both.
      runtime: { imageFs, containerFs: imageFs },
      rlimit: { time: rfc3339(atMs), ...rlimit },
    }),
  };
}
