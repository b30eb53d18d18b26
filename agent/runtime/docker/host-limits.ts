import { access, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { errnoOf, ignoreErrno } from "../../lib/errno.ts";
import { AgentError, messageOf } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import { parseMountinfo } from "../../lib/mount.ts";
import type { ContextOfDaemon } from "./create-body.ts";
import type { CgroupWrite } from "./resources.ts";

/** What Docker leaves to the node: files of the container's cgroup, and what there is to know of the node's kernel. */

/** What of this node's kernel decides about containers. Read it once: it does not change. */
export async function readKernelFacts(): Promise<Pick<ContextOfDaemon, "oomScoreAdjMin" | "hasIPv6">> {
  const [oomScoreAdjMin, hasIPv6] = await Promise.all([readOOMScoreAdjMin(), readHasIPv6()]);
  return { oomScoreAdjMin, hasIPv6 };
}

async function readHasIPv6(): Promise<boolean> {
  const found = await access("/proc/sys/net/ipv6/conf/all/disable_ipv6").then(() => true, ignoreErrno("ENOENT"));
  return found ?? false;
}

export interface WriteCgroupOptions {
  /** For messages. */
  what: string;
  /** The container's first process, as the node counts. */
  pid: number;
  version: 1 | 2;
  /** Leaves files alone that are not as the kernel makes them. */
  isOnlyUnset?: boolean;
  /** "/proc" but in tests. */
  procDir?: string;
}

/**
 * Writes files of a running container's cgroup. A container that has ended meanwhile is fine.
 * Rejects with Internal, naming the file, if a limit cannot be set; the container must not go on without it.
 */
export async function writeCgroupFiles(writes: readonly CgroupWrite[], options: WriteCgroupOptions): Promise<void> {
  if (writes.length === 0) return;
  const { what, pid, version, isOnlyUnset = false, procDir = "/proc" } = options;
  const own = await readFile(join(procDir, String(pid), "cgroup"), "utf8").catch(ignoreErrno("ENOENT", "ESRCH"));
  if (own === undefined) return;
  const mountinfo = await readFile(join(procDir, "self/mountinfo"), "utf8");
  for (const { controller, file, content, isOptional } of writes) {
    const directory = cgroupDirectory(mountinfo, own, controller, version);
    if (directory === undefined && isOptional) continue;
    try {
      if (directory === undefined) throw new Error(`cgroup controller ${controller} is not mounted`);
      if (isOnlyUnset && !isUnset(file, await readFile(join(directory, file), "utf8"))) continue;
      // r+ makes no file: what is not there the kernel does not have.
      await writeFile(join(directory, file), content, { flag: "r+" });
    } catch (err) {
      if (errnoOf(err) === "ENOENT" && (isOptional || (await hasEnded(procDir, pid)))) continue;
      throw new AgentError("Internal", `${what}: ${file} cannot be set to ${content}: ${messageOf(err)}`, {
        cause: err,
      });
    }
  }
}

// Without a limit cgroup v1 tells the largest number that fits, in whole pages, which are of a GiB at most.
const unlimitedMin = 2 ** 62;

function isUnset(file: string, content: string): boolean {
  const value = content.trim();
  if (/\.(?:min|low|group)$/.test(file)) return value === "0";
  return value === "max" || Number(value) >= unlimitedMin;
}

async function hasEnded(procDir: string, pid: number): Promise<boolean> {
  const found = await readFile(join(procDir, String(pid), "cgroup"), "utf8").catch(ignoreErrno("ENOENT", "ESRCH"));
  return found === undefined;
}

/**
 * Directory of a process's cgroup in one controller's hierarchy; undefined if that is not mounted. Pure.
 *
 * @param mountinfo the agent's /proc/self/mountinfo
 * @param own       the process's /proc/PID/cgroup
 */
export function cgroupDirectory(
  mountinfo: string,
  own: string,
  controller: string,
  version: 1 | 2,
): string | undefined {
  const path = own.split("\n").flatMap((line) => {
    const [, controllers = "", path] = /^\d+:([^:]*):(\/.*)$/.exec(line) ?? [];
    const isIt = version === 2 ? controllers === "" : controllers.split(",").includes(controller);
    return isIt && path !== undefined ? [path] : [];
  })[0];
  if (path === undefined) return undefined;
  for (const { root, mountPoint, fsType, options } of parseMountinfo(mountinfo)) {
    const isIt = version === 2 ? fsType === "cgroup2" : fsType === "cgroup" && options.includes(controller);
    if (!isIt) continue;
    // A mount of a part of the hierarchy shows what lies below that.
    if (root === "/" || path === root) return join(mountPoint, root === "/" ? path : "");
    return path.startsWith(`${root}/`) ? join(mountPoint, path.slice(root.length)) : join(mountPoint, path);
  }
  return undefined;
}

const oomScoreAdjMin = -1000;
// CAP_SYS_RESOURCE, as a bit of a process's capabilities.
const sysResourceBit = 24n;

/**
 * The lowest `oom_score_adj` that processes on this node may be given. Without CAP_SYS_RESOURCE, as inside some containers, the
 * kernel refuses any that is lower than one's own, and Docker would not start the container. The daemon is taken to be where
 * the agent is.
 *
 * @param procDir "/proc" but in tests
 */
export async function readOOMScoreAdjMin(procDir = "/proc"): Promise<number> {
  const status = await readFile(join(procDir, "self/status"), "utf8");
  const [, bits = "0"] = /^CapEff:\s*([0-9a-f]+)$/m.exec(status) ?? [];
  if ((BigInt(`0x${bits}`) >> sysResourceBit) & 1n) return oomScoreAdjMin;
  return Number(await readFile(join(procDir, "self/oom_score_adj"), "utf8"));
}

/** Says once which lower values containers will not get: what the kernel kills first when memory is short hangs on it. */
export function reportOOMScoreAdjMin(
  { oomScoreAdjMin: min }: Pick<ContextOfDaemon, "oomScoreAdjMin">,
  log: Logger,
): void {
  if (min === oomScoreAdjMin) return;
  log.warn(
    { oomScoreAdjMin: min },
    "the agent lacks CAP_SYS_RESOURCE, and the Docker daemon is taken to lack it, too: containers get no lower oom_score_adj",
  );
}
