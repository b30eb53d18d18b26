import { type BigIntStats, type FSWatcher, watch } from "node:fs";
import { lstat, mkdir, readdir } from "node:fs/promises";
import { join } from "node:path";
import { errnoOf, ignoreErrno } from "../lib/errno.ts";
import { messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";

// Registries have sockets at the top or one level down. What is deeper than this is somebody's mistake.
const depthMax = 8;

// As kubelet's watcher makes it.
const registryMode = 0o755;

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
  const watchers = new Map<string, { watcher: FSWatcher; identity: string }>();
  /** Directories that cannot be watched, as was told. */
  const unwatchable = new Set<string>();

  const unwatch = (dir: string) => {
    watchers.get(dir)?.watcher.close();
    watchers.delete(dir);
  };
  const ensureWatch = async (dir: string) => {
    // One that was made anew under its name needs a new watch: the old one hears of it no more.
    const identity = await lstat(dir, { bigint: true }).then(identityOf).catch(ignoreErrno("ENOENT", "ENOTDIR"));
    if (identity === undefined) return;
    if (watchers.get(dir)?.identity === identity) return;
    unwatch(dir);
    try {
      const watcher = watch(dir, { persistent: false }, () => onChange());
      watchers.set(dir, { watcher, identity });
      watcher.on("error", () => {
        unwatch(dir);
        onChange();
      });
      unwatchable.delete(dir);
    } catch (err) {
      if (errnoOf(err) === "ENOENT") return;
      if (!unwatchable.has(dir)) {
        log.warn({ dir, err: messageOf(err) }, "cannot watch for plugins, looking now and then instead");
      }
      unwatchable.add(dir);
    }
  };
  const walk = async (dir: string, depth: number, found: Map<string, string>, dirs: Set<string>): Promise<void> => {
    await ensureWatch(dir);
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
      return unwatchable.size === 0;
    },
    scan: async () => {
      // It may go with its parent, and whoever comes first then would make it as it likes.
      await mkdir(root, { recursive: true, mode: registryMode });
      const found = new Map<string, string>();
      const dirs = new Set<string>();
      await walk(root, 0, found, dirs);
      for (const dir of [...watchers.keys()]) if (!dirs.has(dir)) unwatch(dir);
      for (const dir of unwatchable) if (!dirs.has(dir)) unwatchable.delete(dir);
      return found;
    },
    close: () => {
      for (const dir of [...watchers.keys()]) unwatch(dir);
    },
  };
}

/** Inode numbers are used again; the time of birth is not. */
function identityOf({ dev, ino, birthtimeNs }: BigIntStats): string {
  return `${dev}/${ino}/${birthtimeNs}`;
}
