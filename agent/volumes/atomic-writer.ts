import { randomInt } from "node:crypto";
import { constants } from "node:fs";
import * as nodeFS from "node:fs/promises";
import type { FileHandle } from "node:fs/promises";
import { join, posix } from "node:path";
import { errnoOf, ignoreErrno } from "../lib/errno.ts";
import { AgentError, messageOf } from "../lib/errors.ts";
import { checkPayload, type FileContent, parentsOf, type Payload, topOf } from "./payload.ts";
import { removeTree } from "./remove-tree.ts";
import { fdPath, openDir, withDirs } from "./safe-path.ts";

/** What the writer does to the disk; tests stop it half-way. */
export type WriterFS = Pick<
  typeof nodeFS,
  "chmod" | "lchown" | "lstat" | "mkdir" | "open" | "readdir" | "readlink" | "rename" | "symlink" | "unlink"
> & { removeTree: typeof removeTree };

export interface WriteOptions {
  /** Unix ms; names the new directory. */
  nowMs: number;
  /** Gives the whole volume to its group, before the new content is visible. */
  applyOwnership?: () => Promise<void>;
  fs?: WriterFS;
}

const realFS: WriterFS = { ...nodeFS, removeTree };
/** The link in a volume that leads to its current version. */
export const dataLink = "..data";
const temporaryLink = "..data_tmp";
const versionPattern = /^\.\.\d{4}(?:_\d{2}){5}\.\d+$/;
// Random suffix of a version's name, as long as mkdtemp's in other writers of this layout.
const suffixMax = 2 ** 32;
// File operations under way for one volume: enough to hide their latency, few enough to leave threads to others.
const filesAtOnce = 4;
// What everybody may enter; the files' own modes say who may read them.
const dirMode = 0o755;
const readFlags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK; // a pipe would hang without the last
const createFlags = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;
const absentAsUndefined = ignoreErrno("ENOENT", "ENOTDIR");
/** Also for what is no link. */
const noLinkAsUndefined = ignoreErrno("ENOENT", "ENOTDIR", "EINVAL");

/**
 * Brings a volume's files to `payload` so that a reader sees all of the old or all of the new:
 *
 *   ..2026_01_31_23_59_59.123/key     the files
 *   ..data -> ..2026_01_31_23_59_59.123
 *   key -> ..data/key                 one link per first path component
 *
 * A new version is written beside the old one and published by renaming a link over `..data`. If nothing changed, nothing
 * is written; a change of modes alone is not a change. Whatever an interrupted run left behind is put right. No link in the
 * volume is followed, also none that appears meanwhile: every step goes from an open directory to a name in it.
 *
 * @param dir the volume, open
 * @returns true if a new version was published
 * Rejects with code Invalid for a payload that cannot be files of a volume; otherwise the old content stays as it was.
 */
export async function writePayload(dir: FileHandle, payload: Payload, options: WriteOptions): Promise<boolean> {
  const fs = options.fs ?? realFS;
  const files = checkPayload(payload);
  try {
    const base = fdPath(dir);
    await clearWay(fs, base, files);
    const current = await currentVersion(fs, base);
    const isCurrent = current !== undefined && (await hasContent(fs, `${base}/${current}`, files));
    const version = isCurrent ? current : await publish(fs, base, files, options);
    await linkFiles(fs, base, files);
    await removeLeftovers(fs, base, files, version);
    return !isCurrent;
  } catch (err) {
    if (err instanceof AgentError || errnoOf(err) === undefined) throw err;
    // The system's words without its paths, which say nothing to the pod's author.
    const [why = ""] = messageOf(err).split(", ");
    throw new AgentError("Internal", `cannot write the volume's files: ${why}`, { cause: err });
  }
}

/** True if `dir` holds a published version: a reader finds complete content there. */
export async function hasPublishedContent(dir: string): Promise<boolean> {
  return (await currentVersion(nodeFS, dir)) !== undefined;
}

async function currentVersion(fs: Pick<WriterFS, "readlink" | "lstat">, base: string): Promise<string | undefined> {
  const target = await fs.readlink(join(base, dataLink)).catch(noLinkAsUndefined);
  if (target === undefined || !versionPattern.test(target)) return undefined;
  const stat = await fs.lstat(join(base, target)).catch(absentAsUndefined);
  return stat?.isDirectory() === true ? target : undefined;
}

/**
 * Removes what is in the place of our links and is no link. Nobody but somebody with access to the node's files can have put
 * it there, with one exception: directories that other volumes are to be mounted at stay, and are an error.
 */
async function clearWay(fs: WriterFS, base: string, files: Payload): Promise<void> {
  const tops = new Set([...files.keys()].map(topOf));
  for (const entry of await fs.readdir(base, { withFileTypes: true })) {
    if (entry.isSymbolicLink()) continue;
    if (entry.name === dataLink || entry.name === temporaryLink) await fs.removeTree(`${base}/${entry.name}`);
    if (!tops.has(entry.name)) continue;
    if (entry.isDirectory()) {
      const why = "is taken by a directory that another volume is mounted at";
      throw new AgentError("Invalid", `path "${entry.name}" ${why}`);
    }
    await fs.unlink(`${base}/${entry.name}`).catch(absentAsUndefined);
  }
}

/** True if the version holds exactly these files with exactly this content. */
async function hasContent(fs: WriterFS, versionPath: string, files: Payload): Promise<boolean> {
  const dirs = new Set([...files.keys()].flatMap(parentsOf));
  let equal = 0;
  const compare = async (path: string, prefix: string): Promise<boolean> => {
    const dir = await openDir(path, fs);
    try {
      for (const entry of await fs.readdir(fdPath(dir), { withFileTypes: true })) {
        const name = prefix + entry.name;
        const full = `${fdPath(dir)}/${entry.name}`;
        const wanted = files.get(name);
        if (dirs.has(name) && entry.isDirectory() && (await compare(full, `${name}/`))) continue;
        if (wanted === undefined || !entry.isFile() || !(await isEqual(fs, full, wanted.data))) return false;
        equal += 1;
      }
      return true;
    } finally {
      await dir.close();
    }
  };
  const swapped = ignoreErrno("ENOENT", "ENOTDIR", "ELOOP", "ENXIO");
  return (await compare(versionPath, "").catch(swapped)) === true && equal === files.size;
}

async function isEqual(fs: WriterFS, path: string, data: Uint8Array): Promise<boolean> {
  const file = await fs.open(path, readFlags);
  try {
    const stat = await file.stat();
    return stat.isFile() && stat.size === data.length && (await file.readFile()).equals(data);
  } finally {
    await file.close();
  }
}

async function publish(fs: WriterFS, base: string, files: Payload, options: WriteOptions): Promise<string> {
  const version = `${versionPrefix(options.nowMs)}${randomInt(suffixMax)}`;
  const temporary = `${base}/${temporaryLink}`;
  try {
    await fs.mkdir(`${base}/${version}`, { mode: 0o700 });
    const dir = await openDir(`${base}/${version}`, fs);
    try {
      await dir.chmod(dirMode); // the umask may have taken bits away
      await forAll(files, ([path, file]) => writeFile(fs, dir, path, file));
    } finally {
      await dir.close();
    }
    await options.applyOwnership?.();
    await fs.unlink(temporary).catch(absentAsUndefined); // of an interrupted run
    await fs.symlink(version, temporary);
    await fs.rename(temporary, `${base}/${dataLink}`);
  } catch (err) {
    // Best effort: what cannot be removed now is a leftover for the next run.
    await fs.unlink(temporary).catch(() => {});
    await fs.removeTree(`${base}/${version}`).catch(() => {});
    throw err;
  }
  return version;
}

async function writeFile(fs: WriterFS, version: FileHandle, path: string, content: FileContent): Promise<void> {
  const parts = path.split("/");
  const name = parts.pop() ?? "";
  await withDirs(version, parts, { mode: dirMode, fs }, async (dir) => {
    const { data, mode, uid } = content;
    const file = await fs.open(`${fdPath(dir)}/${name}`, createFlags, mode & 0o700);
    try {
      await file.writeFile(data);
      if (uid !== undefined) await file.chown(uid, -1);
      await file.chmod(mode); // last: a change of owner takes bits away
    } finally {
      await file.close();
    }
  });
}

/** Makes what is in the version visible at the top of the volume. */
async function linkFiles(fs: WriterFS, base: string, files: Payload): Promise<void> {
  const owners = new Map<string, number | undefined>();
  for (const [path, { uid }] of files) owners.set(topOf(path), uid ?? owners.get(topOf(path)));
  await forAll(owners, async ([top, uid]) => {
    const link = `${base}/${top}`;
    const wanted = posix.join(dataLink, top);
    const present = await fs.readlink(link).catch(noLinkAsUndefined);
    if (present === wanted) return;
    if (present !== undefined) await fs.unlink(link);
    await fs.symlink(wanted, link);
    if (uid !== undefined) await fs.lchown(link, uid, -1);
  });
}

/** Removes links to files that are gone and versions that are not current, also those of interrupted runs. */
async function removeLeftovers(fs: WriterFS, base: string, files: Payload, version: string): Promise<void> {
  const tops = new Set([...files.keys()].map(topOf));
  for (const entry of await fs.readdir(base, { withFileTypes: true })) {
    const { name } = entry;
    const path = `${base}/${name}`;
    if (entry.isDirectory()) {
      if (versionPattern.test(name) && name !== version) await fs.removeTree(path);
    } else if (entry.isSymbolicLink() && name !== dataLink && !tops.has(name)) {
      const target = await fs.readlink(path).catch(noLinkAsUndefined);
      const isOurs = name === temporaryLink || target === posix.join(dataLink, name);
      if (isOurs) await fs.unlink(path).catch(absentAsUndefined);
    }
  }
}

/** `..2026_01_31_23_59_59.` in UTC. */
function versionPrefix(nowMs: number): string {
  return `..${new Date(nowMs).toISOString().slice(0, 19).replaceAll(/[-T:]/g, "_")}.`;
}

/** Does `work` for all items, a few at a time. Rejects with the first error once nothing is under way any more. */
async function forAll<T>(items: Iterable<T>, work: (item: T) => Promise<void>): Promise<void> {
  const queue = [...items];
  const errors: unknown[] = [];
  const worker = async () => {
    for (let item = queue.shift(); item !== undefined && errors.length === 0; item = queue.shift()) {
      await work(item).catch((err: unknown) => errors.push(err));
    }
  };
  await Promise.all(Array.from({ length: filesAtOnce }, worker));
  if (errors.length > 0) throw errors[0];
}
