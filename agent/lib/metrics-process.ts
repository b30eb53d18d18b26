import { readdir, readFile } from "node:fs/promises";
import { monitorEventLoopDelay } from "node:perf_hooks";
import { getHeapStatistics } from "node:v8";
import type { MetricFamily, MetricsRegistry, MetricType } from "./metrics.ts";

// How finely the event loop's lag is measured: fifty wake-ups a second cost less than 0.1 % of a core.
const lagResolutionMs = 20;
const quantiles = [0.5, 0.9, 0.99, 1];
// What Go's client shows for "unlimited".
const unlimited = 2 ** 64;

/** What /proc says of a process; absent what it does not say. */
export interface ProcessFigures {
  residentBytes?: number;
  virtualBytes?: number;
  threads?: number;
  openFilesMax?: number;
  virtualBytesMax?: number;
  receivedBytes?: number;
  transmittedBytes?: number;
}

/** From the texts of `status`, `limits` and `net/netstat` in /proc/self. Pure; what is missing or odd is left out. */
export function parseProcessFigures(texts: { status: string; limits: string; netstat: string }): ProcessFigures {
  const { status, limits, netstat } = texts;
  const kilobytes = (name: string) => timesKiB(new RegExp(`^${name}:\\s+(\\d+) kB$`, "m").exec(status)?.[1]);
  const limit = (name: string) => {
    const text = new RegExp(`^Max ${name}\\s+(\\S+)`, "m").exec(limits)?.[1];
    return text === "unlimited" ? unlimited : numberOf(text);
  };
  const [names = [], values = []] = netstat
    .split("\n")
    .filter((line) => line.startsWith("IpExt: "))
    .map((line) => line.split(" "));
  const octets = (name: string) => {
    const at = names.indexOf(name);
    return at < 0 ? undefined : numberOf(values[at]);
  };
  return withoutUndefined({
    residentBytes: kilobytes("VmRSS"),
    virtualBytes: kilobytes("VmSize"),
    threads: numberOf(/^Threads:\s+(\d+)$/m.exec(status)?.[1]),
    openFilesMax: limit("open files"),
    virtualBytesMax: limit("address space"),
    receivedBytes: octets("InOctets"),
    transmittedBytes: octets("OutOctets"),
  });
}

export interface ProcessMetricsOptions {
  processStartMs: number;
  proc?: string;
}

/**
 * Registers what dashboards ask of every process (`process_*`), Node.js' figures under the names that they know from Go
 * (`go_goroutines`: open handles, requests and timers; `go_threads`; `go_memstats_*`: the V8 heap), and the event loop's
 * lag (`nodelet_eventloop_*`), which is what a busy agent shows first. `close` ends the measuring.
 */
export function registerProcessMetrics(
  registry: MetricsRegistry,
  { processStartMs, proc = "/proc" }: ProcessMetricsOptions,
): { close(): void } {
  registry.collect("process_", async () => await processFamilies(proc, processStartMs));
  registry.collect("go_", () => heapFamilies());
  const lag = monitorEventLoopDelay({ resolution: lagResolutionMs });
  lag.enable();
  registry.collect("nodelet_eventloop_", () => {
    const samples = quantiles.map((quantile) => ({
      labels: { quantile: String(quantile) },
      // Node.js measures from timer to timer, so that its resolution is part of each value.
      value: Math.max(0, lag.percentile(quantile * 100) / 1e9 - lagResolutionMs / 1e3),
    }));
    lag.reset();
    const help = "How late the event loop ran timers, since the last scrape.";
    const active = performance.eventLoopUtilization().active / 1e3;
    return [
      { name: "nodelet_eventloop_lag_seconds", help, type: "gauge", samples },
      single("nodelet_eventloop_active_seconds_total", "counter", "Time that the event loop was busy.", active),
    ];
  });
  return { close: () => void lag.disable() };
}

/** `process_start_time_seconds`, which every endpoint shows. */
export function processStartFamily(processStartMs: number): MetricFamily {
  const help = "Unix time at which the process began, in seconds.";
  return single("process_start_time_seconds", "gauge", help, processStartMs / 1e3);
}

async function processFamilies(proc: string, processStartMs: number): Promise<MetricFamily[]> {
  const read = async (name: string) => await readFile(`${proc}/self/${name}`, "utf8").catch(() => "");
  const [status, limits, netstat, files] = await Promise.all([
    read("status"),
    read("limits"),
    read("net/netstat"),
    readdir(`${proc}/self/fd`).catch(() => undefined),
  ]);
  const of = parseProcessFigures({ status, limits, netstat });
  const { user, system } = process.cpuUsage();
  return [
    single("process_cpu_seconds_total", "counter", "CPU time used, in user and kernel mode.", (user + system) / 1e6),
    single("process_resident_memory_bytes", "gauge", "Resident memory.", of.residentBytes),
    single("process_virtual_memory_bytes", "gauge", "Virtual memory.", of.virtualBytes),
    single("process_virtual_memory_max_bytes", "gauge", "Virtual memory that may be had.", of.virtualBytesMax),
    single("process_open_fds", "gauge", "Open file descriptors.", files?.length),
    single("process_max_fds", "gauge", "File descriptors that may be open.", of.openFilesMax),
    single("process_network_receive_bytes_total", "counter", "Bytes received over the network.", of.receivedBytes),
    single("process_network_transmit_bytes_total", "counter", "Bytes sent over the network.", of.transmittedBytes),
    single("go_threads", "gauge", "Threads of the process.", of.threads),
    processStartFamily(processStartMs),
  ];
}

function heapFamilies(): MetricFamily[] {
  const heap = getHeapStatistics();
  const used = heap.used_heap_size;
  const resources = process.getActiveResourcesInfo().length;
  return [
    single(
      "go_goroutines",
      "gauge",
      "Open handles, requests and timers: what keeps Node.js' event loop busy.",
      resources,
    ),
    single("go_memstats_alloc_bytes", "gauge", "Bytes in use in V8's heap.", used),
    single("go_memstats_heap_alloc_bytes", "gauge", "Bytes in use in V8's heap.", used),
    single("go_memstats_heap_inuse_bytes", "gauge", "Bytes that V8's heap takes physically.", heap.total_physical_size),
    single("go_memstats_heap_sys_bytes", "gauge", "Bytes reserved for V8's heap.", heap.total_heap_size),
    single(
      "go_memstats_sys_bytes",
      "gauge",
      "Bytes of V8's heap and of buffers.",
      heap.total_heap_size + heap.external_memory,
    ),
  ];
}

function single(name: string, type: MetricType, help: string, value: number | undefined): MetricFamily {
  return { name, help, type, samples: value === undefined ? [] : [{ labels: {}, value }] };
}

function numberOf(text: string | undefined): number | undefined {
  const value = text === undefined || text === "" ? Number.NaN : Number(text);
  return Number.isFinite(value) ? value : undefined;
}

function timesKiB(text: string | undefined): number | undefined {
  const value = numberOf(text);
  return value === undefined ? undefined : value * 1024;
}

function withoutUndefined(figures: { [K in keyof ProcessFigures]-?: ProcessFigures[K] | undefined }): ProcessFigures {
  return Object.fromEntries(Object.entries(figures).filter(([, value]) => value !== undefined));
}
