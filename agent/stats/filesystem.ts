import { lstat, readdir, readFile, readlink, statfs } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
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

const sysBlock = "/sys/class/block";
// The kernel counts a device in these, whatever its own.
const sectorBytes = 512;

/**
 * Size in bytes of the block device that a link leads to, by the device's name: the device itself, which may be dead, is not looked at.
 * Rejects if the link or the device is not there, with code Invalid if the link leads elsewhere.
 */
export async function blockBytes(link: string, sysDir = sysBlock): Promise<number> {
  const device = await readlink(link);
  if (!device.startsWith("/dev/")) throw new AgentError("Invalid", `${link} leads to ${device}, which is no device`);
  // Where a name has a slash the kernel writes this instead.
  const name = device.slice("/dev/".length).replaceAll("/", "!");
  return Number(await readFile(join(sysDir, name, "size"), "utf8")) * sectorBytes;
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

// Where Docker keeps a container's log, with what it rotated beside it.
const dockerLogSuffix = "-json.log";

/**
 * Logs of one container in its log directory, rotated ones too. Docker's lie elsewhere, behind a link: they are the
 * container's all the same.
 */
export async function logsIn(directory: string): Promise<DiskUsage> {
  const usage = await filesDirectlyIn(directory);
  const links = new Set<string>();
  for (const entry of await readdir(directory, { withFileTypes: true }).catch(() => [])) {
    if (!entry.isSymbolicLink()) continue;
    const target = await readlink(join(directory, entry.name)).catch(() => "");
    if (!target.endsWith(dockerLogSuffix)) continue;
    const [home, base] = [dirname(target), basename(target)];
    for (const name of await readdir(home).catch(() => [])) {
      if (name === base || name.startsWith(`${base}.`)) await addFile(join(home, name), usage, links);
    }
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
