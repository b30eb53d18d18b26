import { describe, expect, test } from "vitest";
import {
  computeQOSClass,
  hugePageFileSuffix,
  hugePageResource,
  isCriticalPod,
  isNodeCriticalPod,
  linuxResources,
  milliCPUToQuota,
  milliCPUToShares,
  oomScoreAdj,
  podLimits,
  podRequests,
  podSandboxResources,
  qosClass,
  type ResourceContext,
} from "../../../agent/kube/pod-resources.ts";
import type { Pod } from "../../../agent/kube/types.ts";
import { container, pod } from "./pods.ts";

const GiB = 1 << 30;
const MiB = 1 << 20;

describe("QoS class", () => {
  const both = { cpu: "1", memory: "1Gi" };
  const cases: { name: string; of: Pod; want: string }[] = [
    { name: "nothing asked, nothing limited", of: pod([container("a")]), want: "BestEffort" },
    { name: "zero amounts count as nothing", of: pod([container("a", { cpu: "0" })]), want: "BestEffort" },
    { name: "requests equal limits", of: pod([container("a", both, both)]), want: "Guaranteed" },
    {
      name: "equal in other words",
      of: pod([container("a", { cpu: "1000m", memory: "1024Mi" }, both)]),
      want: "Guaranteed",
    },
    { name: "limits above requests", of: pod([container("a", { cpu: "1", memory: "1Mi" }, both)]), want: "Burstable" },
    {
      name: "one of two containers is unlimited",
      of: pod([container("a", both, both), container("b")]),
      want: "Burstable",
    },
    { name: "memory alone", of: pod([container("a", { memory: "1Gi" }, { memory: "1Gi" })]), want: "Burstable" },
    {
      name: "init containers count",
      of: pod([container("a", both, both)], { initContainers: [container("i")] }),
      want: "Burstable",
    },
    {
      name: "ephemeral ones do not",
      of: pod([container("a", both, both)], { ephemeralContainers: [container("e")] }),
      want: "Guaranteed",
    },
    { name: "other resources do not", of: pod([container("a", { "example.com/gpu": 1 })]), want: "BestEffort" },
    {
      name: "pod level alone decides",
      of: pod([container("a")], { resources: { requests: both, limits: both } }),
      want: "Guaranteed",
    },
    {
      name: "pod level below limits",
      of: pod([container("a", both, both)], { resources: { requests: { cpu: "1" }, limits: { cpu: "2" } } }),
      want: "Burstable",
    },
  ];
  for (const { name, of, want } of cases) test(`${name}: ${want}`, () => expect(computeQOSClass(of)).toBe(want));

  test("the API server's word wins", () => {
    expect(qosClass({ ...pod([container("a")]), status: { qosClass: "Burstable" } })).toBe("Burstable");
  });
});

describe("effective requests and limits", () => {
  const cpu = (value: string) => ({ cpu: value });
  const sidecar = (name: string, value: string) => container(name, cpu(value), undefined, { restartPolicy: "Always" });
  const cases: { name: string; of: Pod; milliCPU: number }[] = [
    { name: "containers add up", of: pod([container("a", cpu("100m")), container("b", cpu("0.2"))]), milliCPU: 300 },
    {
      name: "a larger init container is the peak",
      of: pod([container("a", cpu("100m"))], { initContainers: [container("i", cpu("1"))] }),
      milliCPU: 1_000,
    },
    {
      name: "sidecars run beside the containers",
      of: pod([container("a", cpu("100m"))], { initContainers: [sidecar("s", "50m")] }),
      milliCPU: 150,
    },
    {
      name: "an init container runs beside the sidecars before it",
      of: pod([container("a", cpu("100m"))], { initContainers: [sidecar("s", "50m"), container("i", cpu("1"))] }),
      milliCPU: 1_050,
    },
    {
      name: "but not those after it",
      of: pod([container("a", cpu("100m"))], { initContainers: [container("i", cpu("1")), sidecar("s", "50m")] }),
      milliCPU: 1_000,
    },
    { name: "overhead comes on top", of: pod([container("a", cpu("100m"))], { overhead: cpu("20m") }), milliCPU: 120 },
    {
      name: "pod level replaces, overhead still comes on top",
      of: pod([container("a", cpu("100m"))], { resources: { requests: cpu("2") }, overhead: cpu("20m") }),
      milliCPU: 2_020,
    },
  ];
  for (const { name, of, milliCPU } of cases) test(name, () => expect(podRequests(of).cpu).toBe(milliCPU));

  test("overhead can be left out", () => {
    expect(podRequests(pod([container("a", cpu("1"))], { overhead: cpu("1") }), { excludeOverhead: true }).cpu).toBe(
      1_000,
    );
  });

  test("overhead never makes a limit where there is none", () => {
    const limited = pod([container("a", undefined, { memory: "1Mi" })], { overhead: { cpu: "1", memory: "1Mi" } });
    expect(podLimits(limited)).toEqual({ memory: 2 * MiB });
  });
});

test("critical pods are static, mirror or of a system priority", () => {
  const plain = container("a");
  expect(isCriticalPod(pod([plain]))).toBe(false);
  expect(isCriticalPod(pod([plain], { priority: 2_000_000_000 }))).toBe(true);
  expect(isCriticalPod(pod([plain], {}, { annotations: { "kubernetes.io/config.source": "file" } }))).toBe(true);
  expect(isCriticalPod(pod([plain], {}, { annotations: { "kubernetes.io/config.source": "api" } }))).toBe(false);
  expect(isCriticalPod(pod([plain], {}, { annotations: { "kubernetes.io/config.mirror": "x" } }))).toBe(true);
  expect(isNodeCriticalPod(pod([plain], { priorityClassName: "system-node-critical" }))).toBe(false);
  expect(isNodeCriticalPod(pod([plain], { priorityClassName: "system-node-critical", priority: 2_000_001_000 }))).toBe(
    true,
  );
});

test.each([
  [0, 2],
  [1, 2],
  [2, 2],
  [100, 102],
  [1_000, 1_024],
  [256_000, 262_144],
  [1_000_000, 262_144],
])("%i milli-CPU are %i shares", (milli, shares) => expect(milliCPUToShares(milli)).toBe(shares));

test.each([
  [0, 100_000, 0],
  [5, 100_000, 1_000],
  [500, 100_000, 50_000],
  [1_500, 100_000, 150_000],
  [1_000, 5_000, 5_000],
  [10, 5_000, 1_000],
])("%i milli-CPU in a period of %i µs are a quota of %i µs", (milli, period, quota) => {
  expect(milliCPUToQuota(milli, period)).toBe(quota);
});

describe("oom_score_adj", () => {
  const memory = (value: string) => ({ memory: value });
  const burstable = (value: string) => container("a", memory(value), undefined);
  const both = { cpu: "1", memory: "1Gi" };
  const cases: { name: string; of: Pod; index?: number; want: number }[] = [
    { name: "Guaranteed", of: pod([container("a", both, both)]), want: -997 },
    { name: "BestEffort", of: pod([container("a")]), want: 1_000 },
    {
      name: "node-critical",
      of: pod([container("a")], { priority: 2_000_001_000, priorityClassName: "system-node-critical" }),
      want: -997,
    },
    { name: "Burstable with half the memory", of: pod([burstable("2Gi")]), want: 500 },
    { name: "Burstable with next to nothing", of: pod([burstable("1Mi")]), want: 999 },
    { name: "Burstable with everything", of: pod([burstable("4Gi")]), want: 3 },
    {
      name: "Burstable with a share of the pod's request",
      of: pod([container("a"), container("b")], { resources: { requests: memory("2Gi") } }),
      want: 750,
    },
  ];
  for (const { name, of, want } of cases) {
    test(name, () => expect(oomScoreAdj(of, of.spec.containers[0] ?? container("x"), 4 * GiB)).toBe(want));
  }

  test("a sidecar lives as long as the container that asked for the least", () => {
    const sidecar = container("s", memory("1Mi"), undefined, { restartPolicy: "Always" });
    const of = pod([burstable("1Gi"), burstable("2Gi")], { initContainers: [sidecar] });
    expect(oomScoreAdj(of, sidecar, 4 * GiB)).toBe(750);
  });
});

const v1: ResourceContext = {
  cgroupVersion: 1,
  memoryCapacityBytes: 4 * GiB,
  cpuCFSQuota: true,
  cpuPeriodUs: 100_000,
  hugePageSizes: [],
  singleProcessOOMKill: true,
  swapControllerAvailable: false,
  swapBehavior: "NoSwap",
  swapCapacityBytes: 0,
};
const v2: ResourceContext = { ...v1, cgroupVersion: 2, singleProcessOOMKill: false, swapControllerAvailable: true };

describe("CRI resources of a container", () => {
  const only = (of: Pod, context: ResourceContext) =>
    linuxResources(of, of.spec.containers[0] ?? container("x"), context);

  test("a BestEffort container on cgroup v1", () => {
    expect(only(pod([container("a")]), v1)).toEqual({
      cpuShares: 2,
      cpuPeriod: 100_000,
      cpuQuota: 0,
      oomScoreAdj: 1_000,
      hugepageLimits: [],
    });
  });

  test("requests and limits", () => {
    const of = pod([container("a", { cpu: "250m", memory: "64Mi" }, { cpu: "500m", memory: "128Mi" })]);
    expect(only(of, v1)).toMatchObject({
      cpuShares: 256,
      cpuQuota: 50_000,
      memoryLimitBytes: 128 * MiB,
      oomScoreAdj: 985,
    });
  });

  test("a limit stands in for a request that is not there, not for one of 0", () => {
    expect(only(pod([container("a", undefined, { cpu: "1" })]), v1).cpuShares).toBe(1_024);
    expect(only(pod([container("a", { cpu: "0" }, { cpu: "1" })]), v1).cpuShares).toBe(2);
  });

  test("the pod's limit holds for a container without its own", () => {
    const of = pod([container("a")], { resources: { limits: { cpu: "1", memory: "1Gi" } } });
    expect(only(of, v1)).toMatchObject({ cpuQuota: 100_000, memoryLimitBytes: GiB });
  });

  test("no quota when the configuration turns it off", () => {
    const resources = only(pod([container("a", undefined, { cpu: "1" })]), { ...v1, cpuCFSQuota: false });
    expect(resources.cpuQuota).toBeUndefined();
    expect(resources.cpuPeriod).toBeUndefined();
  });

  test("cgroup v2 kills the container as a whole and gives it no swap", () => {
    expect(only(pod([container("a")]), v2).unified).toEqual({ "memory.oom.group": "1", "memory.swap.max": "0" });
    expect(only(pod([container("a")]), { ...v2, singleProcessOOMKill: true }).unified).toEqual({
      "memory.swap.max": "0",
    });
  });

  test("limited swap is in proportion to the memory request", () => {
    const context: ResourceContext = { ...v2, swapBehavior: "LimitedSwap", swapCapacityBytes: 2 * GiB };
    const swapOf = (of: Pod) => only(of, context).unified?.["memory.swap.max"];
    expect(swapOf(pod([container("a", { memory: "1Gi" }, { memory: "2Gi" })]))).toBe(String(GiB / 2));
    expect(swapOf(pod([container("a", { memory: "1Gi" }, { memory: "1Gi" })]))).toBe("0");
    expect(swapOf(pod([container("a")]))).toBe("0");
    expect(swapOf(pod([container("a", { memory: "1Gi" })], { priority: 2_000_000_000 }))).toBe("0");
  });

  test("on v1 no swap means a limit on memory and swap together", () => {
    const of = pod([container("a", undefined, { memory: "1Gi" })]);
    expect(only(of, { ...v1, swapControllerAvailable: true }).memorySwapLimitBytes).toBe(GiB);
  });

  test("every huge page size has a limit", () => {
    const of = pod([container("a", { "hugepages-2Mi": "4Mi" }, { "hugepages-2Mi": "4Mi" })]);
    expect(only(of, { ...v1, hugePageSizes: [2 * MiB, GiB] }).hugepageLimits).toEqual([
      { pageSize: "2MB", limit: 4 * MiB },
      { pageSize: "1GB", limit: 0 },
    ]);
  });
});

test("sandbox resources leave the overhead apart", () => {
  const of = pod([container("a", { cpu: "1" }, { cpu: "2", memory: "1Gi" })], {
    overhead: { cpu: "250m", memory: "64Mi" },
  });
  expect(podSandboxResources(of, v1)).toEqual({
    resources: { cpuShares: 1_024, cpuPeriod: 100_000, cpuQuota: 200_000, memoryLimitBytes: GiB },
    overhead: { cpuShares: 256, cpuPeriod: 100_000, cpuQuota: 25_000, memoryLimitBytes: 64 * MiB },
  });
  expect(podSandboxResources(pod([container("a")]), v1).overhead).toBeUndefined();
});

test("names of huge pages", () => {
  expect([64 * 1024, 2 * MiB, GiB].map(hugePageResource)).toEqual(["hugepages-64Ki", "hugepages-2Mi", "hugepages-1Gi"]);
  expect([64 * 1024, 2 * MiB, GiB].map(hugePageFileSuffix)).toEqual(["64KB", "2MB", "1GB"]);
});
