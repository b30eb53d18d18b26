import { constants, type Stats } from "node:fs";
import { chmod, type FileHandle, lstat, mkdir, open, realpath } from "node:fs/promises";
import { join, relative } from "node:path";
import { errnoOf } from "../lib/errno.ts";
import { AgentError, messageOf } from "../lib/errors.ts";
import { isAtOrBeneath } from "../lib/mount.ts";

/**
 * Walking inside a volume that containers can write to at the same moment. A container may swap any directory for a link
 * to the host's files between two of our steps; so each step goes through the descriptor of the one before
 * (`/proc/self/fd/N/name` is Node.js' openat) and refuses links.
 */

// Not among node:fs' constants. A handle that only stands for the file: opening has no effects, not even on devices.
const O_PATH = 0o10_000_000;
const pathFlags = O_PATH | constants.O_NOFOLLOW;
// A directory of ours that has not got its mode yet, because mkdir(2) takes bits away: nobody may enter it. Whoever finds
// one finishes it; the run that made it may have been killed.
const unfinishedMode = 0o1000;

/**
 * Resolves links once, checks that the result lies in the volume, and opens it so that no link can come in between.
 * @param base the volume, absolute
 * @param inside path in the volume
 * @returns an O_PATH handle, to be closed by the caller
 * Rejects with Invalid if it lies outside or a link was swapped in, NotFound if it is not there.
 */
export async function openInside(base: string, inside: string): Promise<FileHandle> {
  const realBase = await realpath(base).catch(translate(base));
  const real = await realpath(join(realBase, inside)).catch(translate(inside));
  if (!isAtOrBeneath(real, realBase)) throw new AgentError("Invalid", `"${inside}" leads out of the volume`);
  return openBeneath(realBase, partsOf(relative(realBase, real)));
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
  let dir = await openInside(realBase, join(...parts.slice(0, present), "."));
  try {
    for (const part of parts.slice(present)) {
      const path = `${fdPath(dir)}/${part}`;
      await mkdir(path, { mode: unfinishedMode }).catch((err: unknown) => {
        if (errnoOf(err) !== "EEXIST") throw translated(err, inside);
      });
      const next = await openStep(dir, part);
      await dir.close();
      dir = next;
      // Through the descriptor: the name may mean something else by now.
      if (isUnfinished(await dir.stat())) await chmod(fdPath(dir), mode);
    }
  } finally {
    await dir.close();
  }
}

/** Path of an open file that no rename or link can change; for this process. */
export function fdPath(handle: FileHandle): string {
  return `/proc/self/fd/${handle.fd}`;
}

async function openBeneath(realBase: string, parts: readonly string[]): Promise<FileHandle> {
  let handle = await open(realBase, pathFlags).catch(translate(realBase));
  try {
    await refuseLink(handle, realBase);
    for (const part of parts) {
      const next = await openStep(handle, part);
      await handle.close();
      handle = next;
    }
    return handle;
  } catch (err) {
    await handle.close();
    throw err;
  }
}

async function openStep(dir: FileHandle, name: string): Promise<FileHandle> {
  const handle = await open(`${fdPath(dir)}/${name}`, pathFlags).catch(translate(name));
  try {
    await refuseLink(handle, name);
    return handle;
  } catch (err) {
    await handle.close();
    throw err;
  }
}

/** O_PATH with O_NOFOLLOW opens a link itself instead of failing. */
async function refuseLink(handle: FileHandle, name: string): Promise<void> {
  if ((await handle.stat()).isSymbolicLink()) {
    throw new AgentError("Invalid", `"${name}" became a symbolic link while it was looked at`);
  }
}

function partsOf(path: string): string[] {
  return path.split("/").filter((part) => part !== "" && part !== ".");
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

function translate(what: string): (err: unknown) => never {
  return (err) => {
    throw translated(err, what);
  };
}

function translated(err: unknown, what: string): AgentError {
  const errno = errnoOf(err);
  const code = errno === "ENOENT" ? "NotFound" : errno === "ENOTDIR" || errno === "ELOOP" ? "Invalid" : "Internal";
  return new AgentError(code, `"${what}": ${errno ?? messageOf(err)}`, { cause: err });
}
