import { readFile } from "node:fs/promises";
import { isAtOrBeneath } from "../../lib/mount.ts";

/**
 * The kernel's mount table, looked at by text alone: a driver's volume may be on a server that is gone, and whoever asks the
 * file system about it then waits for ever.
 */
export async function readMountTable(): Promise<string> {
  return await readFile("/proc/self/mountinfo", "utf8");
}

interface Row {
  device: string;
  root: string;
  mountPoint: string;
}

/** True if something is mounted exactly at `path`, which is absolute and resolved. Pure. */
export function isMountedAt(table: string, path: string): boolean {
  return rowsOf(table).some(({ mountPoint }) => mountPoint === path);
}

/** Where beneath `dir` the very same thing is mounted as at `path`. Pure. */
export function sameMountsUnder(table: string, path: string, dir: string): string[] {
  const rows = rowsOf(table);
  const own = rows.findLast(({ mountPoint }) => mountPoint === path);
  if (own === undefined) return [];
  return rows
    .filter(({ device, root }) => device === own.device && root === own.root)
    .map(({ mountPoint }) => mountPoint)
    .filter((mountPoint) => isAtOrBeneath(mountPoint, dir));
}

/** True if files at a mount point can have SELinux labels of their own. Pure. */
export function takesLabels(table: string, path: string): boolean {
  const lines = table.split("\n").filter((line) => unescape(line.split(" ")[4] ?? "") === path);
  const options = lines.at(-1)?.split(" ").at(-1) ?? "";
  return options.split(",").includes("seclabel");
}

function rowsOf(table: string): Row[] {
  return table.split("\n").flatMap((line) => {
    const [, , device, root, mountPoint] = line.split(" ");
    if (device === undefined || root === undefined || mountPoint === undefined) return [];
    return [{ device, root: unescape(root), mountPoint: unescape(mountPoint) }];
  });
}

/** The kernel writes blank, tab, newline and backslash in paths as `\ooo`. */
function unescape(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 8)));
}
