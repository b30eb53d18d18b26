import { readlink, stat } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import type { Clock } from "./clock.ts";
import { messageOf } from "./errors.ts";
import type { Logger } from "./log.ts";
import { Loop } from "./loop.ts";
import { nearestDirectory, WatchedDirectories } from "./watched-directories.ts";

export interface WatchFilesOptions {
  /** Absolute paths. They need not exist, and neither do their directories. */
  readonly files: readonly string[];
  /**
   * Called once at start, and after any of the files may have become another one. It should read what it needs and compare:
   * calls may come without a change. One call at a time; a rejection is logged, and the call repeated later.
   */
  onChange(): void | Promise<void>;
  readonly clock: Clock;
  readonly log: Logger;
}

// What the kernel does not tell (another machine writes to a network file system, a directory that was not there yet)
// is noticed this late. The kubelet sets up its watches anew as often.
export const rearmMs = 60_000;
// Writers replace certificate and key one after the other: let them come to an end before looking.
export const settleMs = 50;
// Longer chains of links than this are loops.
const linksMax = 20;

/**
 * Watches files until `signal` aborts; then resolves. Never rejects. Renames over a file, writes into it, deletion and
 * re-creation are seen, and so is a symbolic link that leads elsewhere, be it the file, its directory (as Kubernetes' `..data`
 * is), or what these lead to.
 */
export async function watchFiles(options: WatchFilesOptions, signal: AbortSignal): Promise<void> {
  const { files, onChange, clock, log } = options;
  const watched = new WatchedDirectories(() => loop.wake(), log);
  let seen: string | undefined;
  let armedAtMs = clock.monotonic();

  const arm = async () => {
    if (clock.monotonic() - armedAtMs >= rearmMs) {
      watched.clear();
      armedAtMs = clock.monotonic();
    }
    const wanted = new Map((await Promise.all(files.map(directoriesOf))).flat());
    if (!signal.aborted) watched.keep(wanted);
  };
  const loop = new Loop({
    clock,
    pass: async () => {
      if (seen !== undefined) await clock.sleep(settleMs, signal);
      await arm();
      const now = (await Promise.all(files.map(identityOf))).join("\n");
      if (now === seen) return undefined;
      await onChange();
      seen = now;
      return undefined;
    },
    onError: (err) =>
      log.warn({ files, err: messageOf(err) }, "cannot look at watched files, trying again in a minute"),
    retryMs: () => rearmMs,
    resyncMs: rearmMs,
  });
  try {
    await loop.run(signal);
  } finally {
    watched.clear();
  }
}

/** Changes when the file that `path` leads to is replaced, rewritten, removed or made. */
async function identityOf(path: string): Promise<string> {
  try {
    const { dev, ino, size, mtimeNs, ctimeNs } = await stat(path, { bigint: true });
    return [dev, ino, size, mtimeNs, ctimeNs].join("/");
  } catch (err) {
    return messageOf(err);
  }
}

/**
 * The directories in which a change can lead `path` elsewhere: its own, and that of each link's target. Keys tell apart
 * directories that have the same name one after the other.
 */
async function directoriesOf(path: string): Promise<[key: string, dir: string][]> {
  const found: [string, string][] = [];
  let at = path;
  for (let links = 0; links < linksMax; links += 1) {
    const dir = await nearestDirectory(dirname(at));
    found.push(dir);
    // A directory on the way may be a link itself.
    const direct = dirname(at);
    const through = await readlink(direct).catch(() => undefined);
    if (through !== undefined) found.push(await nearestDirectory(dirname(direct)));
    const target = await readlink(at).catch(() => undefined);
    if (target === undefined) break;
    at = resolve(direct, target);
  }
  return found;
}
