import { constants } from "node:fs";
import { type FileHandle, open, readdir, stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { createGunzip } from "node:zlib";
import { errnoOf, ignoreErrno } from "../../lib/errno.ts";
import { AgentError } from "../../lib/errors.ts";

/** One file of a log, open. */
export interface LogFile {
  /** Name in the directory; absent for the active file. */
  readonly rotatedAs?: string;
  /**
   * Reads at `position`; fewer bytes than asked for mean the file's end, for now. A compressed file is read in order only.
   * @returns bytes read
   */
  read(buffer: Buffer, offset: number, position: number): Promise<number>;
  isAt(identity: FileIdentity): boolean;
  close(): Promise<void>;
}

/** What stays the same when a file is renamed. */
export interface FileIdentity {
  readonly dev: number;
  readonly ino: number;
}

// Without O_NONBLOCK a fifo in a file's place would hold a thread for good.
const openFlags = constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY;

// kubelet's suffix of a rotated file: local time; ".gz" once it was compressed.
const rotatedSuffix = /^\.\d{8}-\d{6}(\.gz)?$/;

/** Opens the file that is written to now. Rejects with NotFound, or Invalid if it is no regular file. */
export async function openActive(path: string): Promise<LogFile & { handle: FileHandle }> {
  const handle = await openRegular(path);
  try {
    return { ...plainFile(handle, await handle.stat()), handle };
  } catch (err) {
    await handle.close();
    throw err;
  }
}

/** Opens a file that was rotated away. Rejects as {@link openActive}. */
export async function openRotated(dir: string, name: string): Promise<LogFile> {
  const handle = await openRegular(join(dir, name));
  try {
    const file = name.endsWith(".gz") ? compressedFile(handle) : plainFile(handle, await handle.stat());
    return { ...file, rotatedAs: name };
  } catch (err) {
    await handle.close();
    throw err;
  }
}

/** Who is at `path` now, and its bytes; undefined if nobody is. */
export async function identify(path: string): Promise<(FileIdentity & { readonly size: number }) | undefined> {
  return await stat(path).catch(ignoreErrno("ENOENT", "ENOTDIR"));
}

/** Names of the files that were rotated away from `path`, oldest first, each once. */
export async function rotatedFiles(path: string): Promise<string[]> {
  const base = basename(path);
  const names = (await readdir(dirname(path)).catch(ignoreErrno("ENOENT", "ENOTDIR"))) ?? [];
  const rotated = names.filter((name) => name.startsWith(base) && rotatedSuffix.test(name.slice(base.length)));
  // While it is being compressed a file is there in both forms.
  return rotated.filter((name) => !name.endsWith(".gz") || !rotated.includes(plainName(name))).sort();
}

/** The name that a rotated file had before it was compressed. */
export function plainName(name: string): string {
  return name.endsWith(".gz") ? name.slice(0, -".gz".length) : name;
}

async function openRegular(path: string): Promise<FileHandle> {
  const handle = await open(path, openFlags).catch((err: unknown) => {
    throw new AgentError(errnoOf(err) === "ENOENT" ? "NotFound" : "Internal", `open ${path}: ${reasonOf(err)}`);
  });
  try {
    if (!(await handle.stat()).isFile()) throw new AgentError("Invalid", `open ${path}: it is not a regular file`);
    return handle;
  } catch (err) {
    await handle.close();
    throw err;
  }
}

function reasonOf(err: unknown): string {
  return errnoOf(err) === "ENOENT" ? "no such file or directory" : (errnoOf(err) ?? String(err));
}

function plainFile(handle: FileHandle, { dev, ino }: FileIdentity): LogFile {
  return {
    read: async (buffer, offset, position) =>
      (await handle.read(buffer, offset, buffer.length - offset, position)).bytesRead,
    isAt: (identity) => identity.dev === dev && identity.ino === ino,
    close: async () => await handle.close(),
  };
}

function compressedFile(handle: FileHandle): LogFile {
  const raw = handle.createReadStream({ autoClose: false });
  const plain = raw.pipe(createGunzip());
  raw.on("error", (err) => plain.destroy(err));
  const chunks: AsyncIterator<Buffer, undefined> = plain[Symbol.asyncIterator]();
  let rest: Buffer = Buffer.alloc(0);
  return {
    read: async (buffer, offset) => {
      let o = offset;
      while (o < buffer.length) {
        if (rest.length === 0) {
          const next = await chunks.next();
          if (next.done === true) break;
          rest = next.value;
        }
        const copied = rest.copy(buffer, o);
        rest = rest.subarray(copied);
        o += copied;
      }
      return o - offset;
    },
    isAt: () => false,
    close: async () => {
      plain.destroy();
      raw.destroy();
      await handle.close();
    },
  };
}
