import { readFile, statfs } from "node:fs/promises";
import { AgentError } from "../lib/errors.ts";
import { isThere } from "../lib/is-there.ts";
import type { CgroupTree } from "./cgroup-tree.ts";
import { createTreeV1, parseHierarchies } from "./cgroup-v1.ts";
import { createTreeV2 } from "./cgroup-v2.ts";

const cgroupMountPoint = "/sys/fs/cgroup";
// statfs type of cgroup2fs (linux/magic.h).
const cgroup2Magic = 0x63677270;

/**
 * Finds out what the kernel has mounted at /sys/fs/cgroup.
 * Rejects with Unavailable when there is nothing usable, or with Forbidden when it is read-only.
 */
export async function detectCgroupTree(): Promise<CgroupTree> {
  const filesystem = await statfs(cgroupMountPoint).catch((err: unknown) => {
    throw new AgentError("Unavailable", `no cgroups: ${cgroupMountPoint} cannot be read; mount cgroup2 there`, {
      cause: err,
    });
  });
  if (filesystem.type === cgroup2Magic) return createTreeV2(cgroupMountPoint);
  return createTreeV1(parseHierarchies(await readFile("/proc/self/mountinfo", "utf8"), cgroupMountPoint));
}

/** True if the kernel accounts swap per cgroup. On v2 the root has no such file, so our own cgroup is asked. */
export async function isSwapControllerAvailable(version: 1 | 2): Promise<boolean> {
  if (version === 1) return isThere(`${cgroupMountPoint}/memory/memory.memsw.limit_in_bytes`);
  const own = /^0::(\/.*)$/m.exec(await readFile("/proc/self/cgroup", "utf8"))?.[1] ?? "/";
  return isThere(`${cgroupMountPoint}${own}/memory.swap.max`);
}
