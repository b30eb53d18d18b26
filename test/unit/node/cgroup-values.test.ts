import { describe, expect, test } from "vitest";
import { cgroupComponents, cgroupPath, podUIDOf, qosComponents } from "../../../agent/node/cgroup-names.ts";
import {
  burstableShares,
  type CgroupValues,
  filesV1,
  filesV2,
  hugePagesUnlimited,
  kubepodsValues,
  podCgroupValues,
  sharesToWeight,
} from "../../../agent/node/cgroup-values.ts";
import { cpuMask, limitProperties } from "../../../agent/node/systemd.ts";
import type { Pod } from "../../../agent/kube/types.ts";
import { container, pod } from "./pods.ts";

const MiB = 1 << 20;

describe("names", () => {
  const podUID = "0c1d2e3f-aaaa-bbbb-cccc-000000000001";
  const cases: { components: string[]; cgroupfs: string; systemd: string }[] = [
    { components: [], cgroupfs: "/", systemd: "/" },
    { components: ["kubepods"], cgroupfs: "/kubepods", systemd: "/kubepods.slice" },
    {
      components: ["kubepods", "burstable"],
      cgroupfs: "/kubepods/burstable",
      systemd: "/kubepods.slice/kubepods-burstable.slice",
    },
    {
      components: ["kubepods", `pod${podUID}`],
      cgroupfs: `/kubepods/pod${podUID}`,
      systemd: "/kubepods.slice/kubepods-pod0c1d2e3f_aaaa_bbbb_cccc_000000000001.slice",
    },
    {
      components: ["kubelet", "kubepods", "besteffort"],
      cgroupfs: "/kubelet/kubepods/besteffort",
      systemd: "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice",
    },
  ];
  for (const { components, cgroupfs, systemd } of cases) {
    test(`${cgroupfs} and ${systemd}`, () => {
      expect(cgroupPath(components, "cgroupfs")).toBe(cgroupfs);
      expect(cgroupPath(components, "systemd")).toBe(systemd);
    });
  }

  test("a configured root is taken in either form", () => {
    expect(cgroupComponents("")).toEqual([]);
    expect(cgroupComponents("/")).toEqual([]);
    expect(cgroupComponents("/kubelet")).toEqual(["kubelet"]);
    expect(cgroupComponents("/a.slice/a-b_c.slice")).toEqual(["a", "b-c"]);
  });

  test("QoS classes have a level each, but for Guaranteed", () => {
    expect(qosComponents("Guaranteed")).toEqual(["kubepods"]);
    expect(qosComponents("BestEffort")).toEqual(["kubepods", "besteffort"]);
  });

  test.each([
    ["pod0c1d-2e", "cgroupfs", "0c1d-2e"],
    ["pod5f2d1a7c8e", "cgroupfs", "5f2d1a7c8e"],
    ["burstable", "cgroupfs", undefined],
    ["kubepods-burstable-pod0c1d_2e.slice", "systemd", "0c1d-2e"],
    ["kubepods-pod0c1d_2e.slice", "systemd", "0c1d-2e"],
    ["kubepods-burstable.slice", "systemd", undefined],
  ] as const)("the pod of %s (%s) is %s", (directory, driver, want) => expect(podUIDOf(directory, driver)).toBe(want));
});

describe("limits of a pod's cgroup", () => {
  const options = { cpuCFSQuota: true, cpuPeriodUs: 100_000, podPidsLimit: -1, hugePageSizes: [] };
  const both = { cpu: "1", memory: "1Mi" };
  const cases: { name: string; of: Pod; with?: Partial<typeof options>; want: CgroupValues }[] = [
    { name: "BestEffort weighs least", of: pod([container("a")]), want: { cpuShares: 2 } },
    {
      name: "Guaranteed is limited to what it asked for",
      of: pod([container("a", both, both)]),
      want: { cpuShares: 1_024, cpuQuotaUs: 100_000, cpuPeriodUs: 100_000, memoryBytes: MiB },
    },
    { name: "Burstable without limits", of: pod([container("a", { cpu: "1" })]), want: { cpuShares: 1_024 } },
    {
      name: "one unlimited container makes the pod unlimited",
      of: pod([container("a", both, both), container("b", { cpu: "1" })]),
      want: { cpuShares: 2_048 },
    },
    {
      name: "an unlimited init container does as well",
      of: pod([container("a", { cpu: "500m" }, { memory: "1Mi" })], { initContainers: [container("i")] }),
      want: { cpuShares: 512 },
    },
    {
      name: "all containers limited",
      of: pod([container("a", { cpu: "500m" }, both), container("b", undefined, { cpu: "1", memory: "2Mi" })]),
      want: { cpuShares: 512, cpuQuotaUs: 200_000, cpuPeriodUs: 100_000, memoryBytes: 3 * MiB },
    },
    {
      name: "a limit of the pod as a whole counts for all",
      of: pod([container("a"), container("b")], { resources: { limits: both, requests: { cpu: "100m" } } }),
      want: { cpuShares: 102, cpuQuotaUs: 100_000, cpuPeriodUs: 100_000, memoryBytes: MiB },
    },
    {
      name: "overhead counts in requests and limits",
      of: pod([container("a", both, both)], { overhead: { cpu: "1", memory: "1Mi" } }),
      want: { cpuShares: 2_048, cpuQuotaUs: 200_000, cpuPeriodUs: 100_000, memoryBytes: 2 * MiB },
    },
    {
      name: "no CFS quota when turned off",
      of: pod([container("a", both, both)]),
      with: { cpuCFSQuota: false },
      want: { cpuShares: 1_024, cpuQuotaUs: -1, memoryBytes: MiB },
    },
    {
      name: "a limit of processes",
      of: pod([container("a")]),
      with: { podPidsLimit: 100 },
      want: { cpuShares: 2, pids: 100 },
    },
  ];
  for (const { name, of, with: more, want } of cases) {
    test(name, () => expect(podCgroupValues(of, { ...options, ...more })).toEqual({ hugePages: [], ...want }));
  }

  test("huge pages not asked for are forbidden", () => {
    const of = pod([container("a", { "hugepages-2Mi": "4Mi" }, { "hugepages-2Mi": "4Mi" })]);
    expect(podCgroupValues(of, { ...options, hugePageSizes: [2 * MiB, 1024 * MiB] }).hugePages).toEqual([
      { pageBytes: 2 * MiB, limitBytes: 4 * MiB },
      { pageBytes: 1024 * MiB, limitBytes: 0 },
    ]);
  });
});

test("the Burstable class weighs what its pods asked for together", () => {
  expect(burstableShares([])).toBe(2);
  expect(burstableShares([500, 250, 0])).toBe(768);
});

test("the pods' root gets the machine less what is kept from pods", () => {
  const capacity = { cpu: 4_000, memory: 8 * MiB, "hugepages-2Mi": 2 * MiB };
  expect(kubepodsValues({ capacity, enforcedReserved: {}, pidsMax: 1_000 })).toEqual({
    cpuShares: 4_096,
    memoryBytes: 8 * MiB,
    pids: 1_000,
    hugePages: [{ pageBytes: 2 * MiB, limitBytes: 2 * MiB }],
  });
  const enforcedReserved = { cpu: 1_000, memory: MiB, pid: 100 };
  expect(kubepodsValues({ capacity, enforcedReserved, pidsMax: 1_000 })).toMatchObject({
    cpuShares: 3_072,
    memoryBytes: 7 * MiB,
    pids: 900,
  });
});

describe("files", () => {
  const values: CgroupValues = {
    cpuShares: 1_024,
    cpuQuotaUs: 50_000,
    cpuPeriodUs: 100_000,
    memoryBytes: MiB,
    pids: 10,
    cpus: "0-1",
    hugePages: [{ pageBytes: 2 * MiB, limitBytes: hugePagesUnlimited }],
  };

  test("of cgroup v1, the period before the quota", () => {
    expect(filesV1(values).map(({ file, content }) => `${file}=${content}`)).toEqual([
      "cpu.shares=1024",
      "cpu.cfs_period_us=100000",
      "cpu.cfs_quota_us=50000",
      "memory.limit_in_bytes=1048576",
      "pids.max=10",
      "cpuset.cpus=0-1",
      "hugetlb.2MB.limit_in_bytes=4611686018427387904",
    ]);
  });

  test("of cgroup v2", () => {
    expect(filesV2(values).map(({ file, content }) => `${file}=${content}`)).toEqual([
      "cpu.weight=39",
      "cpu.max=50000 100000",
      "memory.max=1048576",
      "pids.max=10",
      "cpuset.cpus=0-1",
      "hugetlb.2MB.max=4611686018427387904",
      "hugetlb.2MB.rsvd.max=4611686018427387904",
    ]);
    expect(filesV2({ cpuQuotaUs: -1 })).toEqual([{ controller: "cpu", file: "cpu.max", content: "max" }]);
  });

  test.each([
    [0, 1],
    [2, 1],
    [1_024, 39],
    [262_144, 10_000],
    [999_999, 10_000],
  ])("%i shares weigh %i", (shares, weight) => expect(sharesToWeight(shares)).toBe(weight));
});

test("properties for systemd: quota in whole steps of 10 ms per second, no property that it does not know", () => {
  const values: CgroupValues = {
    cpuShares: 1_024,
    cpuQuotaUs: 12_345,
    cpuPeriodUs: 100_000,
    memoryBytes: 1,
    pids: 0,
    cpus: "0-8",
  };
  const plain = (version: number) =>
    limitProperties(values, version).map(([name, { signature, value }]) => [name, signature, value]);
  expect(plain(252)).toEqual([
    ["MemoryMax", "t", 1],
    ["CPUWeight", "t", 39],
    ["CPUQuotaPerSecUSec", "t", 130_000],
    ["CPUQuotaPeriodUSec", "t", 100_000],
    ["TasksMax", "t", 1],
    ["AllowedCPUs", "ay", [255, 1]],
  ]);
  expect(plain(241).map(([name]) => name)).toEqual(["MemoryMax", "CPUWeight", "CPUQuotaPerSecUSec", "TasksMax"]);
  expect(limitProperties({ cpuQuotaUs: -1 }, 252)).toEqual([]);
});

test("a CPU list as a mask", () => {
  expect(cpuMask("0,2-3,9")).toEqual([0b1101, 0b10]);
  expect(cpuMask("")).toEqual([]);
});
