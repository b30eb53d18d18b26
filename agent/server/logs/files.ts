import { constants } from "node:fs";
import { type FileHandle, open, stat } from "node:fs/promises";
import { errnoOf } from "../../lib/errno.ts";
import type { HttpError } from "../port.ts";
import { plainError } from "../respond.ts";

/** A regular file, open. Dispose it. */
export interface OpenFile {
  readonly handle: FileHandle;
  readonly size: number;
  readonly modifiedAtMs: number;
  [Symbol.asyncDispose](): Promise<void>;
}

// Between look and open another file may take the name: a fifo would hold a thread, a terminal would become ours.
const openFlags = constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY;

const chunkBytes = 256 * 1024;

/**
 * Opens a regular file, through links. Fifos, devices and sockets are never opened: some change by that alone.
 * Rejects with HttpError: 404, 403 or 500.
 */
export async function openFile(path: string): Promise<OpenFile> {
  if (!(await statPath(path)).isFile()) throw notRegular();
  const handle = await open(path, openFlags).catch(refuse);
  try {
    const stats = await handle.stat();
    if (!stats.isFile()) throw notRegular();
    return {
      handle,
      size: stats.size,
      modifiedAtMs: stats.mtimeMs,
      [Symbol.asyncDispose]: async () => await handle.close(),
    };
  } catch (err) {
    await handle.close();
    throw err;
  }
}

/** What is at `path`, through links. Rejects as {@link openFile}. */
export async function statPath(path: string): ReturnType<typeof stat> {
  return await stat(path).catch(refuse);
}

/**
 * Hands out a part of a file piece by piece.
 * @returns bytes that were there; fewer than `length` if the file ended before
 */
export async function readFile(
  handle: FileHandle,
  start: number,
  length: number,
  write: (chunk: Buffer) => Promise<void>,
  signal: AbortSignal,
): Promise<number> {
  const buffer = Buffer.allocUnsafeSlow(Math.min(chunkBytes, length));
  let done = 0;
  while (done < length) {
    signal.throwIfAborted();
    const { bytesRead } = await handle.read(buffer, 0, Math.min(buffer.length, length - done), start + done);
    if (bytesRead === 0) break;
    await write(buffer.subarray(0, bytesRead));
    done += bytesRead;
  }
  return done;
}

function notRegular(): HttpError {
  return plainError(403, "403 Forbidden: not a regular file");
}

function refuse(err: unknown): never {
  switch (errnoOf(err)) {
    case "ENOENT":
    case "ENOTDIR":
    case "ELOOP":
    case "ENAMETOOLONG":
      throw plainError(404, "404 page not found");
    case "EACCES":
    case "EPERM":
      throw plainError(403, "403 Forbidden");
    default:
      throw plainError(500, "500 Internal Server Error");
  }
}
