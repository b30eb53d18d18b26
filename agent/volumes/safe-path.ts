import { constants, type Stats } from "node:fs";
import * as nodeFS from "node:fs/promises";
import { type FileHandle, lstat, open, opendir, realpath } from "node:fs/promises";
import { join, relative } from "node:path";
import { errnoOf } from "../lib/errno.ts";
import { AgentError, messageOf } from "../lib/errors.ts";
import { isAtOrBeneath } from "../lib/mount.ts";

/**
 * Walking by descriptor inside what containers can write to at the same moment. A container may swap any directory for a
 * link to the host's files between two of our steps. A handle stays what it was when it was opened, and
 * `fdPath(handle)/name` is a path of which only the last part is looked up: Node.js' openat. So each step goes through the
 * handle of the one before, and no step follows a link.
 */

// Not among node:fs' constants. A handle that only stands for the file: opening has no effects, not even on devices.
const O_PATH = 0o10_000_000;
/** For any file; a link is opened itself. */
export const pathFlags = O_PATH | constants.O_NOFOLLOW;
/** For a directory to be read: a link or file in its place is ENOTDIR or ELOOP. */
export const dirFlags = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW;
/** For a directory to be walked through, which needs no right to read it. */
const stepFlags = pathFlags | constants.O_DIRECTORY;
// A directory of ours that has not got its mode yet, because mkdir(2) takes bits away: nobody may enter it. Whoever finds
// one finishes it; the run that made it may have been killed.
const unfinishedMode = 0o1000;
const slash = Buffer.from("/");

/** The calls that make directories; tests stop them half-way. */
export type DirFS = Pick<typeof nodeFS, "chmod" | "mkdir" | "open">;

/** Path of an open file that no rename or link can change; for this process. */
export function fdPath(handle: FileHandle): string {
  return `/proc/self/fd/${handle.fd}`;
}

/** The names in a path, without empty ones and ".". */
export function partsOf(path: string): string[] {
  return path.split("/").filter((part) => part !== "" && part !== ".");
}

/** Opens a directory to read it; to be closed by the caller. A link or file in its place is ENOTDIR or ELOOP. */
export async function openDir(path: string, fs: DirFS = nodeFS): Promise<FileHandle> {
  return await fs.open(path, dirFlags);
}

/**
 * Opens `base`, then step by step the directories beneath it; to be closed by the caller.
 * @param path relative to `base`, without ".."
 * Rejects with code Invalid for a step that is a link or no directory, NotFound if one is not there.
 */
export async function openDirBeneath(base: string, path: string): Promise<FileHandle> {
  return await walk(await openBase(base), partsOf(path), openDirStep);
}

/**
 * Makes the missing ones of the directories `parts` beneath `dir`, each with exactly `mode`, and calls `use` with the last
 * of them. The handle is open during that call only. What somebody else makes at the same time is used as it is. Rejects
 * with code Invalid where a link or a file is in the way.
 */
export async function withDirs<T>(
  dir: FileHandle,
  parts: readonly string[],
  { mode, fs = nodeFS }: { mode: number; fs?: DirFS },
  use: (dir: FileHandle) => Promise<T>,
): Promise<T> {
  const [first, ...rest] = parts;
  if (first === undefined) return await use(dir);
  const make = async (parent: FileHandle, part: string) => await makeStep(parent, part, mode, fs);
  const last = await walk(await make(dir, first), rest, make);
  try {
    return await use(last);
  } finally {
    await last.close();
  }
}

/**
 * Resolves links once, checks that the result lies in the volume, and opens it so that no link can come in between.
 * @param base the volume, absolute
 * @param inside path in the volume
 * @returns a handle that only stands for the file, to be closed by the caller
 * Rejects with Invalid if it lies outside or a link was swapped in, NotFound if it is not there.
 */
export async function openInside(base: string, inside: string): Promise<FileHandle> {
  const realBase = await realpath(base).catch(translate(base));
  const real = await realpath(join(realBase, inside)).catch(translate(inside));
  if (!isAtOrBeneath(real, realBase)) throw new AgentError("Invalid", `"${inside}" leads out of the volume`);
  const parts = partsOf(relative(realBase, real));
  const name = parts.pop();
  if (name === undefined) return await openNoLink(realBase, realBase);
  const dir = await walk(await openBase(realBase), parts, openDirStep);
  try {
    return await openNoLink(`${fdPath(dir)}/${name}`, name);
  } finally {
    await dir.close();
  }
}

/**
 * Makes the missing directories of `inside`, each with exactly `mode`. Existing links are followed as far as they stay in
 * the volume. What somebody else makes at the same time is used as it is, if it is a directory.
 */
export async function makeDirsInside(base: string, inside: string, mode: number): Promise<void> {
  const realBase = await realpath(base).catch(translate(base));
  const parts = partsOf(inside);
  let present = parts.length;
  while (present > 0 && !(await isThere(join(realBase, ...parts.slice(0, present))))) present -= 1;
  const dir = await openInside(realBase, join(...parts.slice(0, present), "."));
  try {
    await withDirs(dir, parts.slice(present), { mode }, () => Promise.resolve());
  } finally {
    await dir.close();
  }
}

/** An entry of an open directory. */
export interface DirEntry {
  /** `fdPath` of the directory with the name: only the name is looked up. Bytes, which need not be valid UTF-8. */
  path: Buffer;
  name: Buffer;
  /** As the directory says; false also for a link to one. */
  isDirectory: boolean;
}

/** The entries of an open directory, one by one, as they are read from it. */
export async function* entriesOf(dir: FileHandle): AsyncGenerator<DirEntry> {
  const self = Buffer.from(fdPath(dir));
  // The typings know strings only; with this encoding names come as bytes.
  for await (const entry of await opendir(self.toString(), { encoding: "buffer" as BufferEncoding })) {
    const name = entry.name as unknown as Buffer;
    yield { path: Buffer.concat([self, slash, name]), name, isDirectory: entry.isDirectory() };
  }
}

/**
 * Opens a directory to read it, beneath an open one by the names that {@link entriesOf} gave; to be closed by the caller.
 * What is not there any more is ENOENT; what is a link or a file by now is ENOTDIR or ELOOP.
 */
export async function openFound(dir: FileHandle, names: readonly Buffer[]): Promise<FileHandle> {
  const step = async (parent: FileHandle, name: Buffer) => {
    return await open(Buffer.concat([Buffer.from(fdPath(parent)), slash, name]), dirFlags);
  };
  return await walk(await open(fdPath(dir), constants.O_RDONLY | constants.O_DIRECTORY), names, step);
}

/** Takes over the handle: each is closed once the next is open. @returns the last, to be closed by the caller */
async function walk<T>(
  from: FileHandle,
  parts: readonly T[],
  step: (dir: FileHandle, part: T) => Promise<FileHandle>,
): Promise<FileHandle> {
  let handle = from;
  for (const part of parts) {
    const parent = handle;
    try {
      handle = await step(parent, part);
    } finally {
      await parent.close();
    }
  }
  return handle;
}

async function openBase(base: string): Promise<FileHandle> {
  return await open(base, stepFlags).catch(translate(base));
}

async function openDirStep(dir: FileHandle, name: string): Promise<FileHandle> {
  return await open(`${fdPath(dir)}/${name}`, stepFlags).catch(translate(name));
}

async function openNoLink(path: string, name: string): Promise<FileHandle> {
  const handle = await open(path, pathFlags).catch(translate(name));
  try {
    // O_PATH with O_NOFOLLOW opens a link itself instead of failing.
    if ((await handle.stat()).isSymbolicLink()) throw inTheWay(name);
    return handle;
  } catch (err) {
    await handle.close();
    throw err;
  }
}

async function makeStep(dir: FileHandle, name: string, mode: number, fs: DirFS): Promise<FileHandle> {
  const path = `${fdPath(dir)}/${name}`;
  await fs.mkdir(path, { mode: unfinishedMode }).catch((err: unknown) => {
    if (errnoOf(err) !== "EEXIST") throw err;
  });
  const handle = await fs.open(path, stepFlags).catch((err: unknown) => {
    throw isNoDirectory(err) ? inTheWay(name, err) : err;
  });
  try {
    // Through the descriptor: the name may mean something else by now.
    if (isUnfinished(await handle.stat())) await fs.chmod(fdPath(handle), mode);
    return handle;
  } catch (err) {
    await handle.close();
    throw err;
  }
}

async function isThere(path: string): Promise<boolean> {
  return lstat(path).then(
    (stat) => !isUnfinished(stat),
    (err: unknown) => {
      if (errnoOf(err) === "ENOENT") return false;
      throw translated(err, path);
    },
  );
}

/** The group bit may have been inherited. */
function isUnfinished(stat: Stats): boolean {
  return stat.isDirectory() && (stat.mode & 0o5777) === unfinishedMode;
}

function isNoDirectory(err: unknown): boolean {
  return ["ENOTDIR", "ELOOP"].includes(errnoOf(err) ?? "");
}

function inTheWay(name: string, cause?: unknown): AgentError {
  return new AgentError("Invalid", `"${name}" is in the way: it is a link or no directory`, { cause });
}

function translate(what: string): (err: unknown) => never {
  return (err) => {
    throw translated(err, what);
  };
}

function translated(err: unknown, what: string): AgentError {
  if (isNoDirectory(err)) return inTheWay(what, err);
  const errno = errnoOf(err);
  return new AgentError(errno === "ENOENT" ? "NotFound" : "Internal", `"${what}": ${errno ?? messageOf(err)}`, {
    cause: err,
  });
}
