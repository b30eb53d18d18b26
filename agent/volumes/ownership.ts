import type { Stats } from "node:fs";
import { chmod, lchown, lstat, readdir } from "node:fs/promises";
import { join } from "node:path";

// Bits that an fsGroup volume gets: the group may read (and write, unless the volume is read-only) files; directories
// can be listed and entered, and hand their group down to what is made in them.
const readWriteBits = 0o660;
const readOnlyBits = 0o440;
const directoryBits = 0o2110;

/** Mode of a volume's entry once it belongs to the fsGroup. Pure; `mode` as in `stat`, the result are permission bits. */
export function fsGroupMode(mode: number, isDirectory: boolean, isReadOnly: boolean): number {
  return (mode & 0o7777) | (isReadOnly ? readOnlyBits : readWriteBits) | (isDirectory ? directoryBits : 0);
}

/**
 * Gives `dir` and all that is in it to the group, the contents before their directory. Links are given away themselves,
 * never followed. To be used while no container can write there: between look and change a writer could swap in a link.
 */
export async function applyFSGroup(dir: string, fsGroup: number, options: { isReadOnly: boolean }): Promise<void> {
  await walk(dir, await lstat(dir), fsGroup, options.isReadOnly);
}

async function walk(path: string, stat: Stats, fsGroup: number, isReadOnly: boolean): Promise<void> {
  if (stat.isDirectory()) {
    for (const name of await readdir(path)) {
      const child = join(path, name);
      await walk(child, await lstat(child), fsGroup, isReadOnly);
    }
  }
  await lchown(path, -1, fsGroup);
  if (!stat.isSymbolicLink()) await chmod(path, fsGroupMode(stat.mode, stat.isDirectory(), isReadOnly));
}
