import type { MetricType } from "../lib/metrics.ts";
import type { DeviceFilesystem, Row } from "./cadvisor-rows.ts";
import type { CPUSample, MemorySample } from "./cgroup-sample.ts";
import type { DeviceIO, DiskCounters, InterfaceCounters, IOCost, Pressure } from "./parse.ts";

/** A value of one row, with the labels it has beside the six of all, by name. */
interface Value {
  value: number;
  labels?: Readonly<Record<string, string>>;
  atMs?: number;
}

/** One family of `/metrics/cadvisor`. */
export interface Definition {
  name: string;
  type: MetricType;
  help: string;
  /** Absent values make no series. */
  values(row: Row, context: RenderContext): Iterable<Value>;
  /** Limits and starts hold since long before the sample. */
  isTimeless?: boolean;
}

/** What values need beside their row. */
export interface RenderContext {
  /** Unix ms of the scrape. */
  nowMs: number;
  /** Names of block devices by `major:minor`. */
  deviceNames: ReadonlyMap<string, string>;
}

function one(value: number | undefined): Value[] {
  return value === undefined ? [] : [{ value }];
}

const nsPerSecond = 1e9;
const seconds = (ns: number | undefined) => (ns === undefined ? undefined : ns / nsPerSecond);

function cpu(
  name: string,
  help: string,
  pick: (cpu: CPUSample) => number | undefined,
  settings: Partial<Definition> = { type: "counter" },
): Definition {
  return {
    name: `container_cpu_${name}`,
    help,
    type: "gauge",
    values: ({ reading }) => one(reading.cpu === undefined ? undefined : pick(reading.cpu)),
    ...settings,
  };
}

function memory(
  name: string,
  help: string,
  pick: (memory: MemorySample) => number | undefined,
  type: MetricType = "gauge",
): Definition {
  return {
    name: `container_memory_${name}`,
    help,
    type,
    values: ({ reading }) => one(reading.memory === undefined ? undefined : pick(reading.memory)),
  };
}

function spec(name: string, help: string, pick: (row: Row) => number | undefined): Definition {
  return {
    name: `container_spec_${name}`,
    help,
    type: "gauge",
    isTimeless: true,
    values: (row) => one(pick(row)),
  };
}

function network(name: string, help: string, pick: (counters: InterfaceCounters) => number): Definition {
  return {
    name: `container_network_${name}_total`,
    help,
    type: "counter",
    values: ({ network: of }) =>
      of === undefined
        ? []
        : of.interfaces.map((counters) => ({
            value: pick(counters),
            labels: { interface: counters.name },
            atMs: of.atMs,
          })),
  };
}

/** Transfers of a cgroup by device; for the machine also those of its filesystems' devices. */
function transfers(
  name: string,
  help: string,
  pick: (io: DeviceIO) => number,
  ofDisk?: (disk: DiskCounters) => number,
): Definition {
  return {
    name: `container_fs_${name}_total`,
    help,
    type: "counter",
    *values({ reading, filesystems = [] }, { deviceNames }) {
      const shown = new Set<string>();
      for (const io of reading.io?.devices ?? []) {
        const device = deviceNames.get(`${io.major}:${io.minor}`) ?? "";
        if (shown.has(device)) continue;
        shown.add(device);
        yield { value: pick(io), labels: { device } };
      }
      for (const { device, disk } of filesystems) {
        if (disk === undefined || ofDisk === undefined || shown.has(device)) continue;
        yield { value: ofDisk(disk), labels: { device } };
      }
    },
  };
}

function filesystem(
  name: string,
  help: string,
  pick: (filesystem: DeviceFilesystem) => number | undefined,
  type: MetricType = "gauge",
): Definition {
  return {
    name: `container_fs_${name}`,
    help,
    type,
    values: ({ filesystems = [] }) =>
      filesystems.flatMap((each) => {
        const value = pick(each);
        return value === undefined ? [] : [{ value, labels: { device: each.device } }];
      }),
  };
}

const usPerSecond = 1e6;

function ioCost(name: string, help: string, pick: (cost: IOCost) => number): Definition {
  return {
    name: `container_fs_io_cost_${name}_seconds_total`,
    help,
    type: "counter",
    values: ({ reading }, { deviceNames }) =>
      (reading.io?.devices ?? []).flatMap(({ major, minor, cost }) => {
        const device = deviceNames.get(`${major}:${minor}`) ?? "";
        return cost === undefined ? [] : [{ value: pick(cost) / usPerSecond, labels: { device } }];
      }),
  };
}

function pressure(
  resource: "cpu" | "memory" | "io",
  kind: "waiting" | "stalled",
  pick: (row: Row) => Pressure | undefined,
): Definition {
  const who = kind === "waiting" ? "some task" : "every task";
  return {
    name: `container_pressure_${resource}_${kind}_seconds_total`,
    help: `Time in seconds that ${who} has waited for ${resource}`,
    type: "counter",
    values: (row) => {
      const found = pick(row);
      return one(found && (kind === "waiting" ? found.some : found.full).total / usPerSecond);
    },
  };
}

function constant(name: string, help: string, value: number): Definition {
  return { name: `container_${name}`, help, type: "gauge", values: () => [{ value }] };
}

// Nobody counts tasks by state unless a load reader runs, which the reference does not start either.
const taskStates = ["iowaiting", "running", "sleeping", "stopped", "uninterruptible"];

/** The `container_*` families, in the order of their names. */
export const definitions: readonly Definition[] = [
  {
    name: "container_blkio_device_usage_total",
    help: "Bytes transferred, by device and direction",
    type: "counter",
    values: ({ reading }, { deviceNames }) =>
      (reading.io?.devices ?? []).flatMap(({ major, minor, readBytes, writtenBytes }) => {
        const device = deviceNames.get(`${major}:${minor}`) ?? "";
        const labels = { device, major: String(major), minor: String(minor) };
        return [
          { value: readBytes, labels: { ...labels, operation: "Read" } },
          { value: writtenBytes, labels: { ...labels, operation: "Write" } },
        ];
      }),
  },
  cpu(
    "cfs_burst_periods_total",
    "Quota periods in which CPU time was taken in advance",
    (c) => c.throttling?.burstPeriods,
  ),
  cpu("cfs_burst_seconds_total", "CPU time in seconds taken beyond the quota", (c) => seconds(c.throttling?.burstNs)),
  cpu("cfs_periods_total", "Quota periods that have passed", (c) => c.throttling?.periods),
  cpu(
    "cfs_throttled_periods_total",
    "Quota periods in which tasks were held back",
    (c) => c.throttling?.throttledPeriods,
  ),
  cpu("cfs_throttled_seconds_total", "Time in seconds that tasks were held back by the quota", (c) =>
    seconds(c.throttling?.throttledNs),
  ),
  cpu("load_average_10s", "Not measured: always 0", () => 0, {}),
  cpu("load_d_average_10s", "Not measured: always 0", () => 0, {}),
  cpu("system_seconds_total", "CPU time in seconds spent in the kernel", (c) => seconds(c.systemNs)),
  {
    ...cpu("usage_seconds_total", "CPU time in seconds", () => undefined),
    values: ({ reading: { cpu: of } }) =>
      of === undefined || of.usageNs === 0 ? [] : [{ value: of.usageNs / nsPerSecond, labels: { cpu: "total" } }],
  },
  cpu("user_seconds_total", "CPU time in seconds spent outside the kernel", (c) => seconds(c.userNs)),
  {
    name: "container_file_descriptors",
    help: "Open file descriptors",
    type: "gauge",
    values: ({ processes }) => one(processes?.fileDescriptors),
  },
  filesystem("inodes_free", "Inodes that are free", ({ figures }) => figures.inodesFree),
  filesystem("inodes_total", "Inodes that there are", ({ figures }) => figures.inodes),
  ioCost("indebt", "Device time in seconds owed for transfers that could not wait", (c) => c.indebtUs),
  ioCost("indelay", "Time in seconds that tasks were held back to pay what is owed", (c) => c.indelayUs),
  ioCost("usage", "Device time in seconds that was paid for", (c) => c.usageUs),
  ioCost("wait", "Time in seconds that transfers waited to be paid for", (c) => c.waitUs),
  filesystem("io_current", "Transfers under way", ({ disk }) => disk?.inProgress),
  filesystem(
    "io_time_seconds_total",
    "Time in seconds with transfers under way",
    ({ disk }) => disk?.ioSeconds,
    "counter",
  ),
  filesystem(
    "io_time_weighted_seconds_total",
    "Time in seconds with transfers under way, times their number",
    ({ disk }) => disk?.weightedIOSeconds,
    "counter",
  ),
  filesystem("limit_bytes", "Size in bytes", ({ figures }) => figures.capacityBytes),
  filesystem("read_seconds_total", "Time in seconds spent reading", ({ disk }) => disk?.readSeconds, "counter"),
  transfers("reads_bytes", "Bytes read", (io) => io.readBytes),
  filesystem("reads_merged_total", "Reads that were merged with others", ({ disk }) => disk?.readsMerged, "counter"),
  transfers(
    "reads",
    "Reads that have ended",
    (io) => io.reads,
    (disk) => disk.reads,
  ),
  filesystem("sector_reads_total", "Sectors read", ({ disk }) => disk?.sectorsRead, "counter"),
  filesystem("sector_writes_total", "Sectors written", ({ disk }) => disk?.sectorsWritten, "counter"),
  filesystem("usage_bytes", "Bytes in use", ({ figures }) => figures.usedBytes),
  filesystem("write_seconds_total", "Time in seconds spent writing", ({ disk }) => disk?.writeSeconds, "counter"),
  transfers("writes_bytes", "Bytes written", (io) => io.writtenBytes),
  filesystem("writes_merged_total", "Writes that were merged with others", ({ disk }) => disk?.writesMerged, "counter"),
  transfers(
    "writes",
    "Writes that have ended",
    (io) => io.writes,
    (disk) => disk.writes,
  ),
  constant("health_state", "Health by the runtime's own checks, of which Kubernetes has none: always 0", 0),
  {
    name: "container_last_seen",
    help: "When the cgroup was last seen, in seconds since 1970",
    type: "gauge",
    values: (_row, { nowMs }) => [{ value: Math.floor(nowMs / 1_000) }],
  },
  memory("cache", "Page cache in bytes", (m) => m.cacheBytes),
  memory("failcnt", "How often the limit was hit", (m) => m.failures ?? 0, "counter"),
  {
    name: "container_memory_failures_total",
    help: "Page faults, by kind and scope",
    type: "counter",
    values: ({ reading: { memory: of } }) =>
      of === undefined
        ? []
        : [
            { value: of.pageFaults, labels: { failure_type: "pgfault", scope: "container" } },
            { value: of.majorPageFaults, labels: { failure_type: "pgmajfault", scope: "container" } },
            { value: of.treePageFaults, labels: { failure_type: "pgfault", scope: "hierarchy" } },
            { value: of.treeMajorPageFaults, labels: { failure_type: "pgmajfault", scope: "hierarchy" } },
          ],
  },
  memory("kernel_usage", "Memory in bytes that the kernel uses on behalf of the tasks", (m) => m.kernelBytes ?? 0),
  memory("mapped_file", "Mapped files in bytes", (m) => m.mappedBytes),
  memory("max_usage_bytes", "Most memory that was ever in use, in bytes", (m) => m.maxUsageBytes ?? 0),
  memory("rss", "Anonymous memory in bytes", (m) => m.rssBytes),
  {
    name: "container_memory_swap",
    help: "Swap in use, in bytes",
    type: "gauge",
    values: ({ reading }) => one(reading.swap?.usageBytes),
  },
  memory("total_active_file_bytes", "Page cache in bytes that was used lately", (m) => m.activeFileBytes ?? 0),
  memory("total_inactive_file_bytes", "Page cache in bytes that was not used lately", (m) => m.inactiveFileBytes ?? 0),
  memory("usage_bytes", "Memory in use, with the page cache, in bytes", (m) => m.usageBytes),
  memory("working_set_bytes", "Memory that cannot be reclaimed at once, in bytes", (m) => m.workingSetBytes),
  network("receive_bytes", "Bytes received", (n) => n.rxBytes),
  network("receive_errors", "Errors while receiving", (n) => n.rxErrors),
  network("receive_packets_dropped", "Packets dropped while receiving", (n) => n.rxDropped),
  network("receive_packets", "Packets received", (n) => n.rxPackets),
  network("transmit_bytes", "Bytes sent", (n) => n.txBytes),
  network("transmit_errors", "Errors while sending", (n) => n.txErrors),
  network("transmit_packets_dropped", "Packets dropped while sending", (n) => n.txDropped),
  network("transmit_packets", "Packets sent", (n) => n.txPackets),
  {
    name: "container_oom_events_total",
    help: "Tasks of this cgroup that were killed because memory ran out",
    type: "counter",
    values: ({ reading: { memory: of } }) => one(of && (of.oomKills ?? 0)),
  },
  pressure("cpu", "stalled", ({ reading }) => reading.cpu?.pressure),
  pressure("cpu", "waiting", ({ reading }) => reading.cpu?.pressure),
  pressure("io", "stalled", ({ reading }) => reading.io?.pressure),
  pressure("io", "waiting", ({ reading }) => reading.io?.pressure),
  pressure("memory", "stalled", ({ reading }) => reading.memory?.pressure),
  pressure("memory", "waiting", ({ reading }) => reading.memory?.pressure),
  {
    name: "container_processes",
    help: "Processes in this cgroup itself",
    type: "gauge",
    values: ({ reading }) => one(reading.pids?.length),
  },
  {
    name: "container_sockets",
    help: "Open sockets",
    type: "gauge",
    values: ({ processes }) => one(processes?.sockets),
  },
  spec("cpu_period", "Period of the CPU quota in microseconds", ({ reading }) => reading.cpu?.spec?.periodUs),
  spec(
    "cpu_quota",
    "CPU time in microseconds that may be used in a period",
    ({ reading }) => reading.cpu?.spec?.quotaUs,
  ),
  spec("cpu_shares", "Weight among those that want CPU time", ({ reading }) => reading.cpu?.spec?.shares),
  spec(
    "memory_limit_bytes",
    "Memory limit in bytes, 0 for none",
    ({ reading }) => reading.memory && (reading.memory.limitBytes ?? 0),
  ),
  spec(
    "memory_reservation_limit_bytes",
    "Memory in bytes from which on it is reclaimed, 0 for none",
    ({ reading }) => reading.memory && (reading.memory.reservationBytes ?? 0),
  ),
  spec(
    "memory_swap_limit_bytes",
    "Swap limit in bytes, 0 for none",
    ({ reading }) => reading.memory && (reading.swap?.limitBytes ?? 0),
  ),
  {
    name: "container_start_time_seconds",
    help: "When the cgroup was made, in seconds since 1970",
    type: "gauge",
    isTimeless: true,
    values: ({ reading: { createdAtMs } }) =>
      one(createdAtMs === undefined ? undefined : Math.floor(createdAtMs / 1_000)),
  },
  {
    name: "container_tasks_state",
    help: "Not measured: always 0",
    type: "gauge",
    values: () => taskStates.map((state) => ({ value: 0, labels: { state } })),
  },
  {
    name: "container_threads",
    help: "Tasks in this cgroup and below",
    type: "gauge",
    values: ({ reading }) => one(reading.tasks?.current),
  },
  {
    name: "container_threads_max",
    help: "How many tasks there may be, 0 for any number",
    type: "gauge",
    values: ({ reading }) => one(reading.tasks?.max),
  },
  {
    name: "container_ulimits_soft",
    help: "Soft limit of the first process, by resource",
    type: "gauge",
    values: ({ processes }) =>
      processes?.maxOpenFiles === undefined
        ? []
        : [{ value: processes.maxOpenFiles, labels: { ulimit: "max_open_files" } }],
  },
];
