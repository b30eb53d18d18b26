import { basename, dirname, join } from "node:path";
import { AgentError, hasCode } from "../lib/errors.ts";
import { parseMountinfo } from "../lib/mount.ts";
import { type CgroupFS, kernelCgroupFS, pidsBelow, removeBelow } from "./cgroup-fs.ts";
import type { CgroupTree } from "./cgroup-tree.ts";
import { type CgroupValues, type Controller, controllers, filesV1 } from "./cgroup-values.ts";

/** Where cgroup v1 is mounted. One directory may carry several controllers (cpu,cpuacct). */
export interface Hierarchies {
  /** Directory of each controller that we set limits with. */
  byController: ReadonlyMap<Controller, string>;
  /** Every hierarchy, also those that only the runtime uses (devices, freezer, name=systemd, the hybrid unified one). */
  all: readonly string[];
}

// Without these a pod cannot be accounted at all: kubelet refuses to start as well.
const neededControllers: readonly Controller[] = ["cpu", "cpuacct", "cpuset", "memory"];

/** Reads /proc/self/mountinfo. Mounts outside `mountPoint` are somebody else's view and left out. */
export function parseHierarchies(mountinfo: string, mountPoint: string): Hierarchies {
  const byController = new Map<Controller, string>();
  const all = new Set<string>();
  for (const { mountPoint: directory, fsType, options } of parseMountinfo(mountinfo, mountPoint)) {
    if ((fsType !== "cgroup" && fsType !== "cgroup2") || directory === mountPoint) continue;
    all.add(directory);
    for (const option of options) {
      const controller = controllers.find((name) => name === option);
      if (fsType === "cgroup" && controller !== undefined && !byController.has(controller)) {
        byController.set(controller, directory);
      }
    }
  }
  return { byController, all: [...all] };
}

/** cgroup v1 and hybrid. Rejects with Unavailable if a needed controller is not mounted. */
export function createTreeV1(hierarchies: Hierarchies, fs: CgroupFS = kernelCgroupFS): CgroupTree {
  const { byController, all } = hierarchies;
  const missing = neededControllers.filter((name) => !byController.has(name));
  if (missing.length > 0) {
    throw new AgentError(
      "Unavailable",
      `cgroup v1 controllers are not mounted: ${missing.join(", ")}; mount them below /sys/fs/cgroup`,
    );
  }
  const directories = [...new Set(byController.values())];
  const cpusetDirectory = byController.get("cpuset");

  const makeDirectory = async (root: string, path: string): Promise<void> => {
    const directory = join(root, path);
    try {
      await fs.mkdir(directory);
    } catch (err) {
      if (hasCode(err, "NotFound") && path !== "/") {
        await makeDirectory(root, dirname(path));
        await makeDirectory(root, path);
        return;
      }
      if (!hasCode(err, "AlreadyExists")) throw err;
    }
    if (root === cpusetDirectory) await inheritCpuset(directory);
  };

  /** A new cpuset is empty, and no process may enter it: it gets what its parent has. */
  const inheritCpuset = async (directory: string): Promise<void> => {
    for (const file of ["cpuset.cpus", "cpuset.mems"]) {
      if ((await fs.read(join(directory, file))).trim() !== "") continue;
      await fs.write(join(directory, file), (await fs.read(join(dirname(directory), file))).trim());
    }
  };

  const write = async (path: string, values: CgroupValues): Promise<void> => {
    for (const { controller, file, content } of filesV1(values)) {
      const root = byController.get(controller);
      if (root !== undefined) await fs.write(join(root, path, file), content);
    }
  };

  return {
    version: 1,
    controllers: new Set(byController.keys()),
    checkRoot: async (path) => {
      const there = await Promise.all(directories.map((root) => fs.exists(join(root, path))));
      const absent = directories.filter((_, index) => there[index] !== true);
      if (absent.length === 0) return;
      const where = absent.map((root) => basename(root)).join(", ");
      throw new AgentError(
        "NotFound",
        `cgroupRoot ${path} does not exist for ${where}; create it before the agent starts`,
      );
    },
    create: async (path, values) => {
      await Promise.all(directories.map((root) => makeDirectory(root, path)));
      await write(path, values);
    },
    write,
    exists: async (path) => {
      const there = await Promise.all(directories.map((root) => fs.exists(join(root, path))));
      return there.every((isThere) => isThere);
    },
    children: async (path) => {
      const lists = await Promise.all(all.map((root) => fs.directories(join(root, path)).catch(() => [])));
      return [...new Set(lists.flat())];
    },
    pids: async (path) => {
      const lists = await Promise.all(all.map((root) => pidsBelow(fs, join(root, path))));
      return [...new Set(lists.flat())];
    },
    remove: async (path) => {
      await Promise.all(all.map((root) => removeBelow(fs, join(root, path))));
    },
    cpus: async (path) => (await fs.read(join(cpusetDirectory ?? "", path, "cpuset.cpus"))).trim(),
  };
}
