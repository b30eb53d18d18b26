import { dirname, join } from "node:path";
import type { Clock } from "../agent/lib/clock.ts";
import { messageOf } from "../agent/lib/errors.ts";
import type { Logger } from "../agent/lib/log.ts";
import { Loop } from "../agent/lib/loop.ts";
import { nearestDirectory, WatchedDirectories } from "../agent/lib/watched-directories.ts";

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
  const watched = new WatchedDirectories(() => loop.wake(), log);
  let isFirst = true;

  const arm = async () => {
    const wanted = new Map<string, string>();
    const below = subdirs().map((name) => join(dir, name));
    // The directory may be a link: its replacement shows where the link lies.
    for (const path of [dirname(dir), dir, ...below]) {
      const [key, real] = await nearestDirectory(path);
      wanted.set(key, real);
    }
    if (!signal.aborted) watched.keep(wanted);
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
    watched.clear();
  }
}
