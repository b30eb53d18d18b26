import { beforeEach, describe, expect, test } from "vitest";
import { silentLogger } from "../../../agent/lib/log.ts";
import { messageOf } from "../../../agent/lib/errors.ts";
import type { ExecResult } from "../../../agent/lib/exec.ts";
import { parseHierarchies, createTreeV1 } from "../../../agent/node/cgroup-v1.ts";
import { createTreeV2 } from "../../../agent/node/cgroup-v2.ts";
import { type CgroupOptions, createCgroups, type PodCgroups } from "../../../agent/node/cgroups.ts";
import { createSliceManager } from "../../../agent/node/systemd.ts";
import { FakeClock, settle } from "../kube/fake-clock.ts";
import { FakeCgroup2 } from "./fake-cgroup2.ts";
import { container, pod } from "./pods.ts";

const options: CgroupOptions = {
  driver: "cgroupfs",
  cgroupRoot: "",
  cgroupsPerQOS: true,
  cpuCFSQuota: true,
  cpuPeriodUs: 100_000,
  podPidsLimit: -1,
  hugePageSizes: [2 << 20],
  capacity: { cpu: 4_000, memory: 1 << 30 },
  enforcedReserved: {},
  pidsMax: 1_000,
};
const both = { cpu: "500m", memory: "64Mi" };
const guaranteed = pod([container("a", both, both)], {}, { uid: "g-1" });
const burstable = pod([container("a", { cpu: "250m" })], {}, { uid: "b-1" });

describe("cgroup v2", () => {
  let kernel: FakeCgroup2;
  let cgroups: PodCgroups;
  const clock = new FakeClock();

  const makeCgroups = async (more: Partial<CgroupOptions> = {}) =>
    createCgroups(
      { ...options, ...more },
      { tree: await createTreeV2("/cg", kernel), clock, log: silentLogger, kill: kernel.kill },
    );

  beforeEach(async () => {
    kernel = new FakeCgroup2("/cg");
    cgroups = await makeCgroups();
  });

  test("controllers are passed on down to the pods", async () => {
    await cgroups.setUp();
    await cgroups.ensure(guaranteed);
    expect(kernel.file("/cg/kubepods/memory.max")).toBe(String(1 << 30));
    expect(kernel.file("/cg/kubepods/cpuset.cpus")).toBe("0-3");
    expect(kernel.file("/cg/kubepods/podg-1/cpu.weight")).toBe("20");
    expect(kernel.file("/cg/kubepods/podg-1/cpu.max")).toBe("50000 100000");
    expect(kernel.file("/cg/kubepods/podg-1/hugetlb.2MB.max")).toBe("0");
    expect(cgroups.parentFor(guaranteed)).toBe("/kubepods/podg-1");
  });

  test("the Burstable class weighs what its pods asked for", async () => {
    await cgroups.setUp();
    await cgroups.ensure(burstable);
    expect(kernel.file("/cg/kubepods/burstable/cpu.weight")).toBe("10");
    expect(await cgroups.podUIDsOnDisk()).toEqual(new Map([["b-1", "Burstable"]]));
  });

  test("destroying kills what is left, also below, and is done when nothing is there", async () => {
    await cgroups.setUp();
    await cgroups.ensure(burstable);
    await kernel.mkdir("/cg/kubepods/burstable/podb-1/c1");
    kernel.enter("/cg/kubepods/burstable/podb-1/c1", 4711);
    await cgroups.destroy("b-1");
    expect(await cgroups.exists(burstable)).toBe(false);
    await expect(cgroups.destroy("b-1")).resolves.toBeUndefined();
  });

  test("a process that does not go away is reported after five tries", async () => {
    const stuck = createCgroups(options, {
      tree: await createTreeV2("/cg", kernel),
      clock,
      log: silentLogger,
      kill: () => {},
    });
    await stuck.setUp();
    await stuck.ensure(burstable);
    kernel.enter("/cg/kubepods/burstable/podb-1", 4711);
    const outcome = stuck.destroy("b-1").catch(messageOf);
    await settle();
    await clock.advance(10_000);
    expect(await outcome).toMatch(/cannot remove cgroup .*podb-1/);
  });

  test("processes in the way of the controllers: the message says which cgroup and what to do", async () => {
    await kernel.mkdir("/cg/kubelet");
    await kernel.write("/cg/cgroup.subtree_control", "+cpu +cpuset +memory +hugetlb +pids");
    kernel.enter("/cg/kubelet", 42);
    const nested = await makeCgroups({ cgroupRoot: "/kubelet" });
    await expect(nested.setUp()).rejects.toThrow(
      /cannot enable controllers .* under \/cg\/kubelet: it has processes.*move them/,
    );
  });

  test("a root without the controllers is refused at start", async () => {
    await kernel.mkdir("/cg/kubelet");
    const nested = await makeCgroups({ cgroupRoot: "/kubelet" });
    await expect(nested.setUp()).rejects.toThrow(/cgroupRoot \/kubelet lacks the controllers cpu/);
    await expect((await makeCgroups({ cgroupRoot: "/lost" })).setUp()).rejects.toThrow(
      /cgroupRoot \/lost does not exist/,
    );
  });

  test("without a QoS tree nothing is made and pods go to the root", async () => {
    const flat = await makeCgroups({ cgroupsPerQOS: false, cgroupRoot: "" });
    await flat.setUp();
    await flat.ensure(burstable);
    expect(flat.parentFor(burstable)).toBe("/");
    expect(await kernel.directories("/cg")).toEqual([]);
  });
});

describe("systemd driver", () => {
  const clock = new FakeClock();
  const result = (more: Partial<ExecResult> = {}): ExecResult => ({
    code: 0,
    signal: undefined,
    stdout: "systemd 252 (252.1)\n",
    stderr: "",
    truncated: false,
    durationMs: 1,
    message: "busctl succeeded",
    ...more,
  });

  test("a pod's slice is asked of systemd, then gets its limits and all controllers", async () => {
    const kernel = new FakeCgroup2("/cg");
    const calls: string[] = [];
    const run = async (_file: string, args: readonly string[]) => {
      const [, , , , , method = "", , slice = ""] = args;
      calls.push(`${method} ${slice}`.trim());
      if (method === "StartTransientUnit") await kernel.mkdir(pathOfSlice(slice)).catch(() => {});
      return result();
    };
    const slices = await createSliceManager({ clock, run, isBooted: async () => true });
    const tree = await createTreeV2("/cg", kernel);
    const cgroups = createCgroups(
      { ...options, driver: "systemd" },
      { tree, slices, clock, log: silentLogger, kill: kernel.kill },
    );
    await cgroups.setUp();
    await cgroups.ensure(burstable);
    expect(cgroups.parentFor(burstable)).toBe(
      "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podb_1.slice",
    );
    await cgroups.destroy("b-1");
    expect(calls.filter((call) => call !== "")).toEqual([
      "StartTransientUnit kubepods.slice",
      "StartTransientUnit kubepods-burstable.slice",
      "StartTransientUnit kubepods-besteffort.slice",
      "StartTransientUnit kubepods-burstable-podb_1.slice",
      "SetUnitProperties kubepods-burstable.slice",
      "StopUnit kubepods-burstable-podb_1.slice",
    ]);
    expect(await cgroups.podUIDsOnDisk()).toEqual(new Map());
  });

  test("the call has every property with its type, and the parent", async () => {
    let seen: readonly string[] = [];
    const run = async (_file: string, args: readonly string[]) => {
      seen = args;
      return result();
    };
    const slices = await createSliceManager({ clock, run, isBooted: async () => true });
    await slices.start("a-b.slice", "a.slice", { memoryBytes: 5 }, async () => true);
    expect(seen.slice(5).join(" ")).toBe(
      "StartTransientUnit ssa(sv)a(sa(sv)) a-b.slice replace 8 Description s Kubernetes pods cgroup a-b.slice " +
        "Wants as 1 a.slice DefaultDependencies b false MemoryAccounting b true CPUAccounting b true " +
        "IOAccounting b true TasksAccounting b true MemoryMax t 5 0",
    );
  });

  test("a slice that is there is changed", async () => {
    const calls: (string | undefined)[] = [];
    const run = async (_file: string, args: readonly string[]) => {
      calls.push(args[5]);
      const failed = {
        code: 1,
        failure: "exit" as const,
        stderr: "Call failed: Unit a.slice was already loaded or has a fragment file.",
      };
      return args[5] === "StartTransientUnit" ? result(failed) : result();
    };
    const slices = await createSliceManager({ clock, run, isBooted: async () => true });
    await slices.start("a.slice", undefined, { pids: 3 }, async () => true);
    expect(calls).toEqual([undefined, "StartTransientUnit", "SetUnitProperties"]);
  });

  test("what is missing is said", async () => {
    await expect(createSliceManager({ clock, run: async () => result(), isBooted: async () => false })).rejects.toThrow(
      /systemd does not run here .* use cgroupfs/,
    );
    const run = async () =>
      result({ code: undefined as never, failure: "spawn", stdout: "", message: "busctl could not be started" });
    await expect(createSliceManager({ clock, run, isBooted: async () => true })).rejects.toThrow(
      /busctl could not be started.*install/,
    );
  });

  test("a slice that never comes is given up after 30 s", async () => {
    const slices = await createSliceManager({ clock, run: async () => result(), isBooted: async () => true });
    const outcome = slices.start("a.slice", undefined, {}, async () => false).catch(messageOf);
    await settle();
    await clock.advance(31_000);
    expect(await outcome).toMatch(/no cgroup 30 s/);
  });
});

function pathOfSlice(slice: string): string {
  const parts = slice.replace(/\.slice$/, "").split("-");
  return `/cg/${parts.map((_, index) => `${parts.slice(0, index + 1).join("-")}.slice`).join("/")}`;
}

describe("cgroup v1", () => {
  const line = (directory: string, type: string, options: string) =>
    `32 31 0:29 / ${directory} rw,relatime - ${type} ${type} rw,${options}`;

  test("hierarchies are found by their mounts: joint, named and hybrid ones", () => {
    const { byController, all } = parseHierarchies(
      [
        line("/sys/fs/cgroup/cpu,cpuacct", "cgroup", "cpu,cpuacct"),
        line("/sys/fs/cgroup/memory", "cgroup", "memory"),
        line("/sys/fs/cgroup/systemd", "cgroup", "name=systemd"),
        line("/sys/fs/cgroup/unified", "cgroup2", "nsdelegate"),
        line("/other/cgroup/memory", "cgroup", "memory"),
        line("/tmp", "tmpfs", "mode=755"),
      ].join("\n"),
      "/sys/fs/cgroup",
    );
    expect(Object.fromEntries(byController)).toEqual({
      cpu: "/sys/fs/cgroup/cpu,cpuacct",
      cpuacct: "/sys/fs/cgroup/cpu,cpuacct",
      memory: "/sys/fs/cgroup/memory",
    });
    expect(all).toHaveLength(4);
  });

  test("a missing controller is said at start", () => {
    const hierarchies = parseHierarchies(line("/sys/fs/cgroup/cpu", "cgroup", "cpu"), "/sys/fs/cgroup");
    expect(() => createTreeV1(hierarchies)).toThrow(/not mounted: cpuacct, cpuset, memory/);
  });
});
