import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { cgroupDir, type CgroupMounts } from "./cgroup-mounts.ts";
import { cgroupNameOf } from "./inventory.ts";

/** Finds the cgroups of containers and remembers them: a container keeps its cgroup for life. */
export interface CgroupPlaces {
  /**
   * Paths by ID of the containers in one pod's cgroup. Those that have none are left out: the runtime is still making it,
   * or puts it elsewhere.
   */
  find(podCgroup: string, ids: readonly string[]): Promise<Map<string, string>>;
  /** Forgets all IDs but these. */
  keep(ids: ReadonlySet<string>): void;
}

export function createCgroupPlaces(mounts: CgroupMounts): CgroupPlaces {
  const known = new Map<string, string>();
  return {
    find: async (podCgroup, ids) => {
      const unknown = ids.filter((id) => !known.has(id));
      if (unknown.length > 0) {
        const names = await subdirectories(cgroupDir(mounts, "memory", podCgroup));
        for (const id of unknown) {
          const name = cgroupNameOf(id, names);
          if (name !== undefined) known.set(id, join(podCgroup, name));
        }
      }
      return new Map(
        ids.flatMap((id) => {
          const path = known.get(id);
          return path === undefined ? [] : [[id, path] as const];
        }),
      );
    },
    keep: (ids) => {
      for (const id of known.keys()) if (!ids.has(id)) known.delete(id);
    },
  };
}

async function subdirectories(directory: string | undefined): Promise<string[]> {
  if (directory === undefined) return [];
  const entries = await readdir(directory, { withFileTypes: true }).catch(() => []);
  return entries.filter((entry) => entry.isDirectory()).map(({ name }) => name);
}
