import { type FSWatcher, watch } from "node:fs";
import { open, readdir, stat } from "node:fs/promises";
import { dirname, join } from "node:path";
import type { Pod } from "../../kube/types.ts";
import { backoffMs } from "../../lib/backoff.ts";
import type { Clock } from "../../lib/clock.ts";
import { errnoOf } from "../../lib/errno.ts";
import { hasCode, messageOf } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import { Loop } from "../../lib/loop.ts";
import { parsePod } from "./parse.ts";
import type { Deliver } from "./port.ts";
import { buildStaticPod, type StaticPodOptions } from "./static-pod.ts";

/** The reference's limit of one manifest. */
export const manifestBytesMax = 10 << 20;
/** Editors and copying tools write in several steps: they come to an end before we look. */
export const settleMs = 50;
/** A file that makes no sense may be half written: it is complained about when it has not changed for this long. */
export const quietMs = 500;
// Of a directory in which something is written all the time, this much of a second is left to others.
const intervalMsMin = 200;
// The reference's: 1 s doubling to 20 s.
const listRetry = { baseMs: 1_000, maxMs: 20_000 };

export interface FileSourceOptions extends StaticPodOptions {
  /** staticPodPath: a directory of manifests, or one. It need not exist. */
  path: string;
  /** fileCheckFrequency: how often everything is looked at again although nobody said that it changed. */
  checkMs: number;
  deliver: Deliver;
  /** A manifest cannot be used; one line that names it. Also told to the log. */
  onProblem(message: string): void;
  clock: Clock;
  log: Logger;
}

/** What is known of one manifest. */
interface Known {
  /** Changes when the file does. */
  identity: string;
  /** Monotonic ms at which it was first seen like that. */
  sinceMs: number;
  /** What it says; while it is bad, what it said before. */
  pod: Pod | undefined;
  problem: string | undefined;
  isReported: boolean;
}

/**
 * Delivers the pods of a directory of manifests, or of one file, until `signal` aborts: all of them at first and after
 * every change. One bad manifest holds up no other; the pod that it used to describe is kept for `checkMs`, so that a slip of
 * an editor is no outage. Never rejects.
 */
export async function runFileSource(options: FileSourceOptions, signal: AbortSignal): Promise<void> {
  await new FileSource(options).run(signal);
}

class FileSource {
  readonly #options: FileSourceOptions;
  readonly #loop: Loop;
  #known = new Map<string, Known>();
  #hasRead = false;
  #watcher: { key: string; handle: FSWatcher } | undefined;

  constructor(options: FileSourceOptions) {
    const { clock, log, path } = options;
    this.#options = options;
    this.#loop = new Loop({
      clock,
      pass: async (signal) => await this.#pass(signal),
      onError: (err) => log.warn({ path, err: messageOf(err) }, "static pods not read, those known stay; trying again"),
      retryMs: (failures) => backoffMs(failures, listRetry),
      resyncMs: options.checkMs,
      minIntervalMs: Math.min(intervalMsMin, options.checkMs),
    });
  }

  async run(signal: AbortSignal): Promise<void> {
    try {
      await this.#loop.run(signal);
    } finally {
      this.#unwatch();
    }
  }

  async #pass(signal: AbortSignal): Promise<number> {
    const { path, clock, deliver } = this.#options;
    if (this.#hasRead) await clock.sleep(settleMs, signal);
    await this.#watch(); // first: what changes while we read asks for another pass
    const found = new Map<string, Known>();
    for (const file of await manifestsAt(path)) {
      signal.throwIfAborted();
      const known = await this.#look(file);
      if (known !== undefined) found.set(file, known);
    }
    this.#known = found;
    this.#hasRead = true;
    const nowMs = clock.monotonic();
    const pods = [...found.values()].flatMap((known) => podsOf(known, nowMs, this.#options.checkMs));
    deliver(pods);
    return this.#restMs(nowMs);
  }

  /** @returns undefined if there is no such file any more, or no regular one */
  async #look(file: string): Promise<Known | undefined> {
    const { clock } = this.#options;
    const before = this.#known.get(file);
    const read = await readManifest(file, before?.identity);
    if (read === undefined) return undefined;
    const nowMs = clock.monotonic();
    if (read === "unchanged") {
      if (before !== undefined) this.#report(file, before, nowMs);
      return before;
    }
    const known: Known = {
      identity: read.identity,
      sinceMs: nowMs,
      pod: before?.pod,
      problem: read.problem,
      isReported: false,
    };
    if (read.text === undefined) return known;
    try {
      const { pods, warnings } = parsePod(read.text);
      for (const warning of warnings) this.#options.log.warn({ file, warning }, "static pod manifest");
      const [manifest] = pods;
      if (manifest === undefined) return undefined;
      const pod = buildStaticPod(manifest, { source: "file", origin: file }, this.#options, clock.now());
      return { ...known, pod, problem: undefined };
    } catch (err) {
      if (!hasCode(err, "Invalid")) throw err;
      return { ...known, problem: err.message };
    }
  }

  #report(file: string, known: Known, nowMs: number): void {
    if (known.problem === undefined || known.isReported || nowMs - known.sinceMs < quietMs) return;
    known.isReported = true;
    const { log, onProblem, checkMs } = this.#options;
    const keptMs = known.pod === undefined ? 0 : checkMs - (nowMs - known.sinceMs);
    const stays = keptMs > 0 ? { stopsInMs: Math.round(keptMs) } : {};
    log.warn({ file, problem: known.problem, ...stays }, "static pod manifest not used");
    onProblem(`static pod manifest ${file} is not used: ${known.problem}`);
  }

  // Until the next look that is due by time alone.
  #restMs(nowMs: number): number {
    const { checkMs } = this.#options;
    const dues = [...this.#known.values()].flatMap(({ problem, isReported, sinceMs, pod }) => {
      if (problem === undefined) return [];
      const atMs = isReported ? (pod === undefined ? undefined : sinceMs + checkMs) : sinceMs + quietMs;
      return atMs === undefined || atMs <= nowMs ? [] : [atMs - nowMs];
    });
    return Math.min(checkMs, ...dues);
  }

  /** Watches the directory in which changes show; the nearest one above it while it is not there. */
  async #watch(): Promise<void> {
    const { path, log } = this.#options;
    const place = await watchedDirectory(path);
    if (place === undefined || place.key === this.#watcher?.key) return;
    this.#unwatch();
    try {
      const handle = watch(place.dir, { persistent: false }, () => this.#loop.wake());
      this.#watcher = { key: place.key, handle };
      handle.on("error", () => this.#unwatch()); // it is gone: the next look finds what is there instead
    } catch (err) {
      log.debug(
        { dir: place.dir, err: messageOf(err) },
        "cannot watch a directory, looking at it now and then instead",
      );
    }
  }

  #unwatch(): void {
    this.#watcher?.handle.close();
    this.#watcher = undefined;
  }
}

// A manifest that went bad keeps its pod for a while.
function podsOf({ pod, problem, sinceMs }: Known, nowMs: number, checkMs: number): Pod[] {
  if (pod === undefined) return [];
  return problem === undefined || nowMs - sinceMs < checkMs ? [pod] : [];
}

/** The manifests to read, in lexical order: of a directory, all but dot files. None while there is nothing. */
async function manifestsAt(path: string): Promise<string[]> {
  try {
    const names = await readdir(path);
    return names
      .filter((name) => !name.startsWith("."))
      .sort()
      .map((name) => join(path, name));
  } catch (err) {
    if (errnoOf(err) === "ENOTDIR") return [path];
    if (errnoOf(err) === "ENOENT") return [];
    throw err;
  }
}

interface ReadManifest {
  identity: string;
  /** undefined: it cannot be read, and `problem` says why. */
  text?: string;
  problem: string | undefined;
}

/** @returns undefined for what is no file (any more); "unchanged" if it still is the one called `identity` */
async function readManifest(
  file: string,
  identity: string | undefined,
): Promise<ReadManifest | "unchanged" | undefined> {
  try {
    // Looked at before it is opened: opening a pipe would wait for somebody to write to it.
    const { isRegular, identity: present, size } = await identify(file);
    if (!isRegular) return undefined;
    if (present === identity) return "unchanged";
    if (size > manifestBytesMax) return { identity: present, problem: tooBig };
    const handle = await open(file, "r");
    try {
      const buffer = Buffer.alloc(Math.min(size, manifestBytesMax) + 1);
      const { bytesRead } = await readAll(handle, buffer);
      // One byte more than there was: it grows, and the watch tells when it has grown.
      const text = buffer.toString("utf8", 0, Math.min(bytesRead, buffer.length));
      return { identity: present, text, problem: undefined };
    } finally {
      await handle.close();
    }
  } catch (err) {
    if (errnoOf(err) === "ENOENT") return undefined;
    return { identity: `unreadable: ${messageOf(err)}`, problem: `cannot be read: ${messageOf(err)}` };
  }
}

const tooBig = `is larger than ${manifestBytesMax >> 20} MiB`;

async function readAll(handle: Awaited<ReturnType<typeof open>>, buffer: Buffer): Promise<{ bytesRead: number }> {
  let bytesRead = 0;
  while (bytesRead < buffer.length) {
    const { bytesRead: more } = await handle.read(buffer, bytesRead, buffer.length - bytesRead);
    if (more === 0) break;
    bytesRead += more;
  }
  return { bytesRead };
}

async function identify(file: string): Promise<{ isRegular: boolean; identity: string; size: number }> {
  const found = await stat(file, { bigint: true });
  const { dev, ino, size, mtimeNs, ctimeNs } = found;
  return { isRegular: found.isFile(), identity: [dev, ino, size, mtimeNs, ctimeNs].join("/"), size: Number(size) };
}

/** @returns undefined if not even the root can be looked at */
async function watchedDirectory(path: string): Promise<{ dir: string; key: string } | undefined> {
  for (let at = path; ; at = dirname(at)) {
    const found = await stat(at, { bigint: true }).catch(() => undefined);
    if (found?.isDirectory() === true) return { dir: at, key: `${found.dev}/${found.ino} ${at}` };
    if (at === dirname(at)) return undefined;
  }
}
