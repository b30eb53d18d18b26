import { appendFile, mkdtemp, readdir, readFile, readlink, rename, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect } from "vitest";
import type { Clock } from "../../../../agent/lib/clock.ts";
import { systemClock } from "../../../../agent/lib/clock.ts";
import { silentLogger } from "../../../../agent/lib/log.ts";
import type { LogOptions } from "../../../../agent/server/logs/options.ts";
import { type LogReadDeps, readLog } from "../../../../agent/server/logs/reader.ts";

const plain: LogOptions = { follow: false, previous: false, timestamps: false, stream: "All" };

/** One CRI line of stdout. */
export function line(text: string): string {
  return `2026-01-02T03:04:05.678901234Z stdout F ${text}\n`;
}

/** A directory with one container's log; deleted at the end. */
export async function logDir() {
  const dir = await mkdtemp(join(tmpdir(), "nodelet-log-"));
  const path = join(dir, "0.log");
  let rotations = 0;
  return {
    dir,
    path,
    append: async (...texts: string[]) => await appendFile(path, texts.map(line).join("")),
    /** As an agent does it, but for the runtime's part. @returns the new name */
    rotate: async () => {
      rotations += 1;
      const name = `0.log.20260102-0304${String(rotations).padStart(2, "0")}`;
      await rename(path, join(dir, name));
      return join(dir, name);
    },
    [Symbol.asyncDispose]: async () => await rm(dir, { recursive: true, force: true }),
  };
}

/** Reads a log in the background and collects what comes. */
export function reading(path: string, options: Partial<LogOptions> = {}, deps: Partial<LogReadDeps> = {}) {
  const stop = new AbortController();
  const chunks: string[] = [];
  const state = { isRunning: true };
  const done = readLog(
    path,
    { ...plain, ...options },
    {
      // A follower's seconds pass faster here.
      clock: hurried(20),
      log: silentLogger,
      isRunning: () => Promise.resolve(state.isRunning),
      write: (chunk) => {
        chunks.push(chunk.toString());
        return Promise.resolve();
      },
      ...deps,
    },
    stop.signal,
  );
  const text = () => chunks.join("");
  return {
    text,
    done,
    /** The container ends. @returns everything, once the reader has noticed */
    end: async () => {
      state.isRunning = false;
      await done;
      return text();
    },
    saw: async (want: string) => await expect.poll(text, { interval: 2, timeout: 2_000 }).toBe(want),
    [Symbol.asyncDispose]: async () => {
      stop.abort();
      await done.catch(() => undefined);
    },
  };
}

/** Follows a log for a client that takes one chunk and then nothing until `resume` is called. Resolves when it has that one. */
export async function readingSlowly(path: string) {
  const chunks: string[] = [];
  const gate = Promise.withResolvers<void>();
  const reader = reading(
    path,
    { follow: true },
    {
      write: async (chunk) => {
        chunks.push(chunk.toString());
        await gate.promise;
      },
    },
  );
  await expect.poll(() => chunks.length).toBe(1);
  return {
    resume: () => gate.resolve(),
    text: () => chunks.join(""),
    [Symbol.asyncDispose]: async () => await reader[Symbol.asyncDispose](),
  };
}

/** What this process has open in `dir`. */
export async function openIn(dir: string): Promise<string[]> {
  const targets = await Promise.all(
    (await readdir("/proc/self/fd")).map(async (fd) => await readlink(`/proc/self/fd/${fd}`).catch(() => "")),
  );
  return targets.filter((target) => target.startsWith(dir));
}

/** Whether this process watches `dir`, as its inotify descriptors tell. */
export async function isWatched(dir: string): Promise<boolean> {
  const inode = (await stat(dir)).ino.toString(16);
  const infos = await Promise.all(
    (await readdir("/proc/self/fdinfo")).map(
      async (fd) => await readFile(`/proc/self/fdinfo/${fd}`, "utf8").catch(() => ""),
    ),
  );
  return infos.some((info) => new RegExp(`^inotify .*\\bino:${inode} `, "m").test(info));
}

/** The machine's clock with shorter waits. */
export function hurried(factor: number): Clock {
  return {
    ...systemClock,
    sleep: async (ms, signal) => await systemClock.sleep(ms / factor, signal),
    after: (ms, fn) => systemClock.after(ms / factor, fn),
  };
}
