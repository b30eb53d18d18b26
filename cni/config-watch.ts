import { type FSWatcher, watch } from "node:fs";
import { realpath, stat } from "node:fs/promises";
import { dirname, join } from "node:path";
import type { Clock } from "../agent/lib/clock.ts";
import { messageOf } from "../agent/lib/errors.ts";
import type { Logger } from "../agent/lib/log.ts";
import { Loop } from "../agent/lib/loop.ts";

export interface ConfigWatchOptions {
  readonly dir: string;
  /** Directories below `dir` that belong to the networks in use; they need not exist. */
  subdirs(): readonly string[];
  /** Called at start, and after any change. Resolves to the ms after which it wants to be called again, or undefined. */
  onChange(): Promise<number | undefined>;
  readonly clock: Clock;
  readonly log: Logger;
}

// Installers write, and then write again: let them come to an end.
const settleMs = 50;
// Backs the events: what a network file system does not tell is noticed this late.
const resyncMs = 60_000;

/**
 * Watches a configuration directory until `signal` aborts; then resolves. Never rejects. The directory may appear later, go, and
 * come back; of one that is not there, the nearest directory above it is watched.
 */
export async function watchConfigDir(options: ConfigWatchOptions, signal: AbortSignal): Promise<void> {
  const { dir, subdirs, onChange, clock, log } = options;
  const watched = new Map<string, FSWatcher>();
  let isFirst = true;

  const forget = (key: string) => {
    watched.get(key)?.close();
    watched.delete(key);
  };
  const arm = async () => {
    const wanted = new Map<string, string>();
    const below = subdirs().map((name) => join(dir, name));
    // The directory may be a link: its replacement shows where the link lies.
    for (const path of [dirname(dir), dir, ...below]) {
      const [key, real] = await nearestDirectory(path);
      wanted.set(key, real);
    }
    for (const key of [...watched.keys()]) if (!wanted.has(key)) forget(key);
    for (const [key, path] of wanted) {
      if (watched.has(key) || signal.aborted) continue;
      try {
        const watcher = watch(path, { persistent: false }, () => loop.wake());
        watched.set(key, watcher);
        watcher.on("error", () => forget(key));
      } catch (err) {
        log.debug({ dir: path, err: messageOf(err) }, "cannot watch a directory, looking at it now and then instead");
      }
    }
  };
  const loop = new Loop({
    clock,
    pass: async () => {
      if (!isFirst) await clock.sleep(settleMs, signal);
      isFirst = false;
      await arm(); // before looking: what changes after the look wakes us
      return await onChange();
    },
    onError: (err) =>
      log.warn({ dir, err: messageOf(err) }, "cannot look at the CNI configuration, trying again in a minute"),
    retryMs: () => resyncMs,
    resyncMs,
  });
  try {
    await loop.run(signal);
  } finally {
    for (const key of [...watched.keys()]) forget(key);
  }
}

/** `path`, or the nearest directory above it; the key tells apart directories that have its name one after the other. */
async function nearestDirectory(path: string): Promise<[key: string, real: string]> {
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
