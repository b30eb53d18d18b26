import { constants } from "node:fs";
import { type FileHandle, lstat, open, opendir, rmdir, unlink } from "node:fs/promises";
import { errnoOf, ignoreErrno } from "../lib/errno.ts";
import { AgentError } from "../lib/errors.ts";

const dirFlags = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW;
const slash = Buffer.from("/");
// Someone may add entries while we remove; a process that does so for ever must not keep us for ever.
const passesMax = 3;
const ignoreAbsent = ignoreErrno("ENOENT");

/**
 * Removes `path` and all beneath it. Follows no link, and stops at a directory that something is mounted at, so that what
 * is mounted keeps its content. Goes through descriptors, so that a directory swapped for a link meanwhile leads nowhere;
 * names are bytes, they need not be valid UTF-8. Not there is success.
 */
export async function removeTree(path: string): Promise<void> {
  const stat = await lstat(path).catch(ignoreAbsent);
  if (stat !== undefined) await removeEntry(Buffer.from(path), stat.isDirectory());
}

async function removeEntry(path: Buffer, isDirectory: boolean): Promise<void> {
  if (!isDirectory) {
    await unlink(path).catch(ignoreAbsent);
    return;
  }
  for (let pass = 1; ; pass += 1) {
    // First as if it were empty: most are, and the kernel says whether it is a mount point before we look inside.
    try {
      await rmdir(path);
      return;
    } catch (err) {
      const code = errnoOf(err);
      if (code === "ENOENT") return;
      if (code === "EBUSY") {
        throw new AgentError("Internal", `will not delete ${path.toString()}: something is mounted there`, {
          cause: err,
        });
      }
      if (code !== "ENOTEMPTY" || pass > passesMax) throw err;
    }
    const dir = await open(path, dirFlags).catch(ignoreAbsent);
    if (dir === undefined) return;
    try {
      await emptyDirectory(dir);
    } finally {
      await dir.close();
    }
  }
}

async function emptyDirectory(dir: FileHandle): Promise<void> {
  const self = Buffer.from(`/proc/self/fd/${dir.fd}`);
  // The typings know strings only; with this encoding names come as bytes.
  for await (const entry of await opendir(self.toString(), { encoding: "buffer" as BufferEncoding })) {
    const name = entry.name as unknown as Buffer;
    await removeEntry(Buffer.concat([self, slash, name]), entry.isDirectory());
  }
}
