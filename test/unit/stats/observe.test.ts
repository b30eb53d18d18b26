import { mkdtemp, rm, utimes } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { beforeEach, describe, expect, onTestFinished, test } from "vitest";
import { cgroupNameOf, runningPods } from "../../../agent/stats/inventory.ts";
import { baselineGapMs, freshMs } from "../../../agent/stats/observe.ts";
import type { Stats } from "../../../agent/stats/port.ts";
import { moveBase, rateWindowMsMax, rateWindowMsMin, usageNanoCores } from "../../../agent/stats/usage-rate.ts";
import { createFakeNode, type FakeNode } from "../../support/stats/fake-node.ts";
import { writeCgroup2 } from "../../support/stats/fake-cgroup2.ts";
import { FakeClock } from "../kube/fake-clock.ts";

describe("the rate of CPU use", () => {
  const at = (atMs: number, usageNs: number) => ({ atMs, usageNs });

  test("one busy core is 10^9 nano-cores", () => {
    expect(usageNanoCores(at(0, 0), at(10_000, 10e9))).toBe(1_000_000_000);
    expect(usageNanoCores(undefined, at(10_000, 10e9))).toBeUndefined();
    expect(usageNanoCores(at(10, 0), at(10, 1))).toBeUndefined();
  });

  const cases = [
    {
      name: "the newest sample that is a window old",
      base: at(0, 0),
      last: at(50_000, 5),
      next: at(60_000, 6),
      want: at(50_000, 5),
    },
    {
      name: "the one before, while the newest is too near",
      base: at(40_000, 4),
      last: at(59_000, 5),
      next: at(60_000, 6),
      want: at(40_000, 4),
    },
    {
      name: "the near one, if there is no other",
      base: undefined,
      last: at(59_000, 5),
      next: at(60_000, 6),
      want: at(59_000, 5),
    },
    {
      name: "nothing from before a long silence",
      base: at(0, 0),
      last: at(10_000, 1),
      next: at(10_001 + rateWindowMsMax, 9),
      want: undefined,
    },
    {
      name: "nothing from another cgroup of that name: use went back",
      base: at(40_000, 40),
      last: at(50_000, 50),
      next: at(60_000, 6),
      want: undefined,
    },
    { name: "nothing at first sight", base: undefined, last: undefined, next: at(60_000, 6), want: undefined },
  ];
  test.each(cases)("compares with $name", ({ base, last, next, want }) => {
    expect(moveBase(base, last, next)).toEqual(want);
  });
});

describe("which pods are shown", () => {
  const sandbox = (id: string, change: object = {}) => ({
    id,
    podUID: "u",
    podName: "web",
    podNamespace: "ns",
    attempt: 0,
    ready: true,
    createdAtMs: 1,
    labels: {},
    annotations: {},
    runtimeHandler: "",
    ...change,
  });
  const container = (id: string, sandboxID: string, change: object = {}) => ({
    id,
    sandboxID,
    podUID: "u",
    podName: "web",
    podNamespace: "ns",
    name: "app",
    attempt: 0,
    state: "running" as const,
    createdAtMs: 1,
    image: "",
    imageRef: "",
    labels: {},
    annotations: {},
    ...change,
  });
  const idsOf = (...args: Parameters<typeof runningPods>) =>
    runningPods(...args).map(({ sandbox: { id }, containers }) => [id, containers.map((each) => each.id)]);

  test("sandboxes with running containers; exited ones are left out", () => {
    const sandboxes = [sandbox("a"), sandbox("b", { podName: "other" })];
    const containers = [
      container("1", "a"),
      container("2", "a", { name: "x", state: "exited" }),
      container("3", "gone"),
    ];
    expect(idsOf({ sandboxes, containers })).toEqual([["a", ["1"]]]);
  });

  test("of several sandboxes of one pod the ready one, else the newest", () => {
    const containers = [container("1", "old"), container("2", "new")];
    const old = sandbox("old", { ready: true, createdAtMs: 1 });
    const recent = sandbox("new", { ready: false, createdAtMs: 2 });
    expect(idsOf({ sandboxes: [old, recent], containers })).toEqual([["old", ["1"]]]);
    expect(idsOf({ sandboxes: [{ ...old, ready: false }, recent], containers })).toEqual([["new", ["2"]]]);
  });

  test("of several running containers of one name the newest", () => {
    const containers = [container("2", "a", { createdAtMs: 5 }), container("1", "a", { createdAtMs: 4 })];
    expect(idsOf({ sandboxes: [sandbox("a")], containers })).toEqual([["a", ["2"]]]);
  });
});

test.each([
  ["cgroupfs", "abc", "abc"],
  ["containerd with systemd", "cri-containerd-abc.scope", "cri-containerd-abc.scope"],
  ["CRI-O with systemd, beside its monitor", "crio-abc.scope", "crio-abc.scope"],
  ["Docker with systemd", "docker-abc.scope", "docker-abc.scope"],
  ["another container's", "cri-containerd-xabc.scope", undefined],
  ["a name that only contains the ID", "abc.slice", undefined],
])("a container's cgroup in its pod's: %s", (_name, name, want) => {
  expect(cgroupNameOf("abc", ["crio-conmon-abc.scope", "def", name])).toBe(want);
});

describe("measuring", () => {
  let clock: FakeClock;
  let node: FakeNode;
  let stats: Stats;
  beforeEach(async () => {
    const dir = await mkdtemp(join(tmpdir(), "nodelet-observe-"));
    onTestFinished(async () => await rm(dir, { recursive: true, force: true }));
    clock = new FakeClock();
    node = await createFakeNode({ dir, clock });
    node.deps.volumeStatsAggPeriodMs = 0;
    await node.addPod("web", ["app"]);
    stats = await node.start();
  });
  const podPath = "/kubepods/besteffort/poduid-web";
  const use = async (usageUs: number) => await writeCgroup2(node.cgroupRoot, `${podPath}/c-web-app`, { usageUs });
  const reduced = async () => await stats.summary({ onlyCPUAndMemory: true });
  const cpuOf = ({ pods }: Awaited<ReturnType<typeof reduced>>) => pods[0]?.containers?.[0]?.cpu;
  /** Until what `pending` waits for is a timer, then past it. */
  const pass = async (pending: Promise<unknown>, ms: number) => {
    await expect.poll(() => clock.waiting, { interval: 1 }).toBeGreaterThan(0);
    await clock.advance(ms);
    await pending;
  };

  test("nobody asks: nothing is read, not even the runtime", async () => {
    await clock.advance(3_600_000);
    expect(node.calls).toEqual({});
  });

  test("the first request waits for a second sample", async () => {
    await use(1_000_000);
    const first = reduced();
    await expect.poll(() => clock.waiting, { interval: 1 }).toBeGreaterThan(0);
    await use(1_400_000);
    await clock.advance(baselineGapMs);
    expect(cpuOf(await first)).toMatchObject({ usageNanoCores: 200_000_000, usageCoreNanoSeconds: 1_400_000_000 });
  });

  test("regular requests compare with each other, without a wait", async () => {
    await use(0);
    await pass(reduced(), baselineGapMs);
    await clock.advance(15_000);
    await use(3_000_000);
    await reduced();
    await clock.advance(15_000);
    await use(18_000_000);
    expect(cpuOf(await reduced())?.usageNanoCores).toBe(1_000_000_000);
  });

  test("a rate is never taken from samples that are nearer than a CPU quota's grain allows", async () => {
    await use(0);
    expect(await stats.resourceMetrics()).not.toEqual([]);
    const first = reduced();
    await expect.poll(() => clock.waiting, { interval: 1 }).toBeGreaterThan(0);
    expect(baselineGapMs).toBeLessThan(rateWindowMsMin);
    await use(2_000_000);
    await clock.advance(baselineGapMs);
    expect(cpuOf(await first)?.usageNanoCores).toBe(1_000_000_000);
  });

  test("after a long silence the next request is as right as the first", async () => {
    await use(0);
    await pass(reduced(), baselineGapMs);
    await clock.advance(rateWindowMsMax + 60_000);
    await use(100_000_000);
    const next = reduced();
    await expect.poll(() => clock.waiting, { interval: 1 }).toBeGreaterThan(0);
    await use(101_000_000);
    await clock.advance(baselineGapMs);
    expect(cpuOf(await next)?.usageNanoCores).toBe(500_000_000);
  });

  test("requests that come together, or within 5 s, share one round", async () => {
    await Promise.all(Array.from({ length: 50 }, async () => await stats.resourceMetrics()));
    expect(node.calls).toEqual({ list: 1 });
    await clock.advance(freshMs - 1);
    await stats.resourceMetrics();
    expect(node.calls).toEqual({ list: 1 });
    await clock.advance(1);
    await stats.resourceMetrics();
    expect(node.calls).toEqual({ list: 2 });
  });

  test("a client that goes while it waits ends the wait", async () => {
    const gone = new AbortController();
    const asked = stats.summary({ onlyCPUAndMemory: true, signal: gone.signal });
    await expect.poll(() => clock.waiting, { interval: 1 }).toBeGreaterThan(0);
    gone.abort();
    await expect(asked).rejects.toThrow();
    expect(clock.waiting).toBe(0);
  });

  test("a container that has just started used nothing before", async () => {
    await pass(reduced(), baselineGapMs);
    await clock.advance(15_000);
    await node.addPod("new", ["app"], { usageUs: 2_000_000 });
    for (const one of [...node.list.containers, ...node.list.sandboxes]) {
      if (one.podName === "new") one.createdAtMs = clock.now() - 4_000;
    }
    const pod = (await reduced()).pods.find(({ podRef }) => podRef.name === "new");
    expect(pod?.containers?.[0]?.cpu?.usageNanoCores).toBe(500_000_000);
    expect(pod?.cpu?.usageNanoCores).toBe(500_000_000);
  });

  test("a second sandbox of a pod finds what the first one's containers had used", async () => {
    await pass(reduced(), baselineGapMs);
    await clock.advance(15_000);
    await node.addPod("again", ["app"], { usageUs: 2_000_000 });
    for (const one of node.list.sandboxes.filter(({ podName }) => podName === "again")) {
      Object.assign(one, { createdAtMs: clock.now() - 4_000, attempt: 1 });
    }
    const pod = (await reduced()).pods.find(({ podRef }) => podRef.name === "again");
    expect(pod?.cpu?.usageNanoCores).toBe(0);
  });

  test("an agent that has just started takes no cgroup for newborn because it looks at it for the first time", async () => {
    await use(1_000_000_000);
    for (const path of ["", podPath, `${podPath}/c-web-app`]) {
      const seen = new Date(clock.now() - 1_000); // when the kernel made the inodes, for our look
      await utimes(join(node.cgroupRoot, path, "cgroup.events"), seen, seen).catch(() => {});
      await utimes(join(node.cgroupRoot, path), seen, seen);
    }
    const first = reduced();
    await expect.poll(() => clock.waiting, { interval: 1 }).toBeGreaterThan(0);
    await use(1_000_200_000);
    await clock.advance(baselineGapMs);
    expect(cpuOf(await first)?.usageNanoCores).toBe(100_000_000);
  });

  test("a sandbox's process is asked for once", async () => {
    const full = stats.summary({ onlyCPUAndMemory: false });
    await pass(full, baselineGapMs);
    await clock.advance(60_000);
    await stats.summary({ onlyCPUAndMemory: false });
    expect(node.calls.sandboxProcess).toBe(1);
  });

  test("a pod that the API server has forgotten keeps its cgroup while it runs", async () => {
    await stats.resourceMetrics();
    node.pods.length = 0;
    await clock.advance(60_000);
    const [, , , podCPU] = await stats.resourceMetrics();
    expect(podCPU?.name).toBe("pod_cpu_usage_seconds_total");
    expect([...(podCPU?.samples ?? [])]).toHaveLength(1);
  });

  test("a container without a cgroup has the runtime's figures, and its pod their sum", async () => {
    await pass(reduced(), baselineGapMs);
    await clock.advance(10_000);
    node.pods.length = 0;
    const timestampMs = clock.now();
    const orphan = {
      ...node.list.sandboxes[0],
      id: "s-x",
      podUID: "x",
      podName: "x",
    } as FakeNode["list"]["sandboxes"][0];
    node.list.sandboxes.push(orphan);
    for (const id of ["1", "2"]) {
      const of = { ...node.list.containers[0], id, name: id, sandboxID: "s-x", podUID: "x", podName: "x" };
      node.list.containers.push(of as FakeNode["list"]["containers"][0]);
      node.containerStats.push({
        containerID: id,
        cpu: { timestampMs, usageCoreNanoSeconds: 5, usageNanoCores: 7 },
        memory: { timestampMs, workingSetBytes: 100 },
      });
    }
    const pod = (await reduced()).pods.find(({ podRef }) => podRef.name === "x");
    expect(pod?.containers?.[0]).toMatchObject({ cpu: { usageNanoCores: 7 }, memory: { workingSetBytes: 100 } });
    expect(pod).toMatchObject({
      cpu: { usageCoreNanoSeconds: 10, usageNanoCores: 14 },
      memory: { workingSetBytes: 200 },
    });
    expect(pod?.cpu).not.toHaveProperty("psi");
  });
});

test("systemd's slices and scopes are found as well, and pods without cgroups of their own do without", async () => {
  const dir = await mkdtemp(join(tmpdir(), "nodelet-observe-"));
  onTestFinished(async () => await rm(dir, { recursive: true, force: true }));
  const node = await createFakeNode({ dir, clock: new FakeClock() });
  await node.addPod("a-b", ["app"]);
  const slice = "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice";
  const pod = `${slice}/kubelet-kubepods-besteffort-poduid_a_b.slice`;
  await writeCgroup2(node.cgroupRoot, pod, { usageUs: 3_000_000 });
  await writeCgroup2(node.cgroupRoot, `${pod}/cri-containerd-c-a-b-app.scope`, { usageUs: 2_000_000 });
  const cpuOf = async () => {
    const families = await (await node.start()).resourceMetrics();
    const value = (name: string) => [...(families.find((family) => family.name === name)?.samples ?? [])][0]?.value;
    return [value("pod_cpu_usage_seconds_total"), value("container_cpu_usage_seconds_total")];
  };
  node.deps.cgroups = { driver: "systemd", cgroupRoot: "/kubelet", cgroupsPerQOS: true };
  expect(await cpuOf()).toEqual([3, 2]);
  node.deps.cgroups = { driver: "cgroupfs", cgroupRoot: "", cgroupsPerQOS: false };
  node.containerStats.push({ containerID: "c-a-b-app", cpu: { timestampMs: 1, usageCoreNanoSeconds: 5e9 } });
  expect(await cpuOf()).toEqual([5, 5]);
});
