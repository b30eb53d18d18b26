import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, expect, test } from "vitest";
import type { Pod } from "../../agent/kube/types.ts";
import { systemClock } from "../../agent/lib/clock.ts";
import { silentLogger } from "../../agent/lib/log.ts";
import type { MetricFamily, Sample } from "../../agent/lib/metrics.ts";
import { cgroupComponents } from "../../agent/node/cgroup-names.ts";
import { readNodeFacts } from "../../agent/node/facts.ts";
import type { Runtime } from "../../agent/runtime/port.ts";
import type { PodStats, Stats, Summary } from "../../agent/stats/port.ts";
import { createStats } from "../../agent/stats/stats.ts";
import { busyboxImageName } from "../support/images/images.ts";
import { createTestNode, type TestNode } from "../support/node/node.ts";
import { containerConfig, sandboxConfig } from "../support/runtime/configs.ts";
import { connectRuntime } from "../support/runtime/connect.ts";

const uid = "11111111-2222-3333-4444-555555555555";
const busyShare = 0.2;
const heldBytes = 50 << 20;
const written = 4 << 20;

let node: TestNode;
let runtime: Runtime;
let stats: Stats;
let sandboxID: string;
const containerIDs: Record<string, string> = {};
const stop = new AbortController();
let running: Promise<void>;
/** What the runtime counted of the busy container, again and again: on a busy machine it does not get its whole quota. */
const counted: { atMs: number; usedNs: number }[] = [];
let counting: Promise<void>;

const pod: Pod = {
  metadata: { name: "load", namespace: "default", uid },
  spec: { containers: [{ name: "busy" }, { name: "holds" }], volumes: [{ name: "scratch", emptyDir: {} }] },
};

beforeAll(async () => {
  node = await createTestNode();
  runtime = await connectRuntime(node);
  const podLogsDir = join(node.dir, "pods");
  const rootDir = join(node.dir, "kubelet");
  const scratch = join(rootDir, "pods", uid, "volumes", "kubernetes.io~empty-dir", "scratch");
  await node.exec("mkdir", ["-p", scratch]);
  const cgroupParent = `${node.cgroupRoot}/kubepods/besteffort/pod${uid}`;
  const config = await sandboxConfig(node.dir, node.cgroupRoot, { name: "load", uid, cgroupParent });
  sandboxID = await runtime.runPodSandbox(config, "");
  const start = async (name: string, script: string, change: Parameters<typeof containerConfig>[4] = {}) => {
    const container = await containerConfig(config, name, busyboxImageName, ["sh", "-c", script], change);
    const id = await runtime.createContainer(sandboxID, container, config);
    await runtime.startContainer(id);
    containerIDs[name] = id;
  };
  const mount = { selinuxRelabel: false, propagation: "PRIVATE", recursiveReadOnly: false, readonly: false } as const;
  await start("busy", "while :; do :; done", {
    resources: { cpuPeriod: 100_000, cpuQuota: 100_000 * busyShare, memoryLimitBytes: 64 << 20 },
  });
  await start(
    "holds",
    "dd if=/dev/zero of=/written bs=1M count=4; dd if=/dev/zero of=/scratch/file bs=1M count=2; echo hello; " +
      `(head -c ${heldBytes} /dev/zero; sleep 1000) | tail -c ${heldBytes}`,
    { mounts: [{ containerPath: "/scratch", hostPath: scratch, ...mount }] },
  );
  stats = await createStats({
    nodeName: "node",
    startedAtMs: Date.now(),
    pods: { list: () => [pod], status: () => undefined },
    runtime,
    facts: await readNodeFacts({ rootDir: node.dir }),
    cgroups: { driver: "cgroupfs", cgroupRoot: node.cgroupRoot, cgroupsPerQOS: true },
    systemCgroups: { kubeletCgroups: "", runtimeCgroups: "", systemCgroups: "" },
    rootDir,
    podLogsDir,
    volumeStatsAggPeriodMs: 60_000,
    statsOf: async () => undefined,
    clock: systemClock,
    log: silentLogger,
  });
  running = stats.run(stop.signal);
  counting = count();
  await sleep(3_000);
});

afterAll(async () => {
  stop.abort();
  await running;
  await counting;
  await runtime?.close();
  await node?.destroy();
});

async function count(): Promise<void> {
  while (!stop.signal.aborted) {
    const busy = (await runtime.containerStats()).find(({ containerID }) => containerID === containerIDs["busy"]);
    const { timestampMs = 0, usageCoreNanoSeconds } = busy?.cpu ?? {};
    if (usageCoreNanoSeconds !== undefined) counted.push({ atMs: timestampMs, usedNs: usageCoreNanoSeconds });
    await sleep(250);
  }
}

/** The least and the most of a core that the busy container had over any second or more, going by the runtime. */
function sharesHad(): { least: number; most: number } {
  const shares = counted.flatMap((from) => {
    const to = counted.find(({ atMs }) => atMs >= from.atMs + 1_000);
    return to === undefined ? [] : [(to.usedNs - from.usedNs) / 1e6 / (to.atMs - from.atMs)];
  });
  return { least: Math.min(...shares), most: Math.max(...shares) };
}

const within = (share: number, expected: number) => ({ above: expected * (1 - share), below: expected * (1 + share) });
const expectNear = (value: number | undefined, share: number, expected: number) => {
  const { above, below } = within(share, expected);
  expect(value).toBeGreaterThan(above);
  expect(value).toBeLessThan(below);
};
const expectShareHad = (value: number | undefined) => {
  const { least, most } = sharesHad();
  expect(most).toBeGreaterThan(0);
  expect(value).toBeGreaterThan(least * 0.9);
  expect(value).toBeLessThan(most * 1.1);
};
const podOf = ({ pods }: Summary): PodStats => {
  const [only] = pods;
  if (only === undefined || pods.length !== 1) throw new Error(`${pods.length} pods in the summary`);
  return only;
};
const containerOf = (summary: Summary, name: string) => podOf(summary).containers?.find((each) => each.name === name);
const sampleOf = (
  families: Iterable<MetricFamily>,
  name: string,
  labels: Record<string, string>,
): Sample | undefined => {
  for (const family of families) {
    if (family.name !== name) continue;
    for (const sample of family.samples) {
      if (Object.entries(labels).every(([key, value]) => sample.labels[key] === value)) return sample;
    }
  }
  return undefined;
};

test("the first summary after silence knows what is used, within a few percent of the truth", async () => {
  const summary = await stats.summary({ onlyCPUAndMemory: false });
  const used = containerOf(summary, "busy")?.cpu?.usageNanoCores ?? 0;
  expectShareHad(used / 1e9);
  const held = containerOf(summary, "holds")?.memory;
  expectNear(held?.rssBytes, 0.05, heldBytes);
  // Programs and what they read lately come on top.
  expectNear(held?.workingSetBytes, 0.1, heldBytes);
  const whole = podOf(summary);
  expect(whole.memory?.workingSetBytes).toBeGreaterThan(held?.workingSetBytes ?? 0);
  expect(whole.cpu?.usageNanoCores).toBeGreaterThan(used * 0.9);
  expect(summary.node.cpu?.usageNanoCores).toBeGreaterThan(used * 0.9);
});

test("figures of cgroups agree with the runtime's own", async () => {
  const summary = await stats.summary({ onlyCPUAndMemory: true });
  const ofRuntime = await runtime.containerStats();
  for (const name of ["busy", "holds"]) {
    const theirs = ofRuntime.find(({ containerID }) => containerID === containerIDs[name]);
    const ours = containerOf(summary, name);
    expectNear(ours?.memory?.workingSetBytes, 0.1, theirs?.memory?.workingSetBytes ?? 0);
    // It may have run on for the 5 s that ours may be old.
    const behindNs = (theirs?.cpu?.usageCoreNanoSeconds ?? 0) - (ours?.cpu?.usageCoreNanoSeconds ?? 0);
    expect(behindNs).toBeGreaterThanOrEqual(0);
    expect(behindNs).toBeLessThan(5.5e9 * busyShare);
  }
});

test("a full summary has network, volumes, logs and processes; a reduced one has not", async () => {
  const pods = podOf(await stats.summary({ onlyCPUAndMemory: false }));
  expect(pods.podRef).toEqual({ name: "load", namespace: "default", uid });
  expect(pods.network).toMatchObject({ name: "eth0", interfaces: [{ name: "eth0" }] });
  expect(pods.volume).toEqual([expect.objectContaining({ name: "scratch", inodesUsed: 2 })]);
  expect(pods.volume?.[0]?.usedBytes).toBeGreaterThanOrEqual(2 << 20);
  expect(pods["ephemeral-storage"]?.usedBytes).toBeGreaterThanOrEqual(2 << 20);
  expect(pods.process_stats?.process_count).toBeGreaterThanOrEqual(3);
  const log = pods.containers?.find(({ name }) => name === "holds")?.logs;
  expect(log).toMatchObject({ inodesUsed: 1 });
  expect(log?.usedBytes).toBeGreaterThan(0);

  const reduced = await stats.summary({ onlyCPUAndMemory: true });
  expect(Object.keys(podOf(reduced)).sort()).toEqual(["containers", "cpu", "memory", "podRef", "startTime", "swap"]);
  expect(Object.keys(containerOf(reduced, "busy") ?? {}).sort()).toEqual([
    "cpu",
    "memory",
    "name",
    "startTime",
    "swap",
  ]);
});

test("the writable layer is the runtime's figure, once it has measured", async () => {
  const deadline = performance.now() + 30_000;
  let usedBytes: number | undefined;
  while (performance.now() < deadline && !((usedBytes ?? 0) >= written)) {
    usedBytes = containerOf(await stats.summary({ onlyCPUAndMemory: false }), "holds")?.rootfs?.usedBytes;
    await sleep(1_000);
  }
  expect(usedBytes).toBeGreaterThanOrEqual(written);
});

test("resource metrics let a scraper take rates by their timestamps", async () => {
  const labels = { container: "busy", pod: "load", namespace: "default" };
  const first = sampleOf(await stats.resourceMetrics(), "container_cpu_usage_seconds_total", labels);
  await sleep(5_500);
  const second = sampleOf(await stats.resourceMetrics(), "container_cpu_usage_seconds_total", labels);
  const passedMs = (second?.timestampMs ?? 0) - (first?.timestampMs ?? 0);
  expect(passedMs).toBeGreaterThanOrEqual(5_000);
  expectShareHad((((second?.value ?? 0) - (first?.value ?? 0)) / passedMs) * 1_000);
});

test("cAdvisor's names have rows for the machine, pods, sandboxes and containers", async () => {
  const families = [...(await stats.cadvisorMetrics())];
  const cgroup = `/${cgroupComponents(node.cgroupRoot).join("/")}/kubepods/besteffort/pod${uid}`;
  const rows = [
    { id: "/", container: "", pod: "" },
    { id: cgroup, container: "", pod: "load", name: "", image: "" },
    { id: `${cgroup}/${sandboxID}`, container: "", pod: "load", name: sandboxID },
    { id: `${cgroup}/${containerIDs.busy}`, container: "busy", pod: "load", image: busyboxImageName },
  ];
  for (const row of rows) {
    expect(sampleOf(families, "container_memory_working_set_bytes", row)).toMatchObject({
      timestampMs: expect.any(Number) as number,
    });
  }
  const busy = { container: "busy" };
  expect(sampleOf(families, "container_spec_memory_limit_bytes", busy)?.value).toBe(64 << 20);
  expect(sampleOf(families, "container_spec_cpu_quota", busy)?.value).toBe(20_000);
  expect(sampleOf(families, "container_cpu_cfs_throttled_periods_total", busy)?.value).toBeGreaterThan(10);
  expect(sampleOf(families, "container_file_descriptors", busy)?.value).toBeGreaterThan(0);
  const received = { id: `${cgroup}/${sandboxID}`, interface: "eth0" };
  const bytes = sampleOf(families, "container_network_receive_bytes_total", received)?.value;
  const { pid } = await runtime.sandboxProcess(sandboxID);
  const dev = await readFile(`/proc/${pid}/net/dev`, "utf8");
  expect(bytes).toBeLessThanOrEqual(Number(/eth0:\s*(\d+)/.exec(dev)?.[1]));
  expect(bytes).toBeGreaterThan(0);
});

test("a removed pod is gone", async () => {
  await runtime.stopPodSandbox(sandboxID);
  await runtime.removePodSandbox(sandboxID);
  await sleep(5_100);
  expect((await stats.summary({ onlyCPUAndMemory: false })).pods).toEqual([]);
  const families = [...(await stats.cadvisorMetrics())];
  expect(sampleOf(families, "container_last_seen", { pod: "load" })).toBeUndefined();
  expect(sampleOf(families, "container_scrape_error", {})?.value).toBe(0);
});
