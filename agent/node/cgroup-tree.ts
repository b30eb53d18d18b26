import type { CgroupValues, Controller } from "./cgroup-values.ts";

/**
 * The kernel's cgroups, v1 and v2 alike. Paths are absolute below the visible root ("/" is where the hierarchies are
 * mounted, which may itself be somebody's sub-cgroup). Rejections are `AgentError`s that name directory and remedy.
 */
export interface CgroupTree {
  readonly version: 1 | 2;
  /** Controllers whose limits can be set. */
  readonly controllers: ReadonlySet<Controller>;
  /** Rejects if pods cannot live under `path`: it is not there or lacks a controller. */
  checkRoot(path: string): Promise<void>;
  /** Makes the cgroup, with its parents, and writes `values`. May be called again. */
  create(path: string, values: CgroupValues): Promise<void>;
  /** Writes limits of an existing cgroup. Controllers that are not there are left out. */
  write(path: string, values: CgroupValues): Promise<void>;
  /** True if the cgroup exists wherever it is needed. */
  exists(path: string): Promise<boolean>;
  /** Names of the cgroups directly under `path`, in any hierarchy. */
  children(path: string): Promise<string[]>;
  /** Processes in the cgroup and below it. */
  pids(path: string): Promise<number[]>;
  /** Removes the cgroup and those below it. Not there: success. Rejects with Unavailable while processes are in it. */
  remove(path: string): Promise<void>;
  /** The CPUs that cgroups under `path` may use, as a kernel list. */
  cpus(path: string): Promise<string>;
}
