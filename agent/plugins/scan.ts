import { type FSWatcher, watch } from "node:fs";
import { lstat, readdir } from "node:fs/promises";
import { join } from "node:path";
import { errnoOf, ignoreErrno } from "../lib/errno.ts";
import { messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";

// Registries have sockets at the top or one level down. What is deeper than this is somebody's mistake.
const depthMax = 8;

/** A directory tree in which sockets come and go. */
export interface SocketTree {
  /**
   * Looks for sockets. Names that begin with a dot are left out, links are not followed.
   * @returns path → identity, which differs for a socket that was made anew under the same path
   */
  scan(): Promise<Map<string, string>>;
  /** False while some directory cannot be watched, so that changes there are found by looking only. */
  readonly isWatched: boolean;
  close(): void;
}

/**
 * Watches a tree of directories. Nothing is lost between looking and watching: each directory is watched before it is read.
 * @param onChange something in a directory seen by the last scan has changed
 */
export function openSocketTree(root: string, onChange: () => void, log: Logger): SocketTree {
  const watchers = new Map<string, FSWatcher>();
  let isWatched = true;

  const unwatch = (dir: string) => {
    watchers.get(dir)?.close();
    watchers.delete(dir);
  };
  const ensureWatch = (dir: string) => {
    if (watchers.has(dir)) return;
    try {
      const watcher = watch(dir, { persistent: false }, (_event, name) => {
        // The last event of a directory that was removed bears its own name or none; a new one of that name needs a new watch.
        if (name === null || join(dir, name) === dir) unwatch(dir);
        onChange();
      });
      watchers.set(dir, watcher);
      watcher.on("error", () => {
        unwatch(dir);
        onChange();
      });
    } catch (err) {
      if (errnoOf(err) === "ENOENT") return;
      isWatched = false;
      log.warn({ dir, err: messageOf(err) }, "cannot watch for plugins, looking now and then instead");
    }
  };
  const walk = async (dir: string, depth: number, found: Map<string, string>, dirs: Set<string>): Promise<void> => {
    ensureWatch(dir);
    const entries = await readdir(dir, { withFileTypes: true }).catch(ignoreErrno("ENOENT", "ENOTDIR"));
    if (entries === undefined) return;
    dirs.add(dir);
    for (const entry of entries) {
      if (entry.name.startsWith(".")) continue;
      const path = join(dir, entry.name);
      if (entry.isDirectory() && depth < depthMax) await walk(path, depth + 1, found, dirs);
      if (!entry.isSocket()) continue;
      const stat = await lstat(path, { bigint: true }).catch(ignoreErrno("ENOENT"));
      // Inode numbers are used again. A socket's mtime is when it was made; chmod does not change it.
      if (stat?.isSocket() === true) found.set(path, `${stat.dev}/${stat.ino}/${stat.mtimeNs}`);
    }
  };

  return {
    get isWatched() {
      return isWatched;
    },
    scan: async () => {
      isWatched = true;
      const found = new Map<string, string>();
      const dirs = new Set<string>();
      await walk(root, 0, found, dirs);
      for (const dir of [...watchers.keys()]) if (!dirs.has(dir)) unwatch(dir);
      return found;
    },
    close: () => {
      for (const dir of [...watchers.keys()]) unwatch(dir);
    },
  };
}
