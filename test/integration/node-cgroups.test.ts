import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { access, mkdir, readFile, rmdir, statfs, writeFile } from "node:fs/promises";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { systemClock } from "../../agent/lib/clock.ts";
import { silentLogger } from "../../agent/lib/log.ts";
import { detectCgroupTree } from "../../agent/node/cgroup-detect.ts";
import { kernelCgroupFS } from "../../agent/node/cgroup-fs.ts";
import type { CgroupTree } from "../../agent/node/cgroup-tree.ts";
import { type CgroupOptions, createCgroups, type PodCgroups } from "../../agent/node/cgroups.ts";
import { createSliceManager } from "../../agent/node/systemd.ts";
import type { Pod } from "../../agent/kube/types.ts";
import { container, pod } from "../unit/node/pods.ts";

// Everything here happens below a cgroup of this test's own, which goes away with it.
const root = `/nodelet-test-${process.pid}`;
const base = "/sys/fs/cgroup";
const cgroup2Magic = 0x63677270;
const isV1 = (await statfs(base)).type !== cgroup2Magic;
const isRoot = process.getuid?.() === 0;

const options: CgroupOptions = {
  driver: "cgroupfs",
  cgroupRoot: root,
  cgroupsPerQOS: true,
  cpuCFSQuota: true,
  cpuPeriodUs: 100_000,
  podPidsLimit: 64,
  hugePageSizes: [],
  capacity: { cpu: 2_000, memory: 1 << 30 },
  enforcedReserved: {},
  pidsMax: 1_000,
};
const both = { cpu: "500m", memory: "64Mi" };
const guaranteed = pod([container("a", both, both)], {}, { uid: "11111111-0000-0000-0000-000000000001" });
const burstable = pod([container("a", { cpu: "250m" })], {}, { uid: "11111111-0000-0000-0000-000000000002" });
const bestEffort = pod([container("a")], {}, { uid: "11111111-0000-0000-0000-000000000003" });

const isThere = (path: string) =>
  access(path).then(
    () => true,
    () => false,
  );
const hasSystemd = await isThere("/run/systemd/system");

describe.skipIf(!isV1 || !isRoot)("cgroup v1 of this machine", () => {
  let tree: CgroupTree;
  let cgroups: PodCgroups;
  const children: ChildProcess[] = [];
  const controllers = ["cpu", "cpuacct", "cpuset", "memory", "pids"];
  const read = async (controller: string, path: string, file: string) =>
    (await readFile(`${base}/${controller}${root}${path}/${file}`, "utf8")).trim();
  beforeEach(async () => {
    tree = await detectCgroupTree();
    await tree.create(root, {});
    cgroups = createCgroups(options, { tree, clock: systemClock, log: silentLogger });
  });

  afterEach(async () => {
    for (const child of children.splice(0)) {
      if (child.exitCode === null && child.signalCode === null) {
        child.kill("SIGKILL");
        await once(child, "exit");
      }
    }
    await tree.remove(root);
  });

  /** A process that sleeps inside the pod's cgroup, in every controller's hierarchy. */
  async function startIn(of: Pod): Promise<ChildProcess> {
    const child = spawn("sleep", ["60"], { stdio: "ignore" });
    children.push(child);
    await once(child, "spawn");
    for (const controller of controllers) {
      await writeFile(`${base}/${controller}${cgroups.parentFor(of)}/cgroup.procs`, String(child.pid));
    }
    return child;
  }

  test("a pod's cgroup is made where the runtime will look for it, with its limits", async () => {
    await cgroups.setUp();
    await cgroups.ensure(guaranteed);
    const path = `/kubepods/pod${guaranteed.metadata.uid}`;
    expect(cgroups.parentFor(guaranteed)).toBe(`${root}${path}`);
    expect(await read("cpu", path, "cpu.shares")).toBe("512");
    expect(await read("cpu", path, "cpu.cfs_quota_us")).toBe("50000");
    expect(await read("memory", path, "memory.limit_in_bytes")).toBe(String(64 << 20));
    expect(await read("pids", path, "pids.max")).toBe("64");
    expect(await cgroups.exists(guaranteed)).toBe(true);
  });

  test("a process may enter at once: the cpuset is not empty at any level", async () => {
    await cgroups.setUp();
    await cgroups.ensure(burstable);
    expect(await read("cpuset", "/kubepods/burstable", "cpuset.cpus")).not.toBe("");
    await expect(startIn(burstable)).resolves.toBeDefined();
  });

  test("the classes weigh what their pods asked for", async () => {
    await cgroups.setUp();
    expect(await read("cpu", "/kubepods", "cpu.shares")).toBe("2048");
    expect(await read("memory", "/kubepods", "memory.limit_in_bytes")).toBe(String(1 << 30));
    expect(await read("cpu", "/kubepods/burstable", "cpu.shares")).toBe("2");
    await cgroups.ensure(burstable);
    await cgroups.ensure(bestEffort);
    expect(await read("cpu", "/kubepods/burstable", "cpu.shares")).toBe("256");
    expect(await read("cpu", "/kubepods/besteffort", "cpu.shares")).toBe("2");
    await cgroups.refreshQOS([]);
    expect(await read("cpu", "/kubepods/burstable", "cpu.shares")).toBe("2");
  });

  test("setting up and ensuring again changes nothing", async () => {
    for (let i = 0; i < 2; i += 1) {
      await cgroups.setUp();
      await cgroups.ensure(guaranteed);
    }
    expect(await cgroups.podUIDsOnDisk()).toEqual(new Map([[guaranteed.metadata.uid, "Guaranteed"]]));
  });

  test("destroying kills what is left and removes the pod from every hierarchy, also those of the runtime", async () => {
    await cgroups.setUp();
    for (const of of [guaranteed, burstable, bestEffort]) await cgroups.ensure(of);
    // What runc leaves behind after its containers: parents in hierarchies that we do not use.
    const left = `${base}/devices${cgroups.parentFor(burstable)}/container`;
    await mkdir(left, { recursive: true });
    const child = await startIn(burstable);
    const exited = once(child, "exit");
    await cgroups.destroy(burstable.metadata.uid ?? "");
    expect((await exited)[1]).toBe("SIGKILL");
    expect(await isThere(left)).toBe(false);
    expect(await cgroups.exists(burstable)).toBe(false);
    expect([...(await cgroups.podUIDsOnDisk()).keys()].sort()).toEqual([
      guaranteed.metadata.uid,
      bestEffort.metadata.uid,
    ]);
    await expect(cgroups.destroy(burstable.metadata.uid ?? "")).resolves.toBeUndefined();
  });

  test("what a killed agent left half-made is completed", async () => {
    await cgroups.setUp();
    await tree.create(cgroups.parentFor(guaranteed), {}); // directories, no limits yet
    await cgroups.ensure(guaranteed);
    expect(await read("cpu", `/kubepods/pod${guaranteed.metadata.uid}`, "cpu.shares")).toBe("512");
    await cgroups.ensure(burstable);
    await rmdir(`${base}/memory${cgroups.parentFor(burstable)}`);
    expect(await cgroups.exists(burstable)).toBe(false);
    await cgroups.ensure(burstable);
    expect(await cgroups.exists(burstable)).toBe(true);
  });

  test("limits of a pod that has started are left alone", async () => {
    await cgroups.setUp();
    await cgroups.ensure(guaranteed);
    const path = cgroups.parentFor(guaranteed);
    await tree.create(`${path}/container`, {});
    await tree.write(path, { cpuShares: 600 });
    await cgroups.ensure(guaranteed);
    expect(await read("cpu", `/kubepods/pod${guaranteed.metadata.uid}`, "cpu.shares")).toBe("600");
  });

  test("a place where no cgroup can be made is said with what to do", async () => {
    await expect(kernelCgroupFS.mkdir("/sys/fs/nodelet-test")).rejects.toThrow(
      /cannot create cgroup .*needs root and a writable/,
    );
  });

  test("a root that is not there is said at start", async () => {
    const lost = createCgroups(
      { ...options, cgroupRoot: `${root}-lost` },
      { tree, clock: systemClock, log: silentLogger },
    );
    await expect(lost.setUp()).rejects.toThrow(/cgroupRoot \/nodelet-test-\d+-lost does not exist/);
  });

  test("a pod's cgroup costs a few milliseconds", async () => {
    await cgroups.setUp();
    const rounds = 20;
    const startedAt = performance.now();
    for (let i = 0; i < rounds; i += 1) {
      await cgroups.ensure(
        pod([container("a", both, both)], {}, { uid: `22222222-0000-0000-0000-0000000000${10 + i}` }),
      );
    }
    expect((performance.now() - startedAt) / rounds).toBeLessThan(250); // about 1 ms on an idle machine
  });

  test.skipIf(hasSystemd)("the systemd driver says that there is no systemd", async () => {
    await expect(createSliceManager({ clock: systemClock })).rejects.toThrow(/systemd does not run here/);
  });
});
