import { lstat, readdir, readFile, stat, statfs } from "node:fs/promises";
import { join } from "node:path";
import { AgentError } from "../lib/errors.ts";

/** A whole filesystem. Bytes and inodes. */
export interface FilesystemFigures {
  capacityBytes: number;
  availableBytes: number;
  usedBytes: number;
  inodes: number;
  inodesFree: number;
}

/** What files take on a disk. */
export interface DiskUsage {
  bytes: number;
  inodes: number;
}

// stat(2)'s st_blocks counts these, whatever the filesystem's own block size.
export const statBlockBytes = 512;

/** Rejects if the filesystem that holds `path` cannot be asked. */
export async function filesystemOf(path: string): Promise<FilesystemFigures> {
  const { bsize, blocks, bfree, bavail, files, ffree } = await statfs(path);
  return {
    capacityBytes: blocks * bsize,
    availableBytes: bavail * bsize,
    usedBytes: (blocks - bfree) * bsize,
    inodes: files,
    inodesFree: ffree,
  };
}

/**
 * Size of a block device, or of a file in its place, in bytes. Links are followed.
 * Rejects if it is not there, or neither of the two.
 */
export async function blockBytes(path: string): Promise<number> {
  const status = await stat(path, { bigint: true });
  if (status.isFile()) return Number(status.size);
  if (!status.isBlockDevice()) throw new AgentError("Invalid", `${path} is no block device`);
  const size = await readFile(`/sys/dev/block/${deviceNumbers(status.rdev)}/size`, "utf8");
  return Number(size) * sectorBytes;
}

// The kernel counts a device in these, whatever its own.
const sectorBytes = 512;

/** "8:1" for the device number that stat(2) gives; see makedev(3). */
export function deviceNumbers(rdev: bigint): string {
  const major = ((rdev >> 8n) & 0xfffn) | ((rdev >> 32n) & 0xfffff000n);
  const minor = (rdev & 0xffn) | ((rdev >> 12n) & 0xffffff00n);
  return `${major}:${minor}`;
}

/** The regular files directly in a directory; hard links count once. A directory that is not there has none. */
export async function filesDirectlyIn(directory: string): Promise<DiskUsage> {
  const usage = { bytes: 0, inodes: 0 };
  const links = new Set<string>();
  const entries = await readdir(directory, { withFileTypes: true }).catch(() => []);
  for (const entry of entries) {
    if (entry.isFile()) await addFile(join(directory, entry.name), usage, links);
  }
  return usage;
}

/** One file; not there: nothing. */
export async function fileUsage(path: string): Promise<DiskUsage> {
  const usage = { bytes: 0, inodes: 0 };
  await addFile(path, usage, new Set());
  return usage;
}

async function addFile(path: string, usage: DiskUsage, links: Set<string>): Promise<void> {
  const status = await lstat(path).catch(() => undefined);
  if (status?.isFile() !== true) return;
  if (status.nlink > 1) {
    const inode = `${status.dev}:${status.ino}`;
    if (links.has(inode)) return;
    links.add(inode);
  }
  usage.bytes += status.blocks * statBlockBytes;
  usage.inodes += 1;
}
