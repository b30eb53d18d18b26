import { type FileHandle, open } from "node:fs/promises";
import { AgentError } from "../lib/errors.ts";
import { fdPath, openInside } from "./safe-path.ts";

// What an environment file may weigh: more than the environment of a process can hold anyway.
export const volumeFileBytesMax = 1 << 20;
const chunkBytes = 1 << 16;

/**
 * Text of a file at `path` in the volume at `base`, found without leaving the volume.
 * Rejects with NotFound if it is not there, Invalid if it is no file or too long.
 */
export async function readFileInside(base: string, path: string): Promise<string> {
  const handle = await openInside(base, path);
  try {
    if (!(await handle.stat()).isFile()) throw new AgentError("Invalid", `"${path}" is not a file`);
    const file = await open(fdPath(handle), "r");
    try {
      return (await readAll(file, path)).toString("utf8");
    } finally {
      await file.close();
    }
  } finally {
    await handle.close();
  }
}

/** By what is read: the file may grow meanwhile, and some have no size before. */
async function readAll(file: FileHandle, path: string): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  while (bytes <= volumeFileBytesMax) {
    const { bytesRead, buffer } = await file.read(Buffer.allocUnsafe(chunkBytes));
    if (bytesRead === 0) return Buffer.concat(chunks);
    chunks.push(buffer.subarray(0, bytesRead));
    bytes += bytesRead;
  }
  throw new AgentError("Invalid", `"${path}" is larger than ${volumeFileBytesMax} bytes`);
}
