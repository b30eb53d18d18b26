import type { CgroupReading, ObservedContainer, ObservedPod } from "./observe.ts";
import type { DiskUsage, FilesystemFigures } from "./filesystem.ts";
import { optional } from "./optional.ts";
import { type InterfaceCounters, zeroPressure } from "./parse.ts";
import type {
  ContainerStats,
  CPUStats,
  FsStats,
  IOStats,
  MemoryStats,
  NetworkStats,
  PodStats,
  SwapStats,
} from "./port.ts";
import { rfc3339, rfc3339OrNull } from "../lib/rfc3339.ts";
import type { MeasuredVolume } from "./volume-figures.ts";

/** CPU of a cgroup. Kernels without pressure information are shown with zeros, as the reference does. */
export function cpuStats({ atMs, cpu, usageNanoCores }: CgroupReading): CPUStats | undefined {
  if (cpu === undefined) return undefined;
  return {
    time: rfc3339(atMs),
    usageNanoCores: usageNanoCores ?? 0,
    usageCoreNanoSeconds: cpu.usageNs,
    psi: cpu.pressure ?? zeroPressure,
  };
}

export function memoryStats({ atMs, memory }: CgroupReading): MemoryStats {
  if (memory === undefined) return { time: rfc3339(atMs), workingSetBytes: 0 };
  const { limitBytes, usageBytes, workingSetBytes, rssBytes, pageFaults, majorPageFaults, pressure } = memory;
  return {
    time: rfc3339(atMs),
    ...(limitBytes === undefined ? {} : { availableBytes: Math.max(0, limitBytes - workingSetBytes) }),
    usageBytes,
    workingSetBytes,
    rssBytes,
    pageFaults,
    majorPageFaults,
    psi: pressure ?? zeroPressure,
  };
}

export function swapStats({ atMs, swap }: CgroupReading): SwapStats | undefined {
  if (swap === undefined) return undefined;
  const { usageBytes, limitBytes } = swap;
  return {
    time: rfc3339(atMs),
    ...(limitBytes === undefined ? {} : { swapAvailableBytes: Math.max(0, limitBytes - usageBytes) }),
    swapUsageBytes: usageBytes,
  };
}

export function ioStats({ atMs, io }: CgroupReading): IOStats | undefined {
  return io === undefined ? undefined : { time: rfc3339(atMs), psi: io.pressure ?? zeroPressure };
}

// The interface whose figures stand for the whole: what CNI plugins make, and the name the reference looks for.
const defaultInterface = "eth0";

export function networkStats(atMs: number, interfaces: readonly InterfaceCounters[]): NetworkStats {
  const shown = interfaces.map(({ name, rxBytes, rxErrors, txBytes, txErrors }) => {
    return { name, rxBytes, rxErrors, txBytes, txErrors };
  });
  return {
    time: rfc3339(atMs),
    ...(shown.find(({ name }) => name === defaultInterface) ?? { name: "" }),
    ...(shown.length === 0 ? {} : { interfaces: shown }),
  };
}

/** A whole filesystem. */
export function filesystemStats(atMs: number, figures: FilesystemFigures): FsStats {
  return { ...usageOn(atMs, figures, { bytes: figures.usedBytes, inodes: figures.inodes - figures.inodesFree }) };
}

/** What something takes on a filesystem. */
export function usageOn(atMs: number, figures: FilesystemFigures | undefined, usage: Partial<DiskUsage>): FsStats {
  return {
    time: rfc3339(atMs),
    ...(figures === undefined
      ? {}
      : {
          availableBytes: figures.availableBytes,
          capacityBytes: figures.capacityBytes,
          inodesFree: figures.inodesFree,
          inodes: figures.inodes,
        }),
    ...(usage.bytes === undefined ? {} : { usedBytes: usage.bytes }),
    ...(usage.inodes === undefined ? {} : { inodesUsed: usage.inodes }),
  };
}

/** A container's CPU, memory and swap: from its cgroup, or from the runtime where there is none. */
export function containerFigures({ container, cgroup, runtime }: ObservedContainer): ContainerStats {
  const shown = { name: container.name, startTime: rfc3339OrNull(container.createdAtMs) };
  if (cgroup !== undefined) {
    const [cpu, swap] = [cpuStats(cgroup), swapStats(cgroup)];
    return { ...shown, ...optional({ cpu }), memory: memoryStats(cgroup), ...optional({ swap }) };
  }
  const { cpu, memory, swap } = runtime ?? {};
  return {
    ...shown,
    ...(cpu === undefined
      ? {}
      : {
          cpu: {
            time: rfc3339(cpu.timestampMs),
            ...optional({ usageNanoCores: cpu.usageNanoCores, usageCoreNanoSeconds: cpu.usageCoreNanoSeconds }),
          },
        }),
    ...(memory === undefined
      ? {}
      : {
          memory: {
            time: rfc3339(memory.timestampMs),
            ...optional({
              usageBytes: memory.usageBytes,
              workingSetBytes: memory.workingSetBytes,
              rssBytes: memory.rssBytes,
            }),
          },
        }),
    ...(swap === undefined
      ? {}
      : {
          swap: {
            time: rfc3339(swap.timestampMs),
            ...optional({ swapAvailableBytes: swap.availableBytes, swapUsageBytes: swap.usageBytes }),
          },
        }),
  };
}

/** The reduced form of a pod: CPU, memory and swap. */
export function podFigures({ sandbox, cgroup, containers }: ObservedPod): PodStats {
  const shown = containers.map(containerFigures);
  const own =
    cgroup === undefined
      ? sumOf(shown)
      : optional({ cpu: cpuStats(cgroup), memory: memoryStats(cgroup), swap: swapStats(cgroup) });
  return {
    podRef: { name: sandbox.podName, namespace: sandbox.podNamespace, uid: sandbox.podUID },
    startTime: rfc3339OrNull(sandbox.createdAtMs),
    containers: shown.length === 0 ? null : shown,
    ...own,
  };
}

/** What a full summary adds to a pod. */
export interface PodDisk {
  /** The node's filesystem, which logs and local volumes lie on. */
  nodeFs: FilesystemFigures;
  atMs: number;
  /** By container name. */
  logs: ReadonlyMap<string, DiskUsage>;
  /** Files beside the containers' log directories, and those that the agent writes for the pod. */
  other: DiskUsage;
  volumes: readonly MeasuredVolume[];
  /** The filesystem at a mount point that the runtime named; undefined if it cannot be asked. */
  filesystemAt(mountpoint: string): FilesystemFigures | undefined;
}

/** The full form of a pod. */
export function podStats(pod: ObservedPod, disk: PodDisk): PodStats {
  const reduced = podFigures(pod);
  const containers = pod.containers.map((each): ContainerStats => {
    const { writableLayer: layer } = each.runtime ?? {};
    const rootfs =
      layer === undefined
        ? undefined
        : usageOn(
            layer.timestampMs,
            disk.filesystemAt(layer.mountpoint),
            optional({ bytes: layer.usedBytes, inodes: layer.inodesUsed }),
          );
    const log = disk.logs.get(each.container.name);
    return {
      ...containerFigures(each),
      ...optional({
        io: each.cgroup === undefined ? undefined : ioStats(each.cgroup),
        rootfs,
        logs: log === undefined ? undefined : usageOn(disk.atMs, disk.nodeFs, log),
      }),
    };
  });
  const processes = pod.containers.flatMap(({ cgroup }) => (cgroup?.pids === undefined ? [] : [cgroup.pids.length]));
  const ephemeral = sumUsage([
    ...containers.flatMap(({ rootfs, logs }) => [usageOf(rootfs), usageOf(logs)]),
    ...disk.volumes.filter(({ isLocalEphemeral }) => isLocalEphemeral).map(({ stats }) => usageOf(stats)),
    disk.other,
  ]);
  const { network, cgroup } = pod;
  return {
    ...reduced,
    containers: containers.length === 0 ? null : containers,
    ...optional({
      io: cgroup === undefined ? undefined : ioStats(cgroup),
      network: network === undefined ? undefined : networkStats(network.atMs, network.interfaces),
      volume: disk.volumes.length === 0 ? undefined : disk.volumes.map(({ stats }) => stats),
      "ephemeral-storage": usageOn(disk.atMs, disk.nodeFs, ephemeral),
      process_stats:
        processes.length === 0 ? undefined : { process_count: processes.reduce((sum, count) => sum + count, 0) },
    }),
  };
}

/** Without a pod cgroup: what its containers use, together. */
function sumOf(containers: readonly ContainerStats[]): Pick<PodStats, "cpu" | "memory" | "swap"> {
  const cpus = containers.flatMap(({ cpu }) => (cpu === undefined ? [] : [cpu]));
  const memories = containers.flatMap(({ memory }) => (memory === undefined ? [] : [memory]));
  const swaps = containers.flatMap(({ swap }) => (swap === undefined ? [] : [swap]));
  return optional({
    cpu: sumFields(cpus, ["usageNanoCores", "usageCoreNanoSeconds"]),
    memory: sumFields(memories, [
      "availableBytes",
      "usageBytes",
      "workingSetBytes",
      "rssBytes",
      "pageFaults",
      "majorPageFaults",
    ]),
    swap: sumFields(swaps, ["swapAvailableBytes", "swapUsageBytes"]),
  });
}

function sumFields<K extends string, T extends { time: string } & { [P in K]?: number }>(
  items: readonly T[],
  keys: readonly K[],
): ({ time: string } & { [P in K]?: number }) | undefined {
  const newest = items
    .map(({ time }) => time)
    .toSorted()
    .at(-1);
  if (newest === undefined) return undefined;
  const sums: { [P in K]?: number } = {};
  for (const key of keys) {
    for (const item of items) {
      const value: number | undefined = item[key];
      if (value !== undefined) sums[key] = (sums[key] ?? 0) + value;
    }
  }
  return { time: newest, ...sums };
}

function usageOf(stats: FsStats | undefined): DiskUsage {
  return { bytes: stats?.usedBytes ?? 0, inodes: stats?.inodesUsed ?? 0 };
}

export function sumUsage(parts: readonly DiskUsage[]): DiskUsage {
  return parts.reduce((sum, { bytes, inodes }) => ({ bytes: sum.bytes + bytes, inodes: sum.inodes + inodes }), {
    bytes: 0,
    inodes: 0,
  });
}
