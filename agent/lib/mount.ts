import { readFile, realpath } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { ignoreErrno } from "./errno.ts";
import { AgentError } from "./errors.ts";
import { exec } from "./exec.ts";

/**
 * Mounts: reading the kernel's table and changing it through mount(8) and umount(8), because Node.js has no system
 * call for either. Every path handed to them is absolute and already resolved (`--no-canonicalize`), so that they
 * follow no symbolic link that appears in between.
 */

/** One line of /proc/self/mountinfo, as far as we use it. */
export interface MountEntry {
  /** Absolute path in our mount namespace. */
  mountPoint: string;
  /** Path of the mount's root inside its file system; differs from "/" for bind mounts. */
  root: string;
  /** `8:1`: the same for all mounts of one file system. */
  device: string;
  fsType: string;
  source: string;
  /** Options of the file system, the same wherever it is mounted. */
  options: readonly string[];
  /** True if mounts made beneath it reach its peers (`shared:` in the optional fields). */
  isShared: boolean;
}

const mountinfoPath = "/proc/self/mountinfo";
// A local mount takes 2 ms. One that hangs this long waits for a dead server or a sick kernel.
const mountTimeoutMs = 30_000;
// Keeps the argument list far below the kernel's limit of 128 KiB for one string and 2 MiB in all.
const pathsPerUnmountMax = 100;
// Stacked mounts and mounts on mounts go in one pass; more passes are for mounts that appear while we look.
const unmountPassesMax = 3;

/**
 * Parses mountinfo text, in mount order (what is mounted on top comes later). Malformed lines are left out.
 * @param under only mounts at this absolute path or beneath it; cheap for the lines that are not
 */
export function parseMountinfo(text: string, under?: string): MountEntry[] {
  const entries: MountEntry[] = [];
  for (const line of text.split("\n")) {
    const fields = line.split(" ");
    const [, , device, root, escapedPoint] = fields;
    if (device === undefined || root === undefined || escapedPoint === undefined) continue;
    const mountPoint = unescapeOctal(escapedPoint);
    if (under !== undefined && !isAtOrBeneath(mountPoint, under)) continue;
    const separator = fields.indexOf("-", 6);
    const [fsType, source, options = ""] = fields.slice(separator + 1);
    if (separator === -1 || fsType === undefined || source === undefined) continue;
    const isShared = fields.slice(6, separator).some((field) => field.startsWith("shared:"));
    entries.push({
      mountPoint,
      root: unescapeOctal(root),
      device,
      fsType,
      source: unescapeOctal(source),
      options: options.split(","),
      isShared,
    });
  }
  return entries;
}

/** True if `path` is `dir` or lies beneath it. Compares text: both must be absolute and resolved. */
export function isAtOrBeneath(path: string, dir: string): boolean {
  return path === dir || path.startsWith(dir.endsWith("/") ? dir : `${dir}/`);
}

/** Mounts at `dir` or beneath it, in mount order; none if `dir` does not exist. */
export async function listMountsUnder(dir: string): Promise<MountEntry[]> {
  const real = await realpath(dir).catch(ignoreErrno("ENOENT"));
  return real === undefined ? [] : parseMountinfo(await readFile(mountinfoPath, "utf8"), real);
}

/** True if something is mounted exactly at `path`, which is not looked at itself: a link there is no mount point. */
export async function isMountPoint(path: string): Promise<boolean> {
  const parent = await realpath(dirname(path)).catch(ignoreErrno("ENOENT"));
  if (parent === undefined) return false;
  const real = join(parent, basename(path));
  return (await listMountsBlindly(real)).some((entry) => entry.mountPoint === real);
}

/**
 * Mounts at `path` or beneath it, in mount order. Other than {@link listMountsUnder} it never looks at `path` itself, which
 * takes for ever where the server of a network file system is gone; only the directory that it is in is resolved.
 */
export async function listMountsBlindly(path: string): Promise<MountEntry[]> {
  const parent = await realpath(dirname(path)).catch(ignoreErrno("ENOENT"));
  if (parent === undefined) return [];
  return parseMountinfo(await readFile(mountinfoPath, "utf8"), join(parent, basename(path)));
}

/** The mount that `path` lies on. Rejects if `path` does not exist. */
export async function findMountOf(path: string): Promise<MountEntry | undefined> {
  const real = await realpath(path);
  const entries = parseMountinfo(await readFile(mountinfoPath, "utf8"));
  let best: MountEntry | undefined;
  for (const entry of entries) {
    if (!isAtOrBeneath(real, entry.mountPoint)) continue;
    if (best === undefined || entry.mountPoint.length >= best.mountPoint.length) best = entry; // later ones lie on top
  }
  return best;
}

/**
 * Mounts a new file system. Rejects with an `AgentError` that carries mount's own words.
 * @param mount.timeoutMs default 30 s
 */
export async function mountFilesystem(
  mount: { type: string; source: string; target: string; options: readonly string[]; timeoutMs?: number },
  signal?: AbortSignal,
): Promise<void> {
  const options = mount.options.length === 0 ? [] : ["-o", mount.options.join(",")];
  const args = ["--no-canonicalize", "-t", mount.type, ...options, "--", mount.source, mount.target];
  await run("mount", args, signal, mount.timeoutMs);
}

/** Makes `source` (a directory or a file, also `/proc/PID/fd/N`) visible at `target`, without what is mounted beneath it. */
export async function bindMount(source: string, target: string, signal?: AbortSignal): Promise<void> {
  await run("mount", ["--no-canonicalize", "--bind", source, target], signal);
}

/** Gives the bind mount at `target` options of its own, such as `ro`: when it is made it has those of its source. */
export async function remountBind(target: string, options: readonly string[], signal?: AbortSignal): Promise<void> {
  await run("mount", ["--no-canonicalize", "-o", ["remount", "bind", ...options].join(","), "--", target], signal);
}

/** Makes the mount at `path` and all beneath it shared: mounts made there reach the containers that were given it, and back. */
export async function makeRShared(path: string): Promise<void> {
  await run("mount", ["--make-rshared", path]);
}

/**
 * Unmounts everything at `dir` and beneath it, the topmost first. Nothing mounted is success. Never lazily: a mount that
 * is busy stays visible and makes this reject, so that nobody deletes what still lies beneath it.
 * @param dir a link in its place leads nowhere
 * @param accept only mounts for which this is true; all when absent
 */
export async function unmountAllUnder(dir: string, accept: (entry: MountEntry) => boolean = () => true): Promise<void> {
  const parent = await realpath(dirname(dir)).catch(ignoreErrno("ENOENT"));
  if (parent === undefined) return;
  const real = join(parent, basename(dir));
  const present = async () =>
    parseMountinfo(await readFile(mountinfoPath, "utf8"), real)
      .filter(accept)
      .map((entry) => entry.mountPoint);
  let why = "";
  let isRefused = false;
  for (let pass = 0; pass < unmountPassesMax; pass += 1) {
    const paths = await present();
    if (paths.length === 0) return;
    paths.reverse();
    for (let at = 0; at < paths.length; at += pathsPerUnmountMax) {
      const batch = paths.slice(at, at + pathsPerUnmountMax);
      const result = await exec("umount", ["--no-canonicalize", "--", ...batch], { timeoutMs: mountTimeoutMs });
      if (result.failure === undefined) continue;
      why = result.message;
      isRefused = result.failure === "exit";
    }
  }
  const left = await present();
  const [first] = left;
  if (first === undefined) return;
  // Whatever umount's words in this machine's language: as good as always somebody has a file open there.
  const hint = isRefused ? ` (fuser -vm ${first} shows who uses it)` : "";
  throw new AgentError("Internal", `cannot unmount ${left.join(", ")}: ${why}${hint}`);
}

/**
 * Unmounts what is mounted at `path` and beneath it although its server may be gone: whatever takes longer than `patienceMs`
 * is unmounted by force, which ends what waits for the server. Nothing mounted is success; never lazily, as above.
 */
export async function unmountOrForce(path: string, patienceMs: number): Promise<void> {
  let why = "";
  for (const { mountPoint } of (await listMountsBlindly(path)).toReversed()) {
    for (const force of [[], ["--force"]]) {
      const args = [...force, "--no-canonicalize", "--", mountPoint];
      const result = await exec("umount", args, { timeoutMs: patienceMs });
      why = result.message;
      if (result.failure !== "timeout") break;
    }
  }
  const left = (await listMountsBlindly(path)).map(({ mountPoint }) => mountPoint);
  if (left.length > 0) throw new AgentError("Internal", `cannot unmount ${left.join(", ")}: ${why}`);
}

async function run(
  file: string,
  args: readonly string[],
  signal?: AbortSignal,
  timeoutMs: number = mountTimeoutMs,
): Promise<void> {
  const result = await exec(file, args, { timeoutMs, ...(signal === undefined ? {} : { signal }) });
  if (result.failure === undefined) return;
  throw new AgentError(result.failure === "canceled" ? "Canceled" : "Internal", result.message);
}

/** The kernel writes blank, tab, newline and backslash in paths as `\ooo`. */
function unescapeOctal(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 8)));
}
