import { randomInt } from "node:crypto";
import { constants } from "node:fs";
import * as nodeFS from "node:fs/promises";
import { join, posix } from "node:path";
import { errnoOf, ignoreErrno } from "../lib/errno.ts";
import { AgentError } from "../lib/errors.ts";

/** One file of a config volume. */
export interface FileContent {
  data: Uint8Array;
  /** Permission bits. */
  mode: number;
  /** Owner; root when absent. */
  uid?: number;
}

/** Files by path inside the volume. */
export type Payload = ReadonlyMap<string, FileContent>;

/** What the writer does to the disk; tests stop it half-way. */
export type WriterFS = Pick<
  typeof nodeFS,
  | "chmod"
  | "chown"
  | "lchown"
  | "lstat"
  | "mkdir"
  | "readFile"
  | "readdir"
  | "readlink"
  | "rename"
  | "rm"
  | "symlink"
  | "unlink"
  | "writeFile"
>;

export interface WriteOptions {
  /** Unix ms; names the new directory. */
  nowMs: number;
  /** Gives the whole volume to its group, before the new content is visible. */
  applyOwnership?: () => Promise<void>;
  fs?: WriterFS;
}

// PATH_MAX and NAME_MAX of Linux: longer ones cannot be opened.
export const payloadPathBytesMax = 4096;
export const payloadNameBytesMax = 255;
const dataLink = "..data";
const temporaryLink = "..data_tmp";
const versionPattern = /^\.\.\d{4}(?:_\d{2}){5}\.\d+$/;
// Random suffix of a version's name, as long as mkdtemp's in other writers of this layout.
const suffixMax = 2 ** 32;
// File operations under way for one volume: enough to hide their latency, few enough to leave threads to others.
const filesAtOnce = 4;
const absentAsUndefined = ignoreErrno("ENOENT", "ENOTDIR");

/**
 * Brings a volume's files to `payload` so that a reader sees all of the old or all of the new:
 *
 *   ..2026_01_31_23_59_59.123/key     the files
 *   ..data -> ..2026_01_31_23_59_59.123
 *   key -> ..data/key                 one link per first path component
 *
 * A new version is written beside the old one and published by renaming a link over `..data`. If nothing changed, nothing
 * is written; a change of modes alone is not a change. Whatever an interrupted run left behind is put right. Links inside
 * the volume are never followed except `..data`, and that only to a version's name.
 *
 * @returns true if a new version was published
 * Rejects with code Invalid for a path that leaves the volume.
 */
export async function writePayload(dir: string, payload: Payload, options: WriteOptions): Promise<boolean> {
  const fs = options.fs ?? nodeFS;
  const files = new Map([...payload].map(([path, file]) => [validatePath(path), file]));
  const current = await currentVersion(fs, dir);
  const isCurrent = current !== undefined && (await hasContent(fs, join(dir, current), files));
  const version = isCurrent ? current : await publish(fs, dir, files, options);
  await linkFiles(fs, dir, files);
  await removeLeftovers(fs, dir, files, version);
  return !isCurrent;
}

/** True if `dir` holds a published version: a reader finds complete content there. */
export async function hasPublishedContent(dir: string): Promise<boolean> {
  return (await currentVersion(nodeFS, dir)) !== undefined;
}

/** The path in its shortest form. Rejects what is empty, absolute, too long, or could leave the volume or hide in our own names. */
export function validatePath(path: string): string {
  const refuse = (why: string) => new AgentError("Invalid", `path "${path.slice(0, payloadNameBytesMax)}" ${why}`);
  if (path === "") throw refuse("is empty");
  if (posix.isAbsolute(path)) throw refuse("is absolute, it must be relative to the volume");
  if (path.includes("\0")) throw refuse("contains a NUL character");
  if (Buffer.byteLength(path) > payloadPathBytesMax) throw refuse(`is longer than ${payloadPathBytesMax} bytes`);
  const parts = path.split("/");
  if (parts.includes("..")) throw refuse('must not contain ".."');
  if (parts.some((part) => Buffer.byteLength(part) > payloadNameBytesMax)) {
    throw refuse(`has a part longer than ${payloadNameBytesMax} bytes`);
  }
  const normal = posix.normalize(path).replace(/\/$/, "");
  if (normal === ".") throw refuse("names the volume itself");
  if (normal.startsWith("..")) throw refuse('must not start with ".."');
  return normal;
}

async function currentVersion(fs: WriterFS, dir: string): Promise<string | undefined> {
  const target = await fs.readlink(join(dir, dataLink)).catch(absentAsUndefined);
  if (target === undefined || !versionPattern.test(target)) return undefined;
  const stat = await fs.lstat(join(dir, target)).catch(absentAsUndefined);
  return stat?.isDirectory() === true ? target : undefined;
}

/** True if the version holds exactly these files with exactly this content. */
async function hasContent(fs: WriterFS, versionDir: string, files: Payload): Promise<boolean> {
  const implied = new Set<string>();
  for (const path of files.keys()) for (let p = path; p !== "."; p = posix.dirname(p)) implied.add(p);
  for (const path of await listRecursive(fs, versionDir, "")) if (!implied.has(path)) return false;
  for (const [path, { data }] of files) {
    const full = join(versionDir, path);
    const stat = await fs.lstat(full).catch(absentAsUndefined);
    if (stat?.isFile() !== true || stat.size !== data.length) return false;
    const present = await fs.readFile(full, { flag: constants.O_RDONLY | constants.O_NOFOLLOW });
    if (!present.equals(data)) return false;
  }
  return true;
}

async function listRecursive(fs: WriterFS, root: string, below: string): Promise<string[]> {
  const found: string[] = [];
  for (const entry of await fs.readdir(join(root, below), { withFileTypes: true })) {
    const path = posix.join(below, entry.name);
    found.push(path);
    if (entry.isDirectory()) found.push(...(await listRecursive(fs, root, path)));
  }
  return found;
}

async function publish(fs: WriterFS, dir: string, files: Payload, options: WriteOptions): Promise<string> {
  const version = `${versionPrefix(options.nowMs)}${randomInt(suffixMax)}`;
  const versionDir = join(dir, version);
  const temporary = join(dir, temporaryLink);
  await fs.mkdir(versionDir, { mode: 0o700 });
  try {
    await fs.chmod(versionDir, 0o755); // the umask may have taken bits away
    for (const parent of parentsOf(files)) await fs.mkdir(join(versionDir, parent), { recursive: true });
    await forAll(files, ([path, file]) => writeFile(fs, join(versionDir, path), file));
    await options.applyOwnership?.();
    await fs.unlink(temporary).catch(absentAsUndefined); // of an interrupted run
    await fs.symlink(version, temporary);
    await fs.rename(temporary, join(dir, dataLink));
  } catch (err) {
    await fs.rm(temporary, { force: true });
    await fs.rm(versionDir, { recursive: true, force: true });
    throw err;
  }
  return version;
}

async function writeFile(fs: WriterFS, path: string, { data, mode, uid }: FileContent): Promise<void> {
  await fs.writeFile(path, data, { flag: "wx", mode: mode & 0o700 });
  if (uid !== undefined) await fs.chown(path, uid, -1);
  await fs.chmod(path, mode);
}

/** Makes what is in the version visible at the top of the volume. */
async function linkFiles(fs: WriterFS, dir: string, files: Payload): Promise<void> {
  const owners = new Map<string, number | undefined>();
  for (const [path, { uid }] of files) owners.set(topOf(path), uid ?? owners.get(topOf(path)));
  await forAll(owners, async ([top, uid]) => {
    const link = join(dir, top);
    const wanted = posix.join(dataLink, top);
    const present = await fs.readlink(link).catch((err: unknown) => {
      if (errnoOf(err) !== "EINVAL") return absentAsUndefined(err);
      throw new AgentError("Invalid", `path "${top}" is taken by a directory that another volume is mounted at`);
    });
    if (present === wanted) return;
    if (present !== undefined) await fs.unlink(link);
    await fs.symlink(wanted, link);
    if (uid !== undefined) await fs.lchown(link, uid, -1);
  });
}

/** Removes links to files that are gone and versions that are not current, also those of interrupted runs. */
async function removeLeftovers(fs: WriterFS, dir: string, files: Payload, version: string): Promise<void> {
  const tops = new Set([...files.keys()].map(topOf));
  for (const entry of await fs.readdir(dir, { withFileTypes: true })) {
    const { name } = entry;
    const path = join(dir, name);
    if (entry.isDirectory()) {
      if (versionPattern.test(name) && name !== version) await fs.rm(path, { recursive: true, force: true });
    } else if (entry.isSymbolicLink() && name !== dataLink && !tops.has(name)) {
      const isOurs = name === temporaryLink || (await fs.readlink(path)) === posix.join(dataLink, name);
      if (isOurs) await fs.unlink(path);
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

/** Directories that files lie in, beneath the version's own. */
function parentsOf(files: Payload): Set<string> {
  const parents = new Set([...files.keys()].map((path) => posix.dirname(path)));
  parents.delete(".");
  return parents;
}

function topOf(path: string): string {
  return path.split("/", 1)[0] ?? path;
}
