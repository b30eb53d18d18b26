import { open } from "node:fs/promises";
import { AgentError } from "../lib/errors.ts";
import { fdPath, openInside } from "./safe-path.ts";

// What an environment file may weigh: more than the environment of a process can hold anyway.
export const volumeFileBytesMax = 1 << 20;

/**
 * Text of a file at `path` in the volume at `base`, found without leaving the volume.
 * Rejects with NotFound if it is not there, Invalid if it is no file or too long.
 */
export async function readFileInside(base: string, path: string): Promise<string> {
  const handle = await openInside(base, path);
  try {
    const stat = await handle.stat();
    if (!stat.isFile()) throw new AgentError("Invalid", `"${path}" is not a file`);
    if (stat.size > volumeFileBytesMax) {
      throw new AgentError("Invalid", `"${path}" is larger than ${volumeFileBytesMax} bytes`);
    }
    const file = await open(fdPath(handle), "r");
    try {
      return await file.readFile("utf8");
    } finally {
      await file.close();
    }
  } finally {
    await handle.close();
  }
}
