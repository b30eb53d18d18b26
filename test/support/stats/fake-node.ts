import { mkdir } from "node:fs/promises";
import type { Pod, PodStatus } from "../../../agent/kube/types.ts";
import type { Clock } from "../../../agent/lib/clock.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import type { ContainerStats, ContainerSummary, RuntimeList, SandboxSummary } from "../../../agent/runtime/port.ts";
import { createStats, type StatsDeps } from "../../../agent/stats/stats.ts";
import { type FakeCgroup, notOnRoot, writeCgroup2 } from "./fake-cgroup2.ts";

/** A node without a kernel of its own: cgroups as files, a runtime that answers from tables. */
export interface FakeNode {
  /** Where the cgroups are. */
  cgroupRoot: string;
  list: RuntimeList;
  pods: Pod[];
  /** Of every pod; undefined at first. */
  status: PodStatus | undefined;
  containerStats: ContainerStats[];
  /** Calls to the runtime by name. */
  calls: Record<string, number>;
  deps: StatsDeps;
  /** A running pod with its cgroups: the sandbox has the ID `s-NAME`, containers `c-NAME-CONTAINER`. */
  addPod(name: string, containers: readonly string[], cgroup?: FakeCgroup): Promise<Pod>;
  start: () => ReturnType<typeof createStats>;
}

export interface FakeNodeOptions {
  /** Empty, and the caller's to remove. */
  dir: string;
  clock: Clock;
}

export const memoryBytes = 8 * 2 ** 30;

/** The root, kubepods and the QoS classes are there; pods are added. */
export async function createFakeNode({ dir, clock }: FakeNodeOptions): Promise<FakeNode> {
  const cgroupRoot = `${dir}/cgroup`;
  await writeCgroup2(cgroupRoot, "/", { usageUs: 900_000_000, anon: 2 ** 30 }, notOnRoot);
  for (const path of ["/kubepods", "/kubepods/burstable", "/kubepods/besteffort"]) await writeCgroup2(cgroupRoot, path);
  await mkdir(`${dir}/kubelet`);
  const list: RuntimeList = { sandboxes: [], containers: [] };
  const pods: Pod[] = [];
  const containerStats: ContainerStats[] = [];
  const calls: Record<string, number> = {};
  const counted = (name: string) => {
    calls[name] = (calls[name] ?? 0) + 1;
  };
  const deps: StatsDeps = {
    nodeName: "node",
    startedAtMs: clock.now(),
    pods: { list: () => pods, status: () => node.status },
    runtime: {
      list: async () => {
        counted("list");
        return list;
      },
      containerStats: async () => {
        counted("containerStats");
        return containerStats;
      },
      sandboxProcess: async () => {
        counted("sandboxProcess");
        return { pid: process.pid, image: "pause:1" };
      },
      images: {
        fsInfo: async () => ({
          imageFilesystems: [{ timestampMs: clock.now(), mountpoint: dir, usedBytes: 1_000, inodesUsed: 10 }],
          containerFilesystems: [],
        }),
      },
    },
    facts: {
      machineID: "m",
      systemUUID: "u",
      bootID: "b",
      kernelVersion: "6.1.0",
      osImage: "Linux",
      cpuCount: 4,
      memoryBytes,
      swapBytes: 0,
      pidsMax: 32_768,
    },
    cgroups: { driver: "cgroupfs", cgroupRoot: "/", cgroupsPerQOS: true },
    systemCgroups: { kubeletCgroups: "/none", runtimeCgroups: "", systemCgroups: "" },
    rootDir: `${dir}/kubelet`,
    podLogsDir: `${dir}/logs`,
    volumeStatsAggPeriodMs: 60_000,
    statsOf: async () => undefined,
    clock,
    log: silentLogger,
    mounts: { version: 2, root: cgroupRoot },
  };
  const addPod: FakeNode["addPod"] = async (name, containers, cgroup = {}) => {
    const uid = `uid-${name}`;
    const spec = { containers: containers.map((container) => ({ name: container, image: "app:1" })) };
    const pod: Pod = { metadata: { name, namespace: "ns", uid }, spec };
    pods.push(pod);
    const of = { podUID: uid, podName: name, podNamespace: "ns", attempt: 0, labels: {}, annotations: {} };
    const createdAtMs = clock.now() - 3_600_000;
    const sandbox: SandboxSummary = { ...of, id: `s-${name}`, ready: true, createdAtMs, runtimeHandler: "" };
    list.sandboxes.push(sandbox);
    const path = `/kubepods/besteffort/pod${uid}`;
    await writeCgroup2(cgroupRoot, path, cgroup);
    await writeCgroup2(cgroupRoot, `${path}/${sandbox.id}`, { usageUs: 1_000, pids: [process.pid] });
    for (const container of containers) {
      const id = `c-${name}-${container}`;
      const summary: ContainerSummary = {
        ...of,
        id,
        sandboxID: sandbox.id,
        name: container,
        state: "running",
        createdAtMs,
        image: "app:1",
        imageRef: "sha256:1",
      };
      list.containers.push(summary);
      await writeCgroup2(cgroupRoot, `${path}/${id}`, { pids: [process.pid], ...cgroup });
    }
    return pod;
  };
  const node: FakeNode = {
    cgroupRoot,
    list,
    pods,
    status: undefined,
    containerStats,
    calls,
    deps,
    addPod,
    start: () => createStats(deps),
  };
  return node;
}
