import { randomUUID } from "node:crypto";
import { constants } from "node:fs";
import { type FileHandle, lstat, open, readFile, readlink, rename, rmdir, unlink } from "node:fs/promises";
import { dirname } from "node:path";
import { errnoOf, ignoreErrno } from "../lib/errno.ts";
import { AgentError } from "../lib/errors.ts";
import { dirFlags, entriesOf, fdPath } from "./safe-path.ts";

// Someone may add entries while we remove; a process that does so for ever must not keep us for ever.
const passesMax = 3;
// Each level keeps two descriptors open. What lies deeper is moved to the top first: a container can nest its
// directories deeper than a process may have files open.
export const depthMax = 64;
const ignoreAbsent = ignoreErrno("ENOENT");

/** One removal: its topmost directory, and the mount that all of it lies on. */
interface Tree {
  top: FileHandle;
  mountID: string;
  /** Directories that were moved to the top and wait there for a further pass. */
  lifted: number;
}

/**
 * Removes `path` and all beneath it. Follows no link, and stops at whatever something is mounted at, so that what is
 * mounted keeps its content. Goes through descriptors, so that a directory swapped for a link meanwhile leads nowhere;
 * names are bytes, they need not be valid UTF-8. Not there is success.
 */
export async function removeTree(path: string): Promise<void> {
  const stat = await lstat(path).catch(ignoreAbsent);
  if (stat === undefined) return;
  const target = Buffer.from(path);
  if (!stat.isDirectory()) return removeFile(target);
  if (await removeIfEmpty(target)) return;
  const mountID = await mountIDAt(dirname(path));
  const top = await open(target, dirFlags).catch(ignoreAbsent);
  if (top === undefined) return;
  try {
    const tree = { top, mountID, lifted: 0 };
    await refuseOtherMount(top, tree, target);
    await removeDirectory(target, top, tree, 1);
  } finally {
    await top.close();
  }
}

/** Empties an open directory and removes it by its path. */
async function removeDirectory(path: Buffer, dir: FileHandle, tree: Tree, depth: number): Promise<void> {
  for (let pass = 1; pass <= passesMax; ) {
    const liftedBefore = tree.lifted;
    await removeEntries(dir, tree, depth);
    if (await removeIfEmpty(path)) return;
    // What was moved up here is work that gets less; only what others add does not.
    if (tree.lifted === liftedBefore) pass += 1;
  }
  throw new AgentError("Internal", `cannot delete ${await readable(path)}: somebody keeps writing to it`);
}

async function removeEntries(dir: FileHandle, tree: Tree, depth: number): Promise<void> {
  for await (const { path, isDirectory } of entriesOf(dir)) {
    if (!isDirectory) await removeFile(path);
    else if (!(await removeIfEmpty(path))) await removeFullDirectory(path, tree, depth + 1);
  }
}

async function removeFullDirectory(path: Buffer, tree: Tree, depth: number): Promise<void> {
  if (depth > depthMax) {
    await rename(path, `${fdPath(tree.top)}/${randomUUID()}`);
    tree.lifted += 1;
    return;
  }
  const dir = await open(path, dirFlags).catch(ignoreAbsent);
  if (dir === undefined) return;
  try {
    await refuseOtherMount(dir, tree, path);
    await removeDirectory(path, dir, tree, depth);
  } finally {
    await dir.close();
  }
}

async function removeFile(path: Buffer): Promise<void> {
  await unlink(path).catch(async (err: unknown) => {
    if (errnoOf(err) === "ENOENT") return;
    if (errnoOf(err) === "EBUSY") throw await mountedThere(path, err);
    throw err;
  });
}

/**
 * Most directories are empty, and the kernel says whether one is a mount point before anybody looks inside.
 * @returns false if there is something in it
 */
async function removeIfEmpty(path: Buffer): Promise<boolean> {
  try {
    await rmdir(path);
    return true;
  } catch (err) {
    const code = errnoOf(err);
    if (code === "ENOENT") return true;
    if (code === "ENOTEMPTY") return false;
    if (code === "EBUSY") throw await mountedThere(path, err);
    throw err;
  }
}

/** Paths through descriptors tell nobody anything. */
async function readable(path: Buffer): Promise<string> {
  const [, fd = "", name = ""] = /^(\/proc\/self\/fd\/\d+)\/(.*)$/s.exec(path.toString()) ?? [];
  return fd === "" ? path.toString() : `${await readlink(fd)}/${name}`;
}

async function mountedThere(path: Buffer, cause: unknown): Promise<AgentError> {
  return new AgentError("Internal", `will not delete ${await readable(path)}: something is mounted there`, { cause });
}

/** Something may have been mounted between two steps. A bind mount of the same file system shows only here. */
async function refuseOtherMount(dir: FileHandle, { mountID }: Tree, path: Buffer): Promise<void> {
  if ((await mountIDOf(dir)) !== mountID) throw await mountedThere(path, undefined);
}

async function mountIDAt(path: string): Promise<string> {
  const dir = await open(path, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    return await mountIDOf(dir);
  } finally {
    await dir.close();
  }
}

async function mountIDOf({ fd }: FileHandle): Promise<string> {
  const info = await readFile(`/proc/self/fdinfo/${fd}`, "utf8");
  return /^mnt_id:\s*(\d+)$/m.exec(info)?.[1] ?? "";
}
