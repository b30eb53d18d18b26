import { constants } from "node:fs";
import { type FileHandle, open, readdir, stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { Readable } from "node:stream";
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
  /** Wherever `read` stands. Empty if the file is. */
  firstLine(): Promise<FirstLine>;
  isAt(identity: FileIdentity): boolean;
  close(): Promise<void>;
}

/** A file's first line with its newline, or its first {@link firstLineBytesMax} bytes if the line is longer. */
export type FirstLine = Buffer;

/** What stays the same when a file is renamed. */
export interface FileIdentity {
  readonly dev: number;
  readonly ino: number;
}

// Without O_NONBLOCK a fifo in a file's place would hold a thread for good.
const openFlags = constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY;

// Suffixes of rotated files, with ".gz" once they are compressed. Kubelet's is the local time.
const datedSuffix = /^\.\d{8}-\d{6}(\.gz)?$/;
// Docker's json-file driver counts: the largest number is the oldest file.
const numberedSuffix = /^\.([1-9]\d{0,3})(\.gz)?$/;

// Docker cuts lines at 16 KiB, which are up to six times that in JSON.
const firstLineBytesMax = 128 * 1024;
const firstLineStepBytes = 4 * 1024;

const lf = 0x0a;

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
  const own = names.filter((name) => name.startsWith(base));
  // While it is being compressed a file is there in both forms.
  const whole = own.filter((name) => !name.endsWith(".gz") || !own.includes(plainName(name)));
  const numberOf = (name: string) => Number(numberedSuffix.exec(name.slice(base.length))?.[1] ?? 0);
  const numbered = whole.filter((name) => numberOf(name) > 0).sort((a, b) => numberOf(b) - numberOf(a));
  return [...numbered, ...whole.filter((name) => datedSuffix.test(name.slice(base.length))).sort()];
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
    firstLine: async () => await firstLineIn(bytesOf(handle)),
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
    firstLine: async () => {
      const source = Readable.from(bytesOf(handle));
      const unpacked = source.pipe(createGunzip());
      source.on("error", (err) => unpacked.destroy(err));
      try {
        return await firstLineIn(unpacked);
      } finally {
        source.destroy();
        unpacked.destroy();
      }
    },
    isAt: () => false,
    close: async () => {
      plain.destroy();
      raw.destroy();
      await handle.close();
    },
  };
}

/** A file from its start, in small pieces, without moving where others read it. */
async function* bytesOf(handle: FileHandle): AsyncGenerator<Buffer> {
  for (let position = 0; ; ) {
    const buffer = Buffer.allocUnsafeSlow(firstLineStepBytes);
    const { bytesRead } = await handle.read(buffer, 0, buffer.length, position);
    if (bytesRead === 0) return;
    position += bytesRead;
    yield buffer.subarray(0, bytesRead);
  }
}

async function firstLineIn(chunks: AsyncIterable<Buffer>): Promise<FirstLine> {
  const parts: Buffer[] = [];
  let length = 0;
  for await (const chunk of chunks) {
    const end = chunk.indexOf(lf);
    const part = chunk.subarray(0, Math.min(end < 0 ? chunk.length : end + 1, firstLineBytesMax - length));
    parts.push(part);
    length += part.length;
    if (end >= 0 || length >= firstLineBytesMax) break;
  }
  return Buffer.concat(parts);
}
