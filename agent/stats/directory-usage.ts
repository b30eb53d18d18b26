import { constants, type Dir, type Stats } from "node:fs";
import { type FileHandle, lstat, open, opendir } from "node:fs/promises";
import { errnoOf } from "../lib/errno.ts";
import { type DiskUsage, statBlockBytes } from "./filesystem.ts";
import { forEachLimited } from "./read.ts";

// Each level of a tree holds two descriptors while what is below is read. What lies deeper is not counted.
export const depthMax = 512;
// Hard links are remembered, so that a file counts once; past this many, further ones may count again.
export const linksMax = 100_000;
// Files of one directory that are looked at together.
const concurrency = 8;
// Entries of one directory that are read together.
const batchEntries = 256;
// Entries between two rests: some 20 ms of work.
export const restEntries = 1_024;

// A container may swap a directory for a link to the host's files at any moment: each step goes through the descriptor of
// the directory above and refuses links.
const directoryFlags = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW;

/**
 * Space and inodes of everything in a directory, itself included, as `du -x` counts: blocks, hard links once, no links
 * followed, no other filesystem entered. What vanishes meanwhile is left out.
 *
 * @param directory its parents must not be changeable by a container
 * @param rest called, and waited for, after each {@link restEntries} entries, so that a huge tree leaves others their share
 * Rejects if the directory itself cannot be opened, and with the signal's reason when it aborts.
 */
export async function directoryUsage(
  directory: string,
  signal: AbortSignal,
  rest: () => Promise<void> = async () => {},
): Promise<DiskUsage> {
  const usage = { bytes: 0, inodes: 0 };
  const links = new Set<string>();
  const handle = await open(directory, directoryFlags);
  try {
    const status = await handle.stat();
    add(status, usage, links);
    await addBelow(handle, { device: status.dev, usage, links, signal, rest, untilRest: restEntries }, 1);
  } finally {
    await handle.close();
  }
  return usage;
}

interface Walk {
  device: number;
  usage: DiskUsage;
  links: Set<string>;
  signal: AbortSignal;
  rest(): Promise<void>;
  untilRest: number;
}

async function addBelow(directory: FileHandle, walk: Walk, depth: number): Promise<void> {
  const path = `/proc/self/fd/${directory.fd}`;
  const stream = await ifThere(opendir(path, { bufferSize: batchEntries }));
  if (stream === undefined) return;
  try {
    for (;;) {
      const batch = await nextBatch(stream);
      walk.signal.throwIfAborted();
      if (batch.length === 0) return;
      walk.untilRest -= batch.length;
      if (walk.untilRest <= 0) {
        walk.untilRest = restEntries;
        await walk.rest();
      }
      const subdirectories = await addEntries(path, batch, walk);
      if (depth >= depthMax) continue;
      for (const name of subdirectories) await enter(`${path}/${name}`, walk, depth + 1);
    }
  } finally {
    await stream.close();
  }
}

/** A directory may have a million entries: they are never all in memory. */
async function nextBatch(stream: Dir): Promise<string[]> {
  const names: string[] = [];
  while (names.length < batchEntries) {
    const entry = await stream.read();
    if (entry === null) break;
    names.push(entry.name);
  }
  return names;
}

/** @returns the directories among them */
async function addEntries(path: string, names: readonly string[], walk: Walk): Promise<string[]> {
  const subdirectories: string[] = [];
  await forEachLimited(names, concurrency, async (name) => {
    const status = await ifThere(lstat(`${path}/${name}`));
    if (status === undefined || status.dev !== walk.device) return;
    add(status, walk.usage, walk.links);
    if (status.isDirectory()) subdirectories.push(name);
  });
  return subdirectories;
}

async function enter(path: string, walk: Walk, depth: number): Promise<void> {
  const handle = await ifThere(open(path, directoryFlags));
  if (handle === undefined) return;
  try {
    // Something may have been mounted or moved there since it was looked at.
    if ((await handle.stat()).dev === walk.device) await addBelow(handle, walk, depth);
  } finally {
    await handle.close();
  }
}

function add(status: Stats, usage: DiskUsage, links: Set<string>): void {
  if (status.nlink > 1 && !status.isDirectory()) {
    const inode = String(status.ino);
    if (links.has(inode)) return;
    if (links.size < linksMax) links.add(inode);
  }
  usage.bytes += status.blocks * statBlockBytes;
  usage.inodes += 1;
}

/** Containers make and remove files while we look: neither that nor a link in a directory's place is a failure. */
async function ifThere<T>(look: Promise<T>): Promise<T | undefined> {
  try {
    return await look;
  } catch (err) {
    if (["ENOENT", "ENOTDIR", "ELOOP", "EACCES"].includes(errnoOf(err) ?? "")) return undefined;
    throw err;
  }
}
