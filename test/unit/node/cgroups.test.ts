import { beforeEach, describe, expect, test } from "vitest";
import { silentLogger } from "../../../agent/lib/log.ts";
import { AgentError, messageOf } from "../../../agent/lib/errors.ts";
import { parseHierarchies, createTreeV1 } from "../../../agent/node/cgroup-v1.ts";
import { createTreeV2 } from "../../../agent/node/cgroup-v2.ts";
import { type CgroupOptions, createCgroups, type PodCgroups } from "../../../agent/node/cgroups.ts";
import { type DBus, type DBusCall, DBusError } from "../../../agent/node/dbus.ts";
import { type DBusValue, textOf, Variant } from "../../../agent/node/dbus-wire.ts";
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

  test("a pod's limits change one by one, and the Burstable class weighs it anew", async () => {
    await cgroups.setUp();
    await cgroups.ensure(guaranteed);
    expect(cgroups.limitsOf(guaranteed)).toEqual({
      cpuShares: 512,
      cpuQuotaUs: 50_000,
      cpuPeriodUs: 100_000,
      memoryBytes: 64 << 20,
    });
    await cgroups.setLimits(guaranteed, { memoryBytes: 128 << 20 });
    expect(kernel.file("/cg/kubepods/podg-1/memory.max")).toBe(String(128 << 20));
    expect(kernel.file("/cg/kubepods/podg-1/cpu.max")).toBe("50000 100000");
    await cgroups.ensure(burstable);
    const grown = pod([container("a", { cpu: "500m" })], {}, { uid: "b-1" });
    expect(cgroups.limitsOf(grown)).toEqual({ cpuShares: 512 });
    await cgroups.setLimits(grown, { cpuShares: 512 });
    expect(kernel.file("/cg/kubepods/burstable/podb-1/cpu.weight")).toBe("20");
    expect(kernel.file("/cg/kubepods/burstable/cpu.weight")).toBe("20");
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

  /** A systemd of version 252 that remembers its calls and answers as told. */
  class FakeBus implements DBus {
    readonly calls: DBusCall[] = [];
    readonly #onCall: (call: DBusCall) => Promise<void>;
    constructor(onCall: (call: DBusCall) => Promise<void> = async () => {}) {
      this.#onCall = onCall;
    }
    call = async (call: DBusCall): Promise<DBusValue[]> => {
      if (call.member === "Get") return [new Variant("s", "252.30-1~deb12u2")];
      this.calls.push(call);
      await this.#onCall(call);
      return [];
    };
    close = () => {};
  }
  const connectTo = (bus: DBus) =>
    createSliceManager({ clock, connectBus: async () => bus, isBooted: async () => true });

  test("a pod's slice is asked of systemd, then gets its limits and all controllers", async () => {
    const kernel = new FakeCgroup2("/cg");
    const bus = new FakeBus(async ({ member, args }) => {
      if (member === "StartTransientUnit") await kernel.mkdir(pathOfSlice(textOf(args[0]))).catch(() => {});
    });
    const tree = await createTreeV2("/cg", kernel);
    const deps = { tree, slices: await connectTo(bus), clock, log: silentLogger, kill: kernel.kill };
    const cgroups = createCgroups({ ...options, driver: "systemd" }, deps);
    await cgroups.setUp();
    await cgroups.ensure(burstable);
    const path = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podb_1.slice";
    expect(cgroups.parentFor(burstable)).toBe(path);
    expect(kernel.file(`/cg${path}/cpu.weight`)).toBe("10");
    await cgroups.destroy("b-1");
    expect(bus.calls.map(({ member, args }) => `${member} ${textOf(args[0])}`)).toEqual([
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
    const bus = new FakeBus();
    await (await connectTo(bus)).start("a-b.slice", "a.slice", { memoryBytes: 5 }, async () => true);
    expect(bus.calls[0]).toMatchObject({ destination: "org.freedesktop.systemd1", signature: "ssa(sv)a(sa(sv))" });
    expect(bus.calls[0]?.args).toEqual([
      "a-b.slice",
      "replace",
      [
        ["Description", new Variant("s", "Kubernetes pods cgroup a-b.slice")],
        ["Wants", new Variant("as", ["a.slice"])],
        ["DefaultDependencies", new Variant("b", false)],
        ["MemoryAccounting", new Variant("b", true)],
        ["CPUAccounting", new Variant("b", true)],
        ["IOAccounting", new Variant("b", true)],
        ["TasksAccounting", new Variant("b", true)],
        ["MemoryMax", new Variant("t", 5)],
      ],
      [],
    ]);
  });

  test("a slice that is there is changed, one that is gone is stopped", async () => {
    const bus = new FakeBus(async ({ member }) => {
      if (member === "StartTransientUnit") throw new DBusError("org.freedesktop.systemd1.UnitExists", "exists");
      if (member === "StopUnit") throw new DBusError("org.freedesktop.systemd1.NoSuchUnit", "not loaded");
    });
    const slices = await connectTo(bus);
    await slices.start("a.slice", undefined, { pids: 3 }, async () => true);
    await slices.stop("a.slice");
    expect(bus.calls.map(({ member }) => member)).toEqual(["StartTransientUnit", "SetUnitProperties", "StopUnit"]);
  });

  test("a bus that was restarted is connected to again", async () => {
    let connects = 0;
    const connectBus = async () => {
      connects += 1;
      const dies = connects === 1;
      return new FakeBus(async () => {
        if (dies) throw new AgentError("Unavailable", "D-Bus connection lost: closed");
      });
    };
    const slices = await createSliceManager({ clock, connectBus, isBooted: async () => true });
    await expect(slices.set("a.slice", { pids: 3 })).resolves.toBeUndefined();
    expect(connects).toBe(2);
  });

  test("what is missing or refused is said", async () => {
    await expect(createSliceManager({ clock, isBooted: async () => false })).rejects.toThrow(
      /systemd does not run here .* use cgroupfs/,
    );
    const refusing = new FakeBus(async () => {
      throw new DBusError("org.freedesktop.DBus.Error.AccessDenied", "Access denied");
    });
    const slices = await connectTo(refusing);
    await expect(slices.start("a.slice", undefined, {}, async () => true)).rejects.toThrow(
      /cannot start slice a\.slice: Access denied/,
    );
  });

  test("a slice that never comes is given up after 30 s", async () => {
    const slices = await connectTo(new FakeBus());
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
