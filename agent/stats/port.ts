import type { MetricFamily } from "../lib/metrics.ts";
import type { Handler } from "../server/port.ts";
import type { Pressure } from "./parse.ts";

/**
 * What the node and its pods use: `/stats/summary` and the metrics made of the same figures.
 *
 * Nothing is measured while nobody asks. A request measures what it shows, or shares what another one measured in the last
 * 5 s. Only volumes, which can be large, are measured in the background, while somebody keeps asking.
 */
export interface Stats {
  /** Measures volumes until `signal` aborts. */
  run(signal: AbortSignal): Promise<void>;
  /**
   * Rejects if the node, the root cgroup, the runtime or one of the node's filesystems cannot be asked.
   *
   * @param options.onlyCPUAndMemory the reduced form
   * @param options.signal ends the wait for a second sample that a first request has
   */
  summary(options: { onlyCPUAndMemory: boolean; signal?: AbortSignal }): Promise<Summary>;
  /** `/stats/summary` */
  readonly handler: Handler;
  /** `/metrics/resource` Never rejects: `resource_scrape_error` says that something failed. */
  resourceMetrics(): Promise<MetricFamily[]>;
  /** `/metrics/cadvisor` Samples are made while they are iterated. Never rejects: see `container_scrape_error`. */
  cadvisorMetrics(): Promise<Iterable<MetricFamily>>;
}

/** The summary API's answer: field names and omissions are those of stats/v1alpha1. Times are RFC 3339 in whole seconds. */
export interface Summary {
  node: NodeStats;
  pods: PodStats[];
}

export interface NodeStats {
  nodeName: string;
  systemContainers?: ContainerStats[];
  startTime: string | null;
  cpu?: CPUStats;
  memory?: MemoryStats;
  io?: IOStats;
  network?: NetworkStats;
  fs?: FsStats;
  runtime?: { imageFs?: FsStats; containerFs?: FsStats };
  rlimit?: { time: string; maxpid?: number; curproc?: number };
  swap?: SwapStats;
}

export interface PodStats {
  podRef: { name: string; namespace: string; uid: string };
  startTime: string | null;
  containers: ContainerStats[] | null;
  cpu?: CPUStats;
  memory?: MemoryStats;
  io?: IOStats;
  network?: NetworkStats;
  volume?: VolumeStats[];
  "ephemeral-storage"?: FsStats;
  process_stats?: { process_count: number };
  swap?: SwapStats;
}

export interface ContainerStats {
  name: string;
  startTime: string | null;
  cpu?: CPUStats;
  memory?: MemoryStats;
  io?: IOStats;
  rootfs?: FsStats;
  logs?: FsStats;
  swap?: SwapStats;
}

export interface CPUStats {
  time: string;
  usageNanoCores?: number;
  usageCoreNanoSeconds?: number;
  /** `total` is µs. */
  psi?: Pressure;
}

export interface MemoryStats {
  time: string;
  availableBytes?: number;
  usageBytes?: number;
  workingSetBytes?: number;
  rssBytes?: number;
  pageFaults?: number;
  majorPageFaults?: number;
  psi?: Pressure;
}

export interface IOStats {
  time: string;
  psi: Pressure;
}

export interface SwapStats {
  time: string;
  swapAvailableBytes?: number;
  swapUsageBytes?: number;
}

export interface InterfaceStats {
  name: string;
  rxBytes?: number;
  rxErrors?: number;
  txBytes?: number;
  txErrors?: number;
}

/** The default interface's figures stand beside the list; its name is "" if there is no `eth0`. */
export interface NetworkStats extends InterfaceStats {
  time: string;
  interfaces?: InterfaceStats[];
}

export interface FsStats {
  time: string;
  availableBytes?: number;
  capacityBytes?: number;
  usedBytes?: number;
  inodesFree?: number;
  inodes?: number;
  inodesUsed?: number;
}

export interface VolumeStats extends FsStats {
  name: string;
  pvcRef?: { name: string; namespace: string };
  /** Only of volumes whose driver tells, and behind its gate. */
  volumeHealthStats?: { abnormal: boolean };
}
