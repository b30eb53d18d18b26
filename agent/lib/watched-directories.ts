import { type FSWatcher, watch } from "node:fs";
import { realpath, stat } from "node:fs/promises";
import { dirname } from "node:path";
import { messageOf } from "./errors.ts";
import type { Logger } from "./log.ts";

/** Directories of which the kernel tells what changes in them. */
export class WatchedDirectories {
  readonly #watched = new Map<string, FSWatcher>();
  readonly #onEvent: () => void;
  readonly #log: Logger;

  constructor(onEvent: () => void, log: Logger) {
    this.#onEvent = onEvent;
    this.#log = log;
  }

  /** Watches these and no others, by the keys of {@link nearestDirectory}. What cannot be watched is tried again at the next call. */
  keep(wanted: ReadonlyMap<string, string>): void {
    for (const key of [...this.#watched.keys()]) if (!wanted.has(key)) this.#forget(key);
    for (const [key, dir] of wanted) {
      if (this.#watched.has(key)) continue;
      try {
        const watcher = watch(dir, { persistent: false }, () => this.#onEvent());
        this.#watched.set(key, watcher);
        watcher.on("error", () => this.#forget(key)); // the directory is gone; what comes in its place is found by looking
      } catch (err) {
        this.#log.debug({ dir, err: messageOf(err) }, "cannot watch a directory, looking at it now and then instead");
      }
    }
  }

  /** Watches none. */
  clear(): void {
    this.keep(new Map());
  }

  #forget(key: string): void {
    this.#watched.get(key)?.close();
    this.#watched.delete(key);
  }
}

/** `path`, or the nearest directory above it; the key tells apart directories that have its name one after the other. */
export async function nearestDirectory(path: string): Promise<[key: string, real: string]> {
  for (let at = path; ; at = dirname(at)) {
    try {
      const real = await realpath(at);
      const stats = await stat(real, { bigint: true });
      if (stats.isDirectory()) return [`${stats.dev}/${stats.ino} ${real}`, real];
    } catch (err) {
      if (at === dirname(at)) throw err;
    }
  }
}
