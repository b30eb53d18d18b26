import { constants } from "node:fs";
import * as nodeFS from "node:fs/promises";
import type { FileHandle } from "node:fs/promises";
import { errnoOf } from "../lib/errno.ts";
import { AgentError } from "../lib/errors.ts";
import { fdPath } from "./safe-path.ts";

/**
 * Directories of a volume as open handles. Whoever can write to a volume may swap a directory for a link to the host's
 * files at any moment; a handle stays what it was when it was opened, and `fdPath(handle)/name` is a path of which only the
 * last part is looked up. No link is ever followed here, wherever it leads: nothing of ours lies behind one.
 */

const dirFlags = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW;

/** The calls that are needed; tests stop them half-way. */
export type DirFS = Pick<typeof nodeFS, "mkdir" | "open">;

/** Opens a directory; to be closed by the caller. A link or file in its place is ENOTDIR or ELOOP. */
export async function openDir(path: string, fs: DirFS = nodeFS): Promise<FileHandle> {
  return await fs.open(path, dirFlags);
}

/**
 * Opens `base`, then step by step what lies beneath it; to be closed by the caller.
 * @param path relative to `base`, without ".."
 * Rejects with code Invalid for a step that is a link or no directory.
 */
export async function openDirBeneath(base: string, path: string): Promise<FileHandle> {
  let handle = await openDir(base);
  for (const part of partsOf(path)) {
    const parent = handle;
    try {
      handle = await openDir(`${fdPath(parent)}/${part}`).catch(refuseLink(path, part));
    } finally {
      await parent.close();
    }
  }
  return handle;
}

/**
 * Makes the missing ones of the directories `parts` beneath `dir` with exactly `mode`, and calls `use` with the last of
 * them. The handle is open during that call only. Rejects with code Invalid where a link or a file is in the way.
 */
export async function withDirs<T>(
  dir: FileHandle,
  parts: readonly string[],
  { mode, fs = nodeFS }: { mode: number; fs?: DirFS },
  use: (dir: FileHandle) => Promise<T>,
): Promise<T> {
  const [part, ...rest] = parts;
  if (part === undefined) return await use(dir);
  const path = `${fdPath(dir)}/${part}`;
  const isNew = await fs.mkdir(path, { mode }).then(
    () => true,
    (err: unknown) => {
      if (errnoOf(err) !== "EEXIST") throw err;
      return false;
    },
  );
  const next = await openDir(path, fs).catch(refuseLink(parts.join("/"), part));
  try {
    if (isNew) await next.chmod(mode); // the umask may have taken bits away
    return await withDirs(next, rest, { mode, fs }, use);
  } finally {
    await next.close();
  }
}

/** The names in a path, without empty ones and ".". */
export function partsOf(path: string): string[] {
  return path.split("/").filter((part) => part !== "" && part !== ".");
}

function refuseLink(path: string, part: string): (err: unknown) => never {
  return (err) => {
    if (!["ENOTDIR", "ELOOP"].includes(errnoOf(err) ?? "")) throw err;
    throw new AgentError("Invalid", `"${part}" of "${path}" is in the way: it is not a directory`, { cause: err });
  };
}
