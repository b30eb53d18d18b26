import { readFile } from "node:fs/promises";
import { type MountEntry, parseMountinfo } from "../../lib/mount.ts";

/**
 * The kernel's mount table, looked at by text alone: a driver's volume may be on a server that is gone, and whoever asks the
 * file system about it then waits for ever.
 */
export async function readMountTable(): Promise<string> {
  return await readFile("/proc/self/mountinfo", "utf8");
}

/** True if something is mounted exactly at `path`, which is absolute and resolved. Pure. */
export function isMountedAt(table: string, path: string): boolean {
  return parseMountinfo(table, path).some(({ mountPoint }) => mountPoint === path);
}

/** Where beneath `dir` the very same thing is mounted as at `path`. Pure. */
export function sameMountsUnder(table: string, path: string, dir: string): string[] {
  const own = topMountAt(table, path);
  if (own === undefined) return [];
  return parseMountinfo(table, dir)
    .filter(({ device, root }) => device === own.device && root === own.root)
    .map(({ mountPoint }) => mountPoint);
}

/** True if files at a mount point can have SELinux labels of their own. Pure. */
export function takesLabels(table: string, path: string): boolean {
  return topMountAt(table, path)?.options.includes("seclabel") === true;
}

function topMountAt(table: string, path: string): MountEntry | undefined {
  return parseMountinfo(table, path).findLast(({ mountPoint }) => mountPoint === path);
}
