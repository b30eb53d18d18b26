import { readFile } from "node:fs/promises";
import { AgentError } from "../lib/errors.ts";
import { parseMountinfo } from "../lib/mount.ts";

/** Controllers that figures are read from. On v2 all of them lie in one directory. */
export type StatsController = "cpu" | "cpuacct" | "memory" | "pids" | "blkio";

/** Where cgroups are mounted. */
export type CgroupMounts = { version: 2; root: string } | { version: 1; roots: ReadonlyMap<StatsController, string> };

const controllerNames: readonly StatsController[] = ["cpu", "cpuacct", "memory", "pids", "blkio"];

/** Finds the mounts below /sys/fs/cgroup. Rejects with Unavailable if there is nothing to read figures from. */
export async function readCgroupMounts(): Promise<CgroupMounts> {
  const mounts = parseCgroupMounts(await readFile("/proc/self/mountinfo", "utf8"), "/sys/fs/cgroup");
  if (mounts === undefined) {
    throw new AgentError("Unavailable", "no cgroups: neither cgroup2 nor cpuacct and memory are below /sys/fs/cgroup");
  }
  return mounts;
}

/** Reads /proc/self/mountinfo. Only a unified hierarchy at `mountPoint` itself is v2; beside v1 ones it is the hybrid form. */
export function parseCgroupMounts(mountinfo: string, mountPoint: string): CgroupMounts | undefined {
  const roots = new Map<StatsController, string>();
  for (const { mountPoint: directory, fsType, options } of parseMountinfo(mountinfo, mountPoint)) {
    if (fsType === "cgroup2" && directory === mountPoint) return { version: 2, root: mountPoint };
    if (fsType !== "cgroup" || directory === mountPoint) continue;
    for (const option of options) {
      const name = controllerNames.find((known) => known === option);
      if (name !== undefined && !roots.has(name)) roots.set(name, directory);
    }
  }
  return roots.has("cpuacct") && roots.has("memory") ? { version: 1, roots } : undefined;
}

/** Directory of a cgroup; undefined if v1 has not mounted the controller. */
export function cgroupDir(mounts: CgroupMounts, controller: StatsController, path: string): string | undefined {
  const root = mounts.version === 2 ? mounts.root : mounts.roots.get(controller);
  return root === undefined ? undefined : path === "/" ? root : `${root}${path}`;
}

/**
 * The cgroup of a process from its /proc/<pid>/cgroup; undefined if CPU and memory are accounted in different ones, so that
 * no single cgroup stands for it.
 */
export function parseOwnCgroup(text: string, version: 1 | 2): string | undefined {
  const paths = new Map<string, string>();
  for (const line of text.split("\n")) {
    const [, controllers, path] = /^\d+:([^:]*):(\/.*)$/.exec(line) ?? [];
    if (controllers === undefined || path === undefined) continue;
    for (const name of controllers.split(",")) paths.set(name, path);
  }
  if (version === 2) return paths.get("");
  return paths.get("cpuacct") === paths.get("memory") ? paths.get("memory") : undefined;
}
