import { dirname, join } from "node:path";
import { AgentError, hasCode, messageOf } from "../lib/errors.ts";
import { type CgroupFS, kernelCgroupFS, pidsBelow, removeBelow } from "./cgroup-fs.ts";
import type { CgroupTree } from "./cgroup-tree.ts";
import { type CgroupValues, type Controller, controllers, filesV2 } from "./cgroup-values.ts";

// cpuacct is part of cpu on v2.
const wantedControllers: readonly Controller[] = controllers.filter((name) => name !== "cpuacct");
// Kernels before 5.7 have no reservation accounting of huge pages.
const optionalFile = /^hugetlb\..*\.rsvd\.max$/;

/** cgroup v2 mounted at `mountPoint`. Rejects if even the list of controllers cannot be read. */
export async function createTreeV2(mountPoint: string, fs: CgroupFS = kernelCgroupFS): Promise<CgroupTree> {
  const at = (path: string, ...file: string[]) => join(mountPoint, ...(path === "/" ? [] : [path]), ...file);
  const controllersAt = async (path: string, file: "cgroup.controllers" | "cgroup.subtree_control") => {
    const names = new Set((await fs.read(at(path, file))).trim().split(/\s+/));
    return wantedControllers.filter((name) => names.has(name));
  };
  const present = new Set(await controllersAt("/", "cgroup.controllers"));

  /** Lets the children of `path` and of all its parents use the controllers, outermost first. */
  const enable = async (path: string): Promise<void> => {
    if (path !== "/") await enable(dirname(path));
    const enabled = await controllersAt(path, "cgroup.subtree_control");
    const lacking = [...present].filter((name) => !enabled.includes(name));
    if (lacking.length === 0) return;
    try {
      await fs.write(at(path, "cgroup.subtree_control"), lacking.map((name) => `+${name}`).join(" "));
    } catch (err) {
      if (!hasCode(err, "Unavailable")) throw err;
      throw new AgentError(
        "Unavailable",
        `cannot enable controllers ${lacking.join(", ")} under ${at(path)}: it has processes of its own; ` +
          "move them to a sub-cgroup, or give the agent's container its own cgroup namespace and an init that does",
        { cause: err },
      );
    }
  };

  const makeDirectory = async (path: string): Promise<void> => {
    try {
      await fs.mkdir(at(path));
    } catch (err) {
      if (hasCode(err, "NotFound") && path !== "/") {
        await makeDirectory(dirname(path));
        await makeDirectory(path);
      } else if (!hasCode(err, "AlreadyExists")) {
        throw err;
      }
    }
  };

  const write = async (path: string, values: CgroupValues): Promise<void> => {
    for (const { controller, file, content } of filesV2(values)) {
      if (!present.has(controller)) continue;
      await fs.write(at(path, file), content).catch((err: unknown) => {
        if (!(hasCode(err, "NotFound") && optionalFile.test(file))) throw err;
      });
    }
  };

  return {
    version: 2,
    controllers: present,
    checkRoot: async (path) => {
      const there = await controllersAt(path, "cgroup.controllers").catch((err: unknown) => {
        throw new AgentError("NotFound", `cgroupRoot ${path} does not exist; create it before the agent starts`, {
          cause: err,
        });
      });
      const lacking = [...present].filter((name) => !there.includes(name));
      if (lacking.length > 0) {
        throw new AgentError(
          "Unavailable",
          `cgroupRoot ${path} lacks the controllers ${lacking.join(", ")}; enable them in cgroup.subtree_control of its parent`,
        );
      }
    },
    create: async (path, values) => {
      await makeDirectory(path);
      try {
        await write(path, values);
      } catch (err) {
        // The file of a controller that the parent does not pass on is not there.
        if (!hasCode(err, "NotFound")) throw err;
        await enable(dirname(path));
        await write(path, values);
      }
    },
    write,
    exists: (path) => fs.exists(at(path)),
    children: async (path) => fs.directories(at(path)).catch(() => []),
    pids: (path) => pidsBelow(fs, at(path)),
    remove: async (path) => {
      try {
        await removeBelow(fs, at(path));
      } catch (err) {
        throw new AgentError("Unavailable", `cannot remove cgroup ${path}: ${messageOf(err)}`, { cause: err });
      }
    },
    cpus: async (path) => (await fs.read(at(path, "cpuset.cpus.effective")).catch(() => "")).trim(),
  };
}
