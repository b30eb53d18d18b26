import { mkdir, mkdtemp, readdir, readlink, rm, writeFile } from "node:fs/promises";
import { createServer, request as httpRequest, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { beforeEach, describe, expect, onTestFinished, test } from "vitest";
import { systemClock } from "../../../agent/lib/clock.ts";
import type { MetricFamily, Sample } from "../../../agent/lib/metrics.ts";
import { renderMetrics } from "../../../agent/lib/metrics-text.ts";
import { HttpError } from "../../../agent/server/port.ts";
import { formBytesMax } from "../../../agent/stats/handler.ts";
import type { Stats } from "../../../agent/stats/port.ts";
import { createProcessMeter } from "../../../agent/stats/process-details.ts";
import { createFileReader } from "../../../agent/stats/read.ts";
import { createFakeNode, type FakeNode, memoryBytes } from "../../support/stats/fake-node.ts";
import { writeCgroup2 } from "../../support/stats/fake-cgroup2.ts";

let node: FakeNode;
let stats: Stats;
let dir: string;
let passedMs = 0;

// Waits end at once, and time moves by them: a first request's two samples come right after each other.
const clock = {
  ...systemClock,
  now: () => Date.now() + passedMs,
  sleep: async (ms: number) => {
    passedMs += ms;
  },
};

beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), "nodelet-stats-"));
  const made = dir;
  onTestFinished(async () => await rm(made, { recursive: true, force: true }));
  passedMs = 0;
  node = await createFakeNode({ dir, clock });
  node.deps.volumeStatsAggPeriodMs = 0;
  await node.addPod("web", ["app"], {
    memoryMax: "67108864",
    swapMax: "1048576",
    swapCurrent: 4_096,
    cpuMax: "20000 100000",
  });
  const logs = join(dir, "logs/ns_web_uid-web/app");
  await mkdir(logs, { recursive: true });
  await writeFile(join(logs, "0.log"), "x".repeat(5_000));
  node.containerStats.push({
    containerID: "c-web-app",
    writableLayer: { timestampMs: Date.UTC(2026, 0, 1), mountpoint: dir, usedBytes: 7_000, inodesUsed: 3 },
  });
  stats = await node.start();
});

const time = expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/) as string;
const number = expect.any(Number) as number;
const psi = { some: expect.any(Object) as object, full: expect.any(Object) as object };
const cpu = { time, usageNanoCores: number, usageCoreNanoSeconds: 20_000_000_000, psi };
const filesystem = { time, availableBytes: number, capacityBytes: number, inodesFree: number, inodes: number };
const memory = {
  time,
  availableBytes: 67_108_864 - (26 << 20),
  usageBytes: 30 << 20,
  workingSetBytes: 26 << 20,
  rssBytes: 16 << 20,
  pageFaults: 45_678,
  majorPageFaults: 12,
  psi,
};
const swap = { time, swapAvailableBytes: 1_048_576 - 4_096, swapUsageBytes: 4_096 };
const ioPSI = {
  time,
  psi: { some: { avg10: 0.1, avg60: 0.2, avg300: 0.3, total: 333 }, full: expect.any(Object) as object },
};

describe("the summary", () => {
  test("a pod, whole: every field by the API's name, and no other", async () => {
    const { pods } = await stats.summary({ onlyCPUAndMemory: false });
    const own = pods[0]?.network;
    expect(pods).toEqual([
      {
        podRef: { name: "web", namespace: "ns", uid: "uid-web" },
        startTime: time,
        containers: [
          {
            name: "app",
            startTime: time,
            cpu,
            memory,
            io: ioPSI,
            rootfs: { ...filesystem, time: "2026-01-01T00:00:00Z", usedBytes: 7_000, inodesUsed: 3 },
            logs: { ...filesystem, usedBytes: 8_192, inodesUsed: 1 },
            swap,
          },
        ],
        cpu,
        memory,
        io: ioPSI,
        network: own,
        "ephemeral-storage": { ...filesystem, usedBytes: 15_192, inodesUsed: 4 },
        process_stats: { process_count: 1 },
        swap,
      },
    ]);
    expect(own).toMatchObject({ time, name: expect.any(String) as string });
  });

  test("the node, whole", async () => {
    const { node: shown } = await stats.summary({ onlyCPUAndMemory: false });
    const usage = { ...filesystem, usedBytes: number, inodesUsed: number };
    const imageFs = { ...filesystem, usedBytes: 1_000, inodesUsed: 10 };
    expect(shown).toEqual({
      nodeName: "node",
      startTime: time,
      systemContainers: [
        {
          name: "pods",
          startTime: time,
          cpu,
          memory: expect.objectContaining({ workingSetBytes: 26 << 20 }) as object,
          swap: { time, swapUsageBytes: 0 },
          io: ioPSI,
        },
      ],
      cpu: { ...cpu, usageCoreNanoSeconds: 900_000_000_000 },
      memory: expect.objectContaining({ availableBytes: memoryBytes - 2 ** 30 - (6 << 20) }) as object,
      io: ioPSI,
      network: expect.objectContaining({ time }) as object,
      fs: usage,
      runtime: { imageFs, containerFs: imageFs },
      rlimit: { time, maxpid: 32_768, curproc: number },
      swap: { time, swapAvailableBytes: number, swapUsageBytes: number },
    });
  });

  test("reduced: nothing but CPU, memory and swap is shown, and no disk is asked", async () => {
    node.deps.rootDir = "/nowhere";
    const { node: shown, pods } = await stats.summary({ onlyCPUAndMemory: true });
    expect(Object.keys(shown).sort()).toEqual(["cpu", "memory", "nodeName", "startTime", "swap", "systemContainers"]);
    expect(pods).toEqual([
      {
        podRef: { name: "web", namespace: "ns", uid: "uid-web" },
        startTime: time,
        containers: [{ name: "app", startTime: time, cpu, memory, swap }],
        cpu,
        memory,
        swap,
      },
    ]);
  });

  test("a node without pods", async () => {
    node.list.sandboxes.length = 0;
    expect((await stats.summary({ onlyCPUAndMemory: false })).pods).toEqual([]);
  });

  test.each([
    ["the root directory's filesystem", (of: FakeNode) => void (of.deps.rootDir = "/nowhere"), "/nowhere"],
    [
      "the images' filesystem",
      (of: FakeNode) =>
        void (of.deps.runtime.images.fsInfo = async () => ({ imageFilesystems: [], containerFilesystems: [] })),
      "no filesystem for images",
    ],
    [
      "the runtime",
      (of: FakeNode) => void (of.deps.runtime.list = async () => await Promise.reject(new Error("runtime is away"))),
      "runtime is away",
    ],
    [
      "the root cgroup",
      (of: FakeNode) => void (of.deps.mounts = { version: 2, root: "/nowhere" }),
      "the root cgroup cannot be read",
    ],
  ])("without %s there is none", async (_name, breakIt, message) => {
    breakIt(node);
    const broken = await node.start();
    await expect(broken.summary({ onlyCPUAndMemory: false })).rejects.toThrow(message);
  });

  test("without the runtime's figures only root filesystems are missing", async () => {
    node.deps.runtime.containerStats = async () => await Promise.reject(new Error("no statistics"));
    const [pod] = (await (await node.start()).summary({ onlyCPUAndMemory: false })).pods;
    expect(pod?.containers?.[0]).not.toHaveProperty("rootfs");
    expect(pod?.containers?.[0]?.cpu).toEqual(cpu);
  });
});

describe("GET and POST /stats/summary", () => {
  let server: Server;
  beforeEach(async () => {
    server = createServer((request, response) => {
      const { searchParams: query } = new URL(request.url ?? "", "http://x");
      stats
        .handler({ request, response, params: {}, query, signal: new AbortController().signal })
        .catch((err: unknown) => {
          response.writeHead(err instanceof HttpError ? err.status : 500);
          response.end(err instanceof Error ? err.message : "");
        });
    });
    await new Promise<void>((resolve) => void server.listen(0, "127.0.0.1", resolve));
    onTestFinished(async () => {
      server.closeAllConnections();
      await new Promise((resolve) => void server.close(resolve));
    });
  });
  const ask = async (query: string, form?: string) =>
    await new Promise<{ status: number; type: string | undefined; body: string }>((resolve, reject) => {
      const { port } = server.address() as AddressInfo;
      const options = {
        port,
        path: `/stats/summary${query}`,
        method: form === undefined ? "GET" : "POST",
        headers: form === undefined ? {} : { "content-type": "application/x-www-form-urlencoded" },
      };
      const sent = httpRequest(options, (response) => {
        let body = "";
        response.setEncoding("utf8").on("data", (chunk: string) => {
          body += chunk;
        });
        response.on("end", () =>
          resolve({ status: response.statusCode ?? 0, type: response.headers["content-type"], body }),
        );
      });
      sent.on("error", reject);
      sent.end(form);
    });

  test.each([
    ["", undefined, true],
    ["?only_cpu_and_memory=true", undefined, false],
    ["?only_cpu_and_memory=True", undefined, true],
    ["?only_cpu_and_memory=true&only_cpu_and_memory=true", undefined, true],
    ["", "only_cpu_and_memory=true", false],
    ["?only_cpu_and_memory=true", "only_cpu_and_memory=true", true],
  ])("query %j and form %j: whole is %s", async (query, form, isWhole) => {
    const { status, type, body } = await ask(query, form);
    expect([status, type]).toEqual([200, "application/json"]);
    const parsed = JSON.parse(body) as { node: object };
    expect("fs" in parsed.node).toBe(isWhole);
    expect(body).toContain('\n "node": {\n  "nodeName": "node",');
  });

  test("what failed is said in a line of text", async () => {
    node.deps.rootDir = "/nowhere";
    stats = await node.start();
    const { status, body } = await ask("");
    expect(status).toBe(500);
    expect(body).toMatch(/^Internal Error: .*\/nowhere/);
  });

  test("a form that is a bomb", async () => {
    expect((await ask("", `x=${"y".repeat(formBytesMax)}`)).status).toBe(413);
  });
});

const linesOf = (families: Iterable<MetricFamily>) => [...renderMetrics(families)].join("").split("\n");
const samplesOf = (families: Iterable<MetricFamily>, name: string): Sample[] =>
  [...families].filter((family) => family.name === name).flatMap(({ samples }) => [...samples]);

describe("/metrics/resource", () => {
  test("names, labels, values and timestamps", async () => {
    const lines = linesOf(await stats.resourceMetrics()).filter((line) => !line.startsWith("#") && line !== "");
    const ms = "\\d{13}";
    const labels = 'namespace="ns",pod="web"';
    const patterns = [
      `node_cpu_usage_seconds_total 900 ${ms}`,
      `node_memory_working_set_bytes ${2 ** 30 + (6 << 20)} ${ms}`,
      `node_swap_usage_bytes \\d+ ${ms}`,
      `pod_cpu_usage_seconds_total{${labels}} 20 ${ms}`,
      `pod_memory_working_set_bytes{${labels}} ${26 << 20} ${ms}`,
      `pod_swap_usage_bytes{${labels}} 4096 ${ms}`,
      `container_cpu_usage_seconds_total{container="app",${labels}} 20 ${ms}`,
      `container_memory_working_set_bytes{container="app",${labels}} ${26 << 20} ${ms}`,
      `container_swap_usage_bytes{container="app",${labels}} 4096 ${ms}`,
      `container_swap_limit_bytes{container="app",${labels}} 1048576 ${ms}`,
      `container_start_time_seconds{container="app",${labels}} \\d+(\\.\\d+)?`,
      "resource_scrape_error 0",
    ];
    // Numbers above a million are shown as Go shows them.
    const plain = lines.map((line) => line.replace(/ ([\d.]+e[+-]?\d+)/, (_all, text: string) => ` ${Number(text)}`));
    expect(plain).toHaveLength(patterns.length);
    patterns.forEach((pattern, i) => expect(plain[i]).toMatch(new RegExp(`^${pattern}$`)));
  });

  test("of two ready pods of one name the newest is shown, once", async () => {
    await node.addPod("web", ["app"], { usageUs: 7_000_000 });
    const [older, newer] = node.list.sandboxes;
    const [, container] = node.list.containers;
    if (older === undefined || newer === undefined || container === undefined) throw new Error("no second pod");
    Object.assign(newer, { id: "s-new", podUID: "uid-new", createdAtMs: older.createdAtMs + 1 });
    Object.assign(container, { sandboxID: "s-new", id: "c-new" });
    const ofPods = samplesOf(await stats.resourceMetrics(), "container_start_time_seconds");
    expect(ofPods).toHaveLength(1);
  });

  test("a runtime that is away is an error to see, and nothing else", async () => {
    node.deps.runtime.list = async () => await Promise.reject(new Error("away"));
    const broken = await node.start();
    expect(linesOf(await broken.resourceMetrics()).filter((line) => !line.startsWith("#"))).toEqual([
      "resource_scrape_error 1",
      "",
    ]);
  });
});

describe("/metrics/cadvisor", () => {
  const path = "/kubepods/besteffort/poduid-web";
  const base = { container: "", id: "", image: "", name: "", namespace: "", pod: "" };

  test("every container_* series has the same six labels", async () => {
    for (const { name, samples } of await stats.cadvisorMetrics()) {
      if (!name.startsWith("container_") || name === "container_scrape_error") continue;
      for (const { labels } of samples) expect(Object.keys(labels)).toEqual(expect.arrayContaining(Object.keys(base)));
    }
  });

  test("rows: the machine, kubepods, classes, the pod, its sandbox, its container", async () => {
    const seen = samplesOf(await stats.cadvisorMetrics(), "container_memory_usage_bytes");
    expect(seen.map(({ labels }) => labels)).toEqual([
      { ...base, id: "/" },
      { ...base, id: "/kubepods" },
      { ...base, id: "/kubepods/burstable" },
      { ...base, id: "/kubepods/besteffort" },
      { ...base, id: path, namespace: "ns", pod: "web" },
      { ...base, id: `${path}/s-web`, image: "pause:1", name: "s-web", namespace: "ns", pod: "web" },
      { container: "app", id: `${path}/c-web-app`, image: "app:1", name: "c-web-app", namespace: "ns", pod: "web" },
    ]);
    expect(seen.every(({ timestampMs }) => timestampMs !== undefined)).toBe(true);
  });

  test("a pod between two runs of its container keeps its own rows and its sandbox's", async () => {
    node.list.containers.length = 0;
    const families = await stats.cadvisorMetrics();
    const ids = (name: string) => samplesOf(families, name).map(({ labels }) => labels.id);
    expect(ids("container_memory_usage_bytes").slice(-2)).toEqual([path, `${path}/s-web`]);
    expect(new Set(ids("container_network_receive_bytes_total"))).toEqual(new Set(["/", `${path}/s-web`]));
    expect((await stats.summary({ onlyCPUAndMemory: false })).pods).toEqual([]);
    expect(samplesOf(await stats.resourceMetrics(), "pod_cpu_usage_seconds_total")).toEqual([]);
    for (const sandbox of node.list.sandboxes) sandbox.ready = false;
    passedMs += 15_000;
    expect(
      samplesOf(await stats.cadvisorMetrics(), "container_last_seen").map(({ labels }) => labels.pod),
    ).not.toContain("web");
  });

  test("a container's image by the name that its pod's status shows, where the runtime's list has only its ID", async () => {
    for (const container of node.list.containers) container.image = "sha256:1";
    const imageOf = async () => {
      passedMs += 15_000;
      const seen = samplesOf(await stats.cadvisorMetrics(), "container_memory_usage_bytes");
      return seen.find(({ labels }) => labels.container === "app")?.labels.image;
    };
    expect(await imageOf()).toBe("sha256:1");
    const shown = { name: "app", image: "registry.local/app:1", imageID: "sha256:1", ready: true, restartCount: 1 };
    node.status = { containerStatuses: [{ ...shown, containerID: "containerd://c-web-before" }] };
    expect(await imageOf()).toBe("sha256:1");
    node.status = { containerStatuses: [{ ...shown, containerID: "containerd://c-web-app" }] };
    expect(await imageOf()).toBe("registry.local/app:1");
  });

  test("what a cgroup pays for its transfers, where the kernel counts it", async () => {
    const io = join(node.cgroupRoot, "kubepods/besteffort/poduid-web/c-web-app/io.stat");
    const counted = "rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0";
    const costOf = async (what: string) => {
      passedMs += 15_000;
      const series = samplesOf(await stats.cadvisorMetrics(), `container_fs_io_cost_${what}_seconds_total`);
      return series.filter(({ labels }) => labels.container === "app").map(({ value }) => value);
    };
    await writeFile(io, `8:0 ${counted}\n`);
    expect(await costOf("usage")).toEqual([]);
    await writeFile(io, `8:0 ${counted} cost.usage=1500000 cost.wait=250000 cost.indebt=10 cost.indelay=20\n`);
    expect(await costOf("usage")).toEqual([1.5]);
    expect(await costOf("wait")).toEqual([0.25]);
    expect(await costOf("indebt")).toEqual([0.000_01]);
    expect(await costOf("indelay")).toEqual([0.000_02]);
  });

  const ofContainer: [string, object, number, boolean][] = [
    ["container_cpu_usage_seconds_total", { cpu: "total" }, 20, true],
    ["container_cpu_user_seconds_total", {}, 14, true],
    ["container_cpu_system_seconds_total", {}, 6, true],
    ["container_cpu_cfs_periods_total", {}, 1_200, true],
    ["container_cpu_cfs_throttled_periods_total", {}, 300, true],
    ["container_cpu_cfs_throttled_seconds_total", {}, 4.5, true],
    ["container_cpu_cfs_burst_seconds_total", {}, 0.007, true],
    ["container_memory_working_set_bytes", {}, 26 << 20, true],
    ["container_memory_rss", {}, 16 << 20, true],
    ["container_memory_cache", {}, 10 << 20, true],
    ["container_memory_swap", {}, 4_096, true],
    ["container_memory_failures_total", { failure_type: "pgmajfault", scope: "hierarchy" }, 12, true],
    ["container_memory_kernel_usage", {}, 3_145_728, true],
    ["container_oom_events_total", {}, 0, true],
    ["container_pressure_cpu_waiting_seconds_total", {}, 1.234567, true],
    ["container_pressure_memory_stalled_seconds_total", {}, 0.002121, true],
    ["container_pressure_io_stalled_seconds_total", {}, 0.000222, true],
    ["container_blkio_device_usage_total", { major: "8", minor: "0", operation: "Write" }, 2_097_152, true],
    ["container_processes", {}, 1, true],
    ["container_threads", {}, 3, true],
    ["container_threads_max", {}, 0, true],
    ["container_tasks_state", { state: "running" }, 0, true],
    ["container_spec_memory_limit_bytes", {}, 67_108_864, false],
    ["container_spec_memory_swap_limit_bytes", {}, 1_048_576, false],
    ["container_spec_memory_reservation_limit_bytes", {}, 0, false],
    ["container_spec_cpu_quota", {}, 20_000, false],
    ["container_spec_cpu_period", {}, 100_000, false],
    ["container_spec_cpu_shares", {}, 998, false],
  ];
  test.each(ofContainer)("%s %j is %d", async (name, labels, value, isTimed) => {
    const series = samplesOf(await stats.cadvisorMetrics(), name);
    const found = series.find((each) => {
      return (
        each.labels.container === "app" && Object.entries(labels).every(([key, want]) => each.labels[key] === want)
      );
    });
    expect(found?.value).toBe(value);
    expect(found?.timestampMs !== undefined).toBe(isTimed);
  });

  test("no quota, no throttling; no CPU used yet, no series; no limit is 0; the machine's limit is its memory", async () => {
    await writeCgroup2(node.cgroupRoot, `${path}/c-web-app`, { usageUs: 0 });
    const families = [...(await stats.cadvisorMetrics())];
    const ofApp = (name: string) => samplesOf(families, name).filter(({ labels }) => labels.container === "app");
    expect(ofApp("container_cpu_cfs_periods_total")).toEqual([]);
    expect(ofApp("container_spec_cpu_quota")).toEqual([]);
    expect(ofApp("container_cpu_usage_seconds_total")).toEqual([]);
    expect(ofApp("container_spec_memory_limit_bytes")[0]?.value).toBe(0);
    const machine = samplesOf(families, "container_spec_memory_limit_bytes").find(({ labels }) => labels.id === "/");
    expect(machine?.value).toBe(memoryBytes);
  });

  test("network belongs to the sandbox and the machine only", async () => {
    const families = [...(await stats.cadvisorMetrics())];
    const ids = samplesOf(families, "container_network_receive_bytes_total").map(({ labels }) => labels.id);
    expect([...new Set(ids)].filter((id) => id !== "/" && id !== `${path}/s-web`)).toEqual([]);
  });

  test("no series appears twice", async () => {
    const series = linesOf(await stats.cadvisorMetrics())
      .filter((line) => !line.startsWith("#") && line !== "")
      .map((line) => line.replace(/(\}| |^[^{]*?) [^}]*$/, "$1"));
    expect(series.length).toBeGreaterThan(200);
    expect(new Set(series).size).toBe(series.length);
  });

  test("the machine", async () => {
    const labels = { boot_id: "b", machine_id: "m", system_uuid: "u" };
    const families = [...(await stats.cadvisorMetrics())];
    expect(samplesOf(families, "machine_cpu_cores")).toEqual([{ labels, value: 4 }]);
    expect(samplesOf(families, "machine_cpu_books")).toEqual([{ labels, value: 0 }]);
    expect(samplesOf(families, "machine_cpu_drawers")).toEqual([{ labels, value: 0 }]);
    expect(samplesOf(families, "machine_memory_bytes")).toEqual([{ labels, value: memoryBytes }]);
    expect(samplesOf(families, "container_scrape_error")).toEqual([{ labels: {}, value: 0 }]);
    expect(samplesOf(families, "cadvisor_version_info")[0]?.labels).toMatchObject({ kernelVersion: "6.1.0" });
  });

  test("a runtime that is away: the machine, and an error to see", async () => {
    node.deps.runtime.list = async () => await Promise.reject(new Error("away"));
    const families = [...(await (await node.start()).cadvisorMetrics())];
    expect(samplesOf(families, "container_scrape_error")[0]?.value).toBe(1);
    expect(samplesOf(families, "machine_cpu_cores")).toHaveLength(1);
    expect(samplesOf(families, "container_memory_usage_bytes")).toEqual([]);
  });
});

test("scrapes leave no file open, also where files are missing", async () => {
  await rm(join(node.cgroupRoot, "kubepods/besteffort/poduid-web/c-web-app/memory.stat"));
  const scrape = async () => {
    passedMs += 15_000;
    await stats.summary({ onlyCPUAndMemory: false });
    passedMs += 15_000;
    for (const { samples } of await stats.cadvisorMetrics()) expect([...samples].length).toBeGreaterThanOrEqual(0);
  };
  for (let i = 0; i < 10; i++) await scrape();
  // Other tests share the process: only files of this one's node count.
  const open = await Promise.all(
    (await readdir("/proc/self/fd")).map(async (fd) => await readlink(`/proc/self/fd/${fd}`).catch(() => "")),
  );
  expect(open.filter((path) => path.startsWith(dir))).toEqual([]);
});

describe("open files", () => {
  const measure = async (pids: number[]) => {
    const meter = createProcessMeter(createFileReader(), clock);
    return (await meter.measure(new Map([["c", pids]]))).get("c");
  };

  test("descriptors, sockets and the limit of a process", async () => {
    const server = createServer();
    await new Promise<void>((resolve) => void server.listen(0, "127.0.0.1", resolve));
    const details = await measure([process.pid]);
    await new Promise((resolve) => void server.close(resolve));
    expect(details?.fileDescriptors).toBeGreaterThan(3);
    expect(details?.sockets).toBeGreaterThanOrEqual(1);
    expect(details?.sockets).toBeLessThan(details?.fileDescriptors ?? 0);
    expect(details?.maxOpenFiles).toBeGreaterThan(0);
  });

  test("a process that has ended tells nothing", async () => {
    expect(await measure([2 ** 22])).toBeUndefined();
    expect(await measure([])).toBeUndefined();
    expect(await measure([0])).toBeUndefined();
  });
});
