import { constants } from "node:fs";
import { lstat, open, readdir, rename, rm } from "node:fs/promises";
import { basename, dirname, join, relative } from "node:path";
import { pipeline } from "node:stream/promises";
import { createGzip } from "node:zlib";
import type { Clock } from "../lib/clock.ts";
import { errnoOf, ignoreErrno } from "../lib/errno.ts";
import { hasCode, messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { ignoreAbort } from "../lib/loop.ts";
import { isAtOrBeneath } from "../lib/mount.ts";
import type { ContainerSummary, Runtime } from "../runtime/port.ts";
import { fdPath, openInside } from "../volumes/safe-path.ts";
import { compressedName, planRotation, temporaryName } from "./log-rotation-plan.ts";

export interface LogRotationDeps {
  readonly runtime: Pick<Runtime, "list" | "containerStatus" | "reopenContainerLog">;
  /** True for UIDs of pods that this agent runs. */
  isKnown(podUID: string): boolean;
  readonly podLogsDir: string;
  /** `containerLogMaxSize` in bytes; negative: logs are not rotated. */
  readonly maxSizeBytes: number;
  /** `containerLogMaxFiles`: files of one log, the active one included. */
  readonly maxFiles: number;
  /** `containerLogMaxWorkers`: rotations at once. */
  readonly maxWorkers: number;
  /** `containerLogMonitorInterval`. */
  readonly intervalMs: number;
  readonly clock: Clock;
  readonly log: Logger;
}

export interface LogRotation {
  /** Looks at the logs of running containers every interval until `signal` aborts; a rotation that runs is finished. */
  run(signal: AbortSignal): Promise<void>;
  /** One look. Rejects only if the runtime cannot list its containers. */
  pass(): Promise<void>;
}

/**
 * Keeps container logs small: a log that has reached its size is renamed, the runtime is told to open a new one, and
 * older ones are compressed, then deleted.
 *
 * ```
 *   0.log                        active
 *   0.log.20260102-030405        rotated last; uncompressed, for those who still read it
 *   0.log.20260102-020304.gz     older
 * ```
 */
export function createLogRotation(deps: LogRotationDeps): LogRotation {
  const { clock, intervalMs, maxSizeBytes, log } = deps;
  const pass = async () => await rotateAll(deps);
  return {
    pass,
    run: async (signal) => {
      if (maxSizeBytes < 0) return;
      while (!signal.aborted) {
        await clock.sleep(intervalMs, signal).catch(ignoreAbort);
        if (signal.aborted) return;
        await pass().catch((err: unknown) =>
          log.warn({ err: messageOf(err) }, "containers not listed, logs not rotated"),
        );
      }
    },
  };
}

async function rotateAll(deps: LogRotationDeps): Promise<void> {
  const { runtime, isKnown, maxWorkers } = deps;
  const { containers } = await runtime.list();
  const waiting = containers.filter(({ state, podUID }) => state === "running" && isKnown(podUID));
  const work = async () => {
    for (let next = waiting.pop(); next !== undefined; next = waiting.pop()) await look(next, deps);
  };
  await Promise.all(Array.from({ length: Math.max(1, maxWorkers) }, work));
}

/** Looks at one container's log. Never rejects. */
async function look(container: ContainerSummary, deps: LogRotationDeps): Promise<void> {
  const { podNamespace, podName, name, id } = container;
  const log = deps.log.child({ pod: `${podNamespace}/${podName}`, container: name, containerID: id });
  try {
    const path = await logPathOf(container, deps);
    if (path === undefined) return;
    const size = await sizeOf(path);
    if (size === undefined || size < deps.maxSizeBytes) return;
    await rotate(path, id, log, deps);
    log.debug({ path, sizeBytes: size }, "log rotated");
  } catch (err) {
    if (hasCode(err, "NotFound")) return; // it ended meanwhile
    log.warn({ err: messageOf(err) }, "log not rotated, trying again later");
  }
}

/**
 * Where the log is. We chose the place ourselves, so nobody has to be asked; if there is nothing, the runtime is: the log
 * may lie elsewhere, or be lost, and then a new one is opened.
 */
async function logPathOf(
  container: ContainerSummary,
  { podLogsDir, runtime }: LogRotationDeps,
): Promise<string | undefined> {
  const { podNamespace, podName, podUID, name, attempt, id } = container;
  const usual = join(podLogsDir, `${podNamespace}_${podName}_${podUID}`, name, `${attempt}.log`);
  if (await isThere(usual)) return usual;
  const { logPath } = await runtime.containerStatus(id);
  if (logPath === "" || !isAtOrBeneath(logPath, podLogsDir)) return undefined; // the runtime's own affair
  if (await isThere(logPath)) return logPath;
  await runtime.reopenContainerLog(id);
  return logPath;
}

/** Bytes of a regular file; undefined for links and everything else. */
async function sizeOf(path: string): Promise<number | undefined> {
  const stats = await lstat(path).catch(ignoreErrno("ENOENT", "ENOTDIR"));
  return stats?.isFile() === true ? stats.size : undefined;
}

async function isThere(path: string): Promise<boolean> {
  return (await lstat(path).catch(ignoreErrno("ENOENT", "ENOTDIR"))) !== undefined;
}

async function rotate(path: string, containerID: string, log: Logger, deps: LogRotationDeps): Promise<void> {
  const { podLogsDir, runtime, maxFiles, clock } = deps;
  const base = basename(path);
  // Through a descriptor: a pod that may write to the host's logs could swap a directory for a link while we work.
  const handle = await openInside(podLogsDir, relative(podLogsDir, dirname(path)));
  try {
    const dir = fdPath(handle);
    const plan = planRotation(await readdir(dir), base, maxFiles, clock.now());
    for (const name of plan.remove) await rm(join(dir, name), { force: true });
    for (const name of plan.compress) {
      // A full disk must not keep the log from being rotated: that is what frees space.
      await compress(dir, name).catch((err: unknown) =>
        log.warn({ file: name, err: messageOf(err) }, "log not compressed"),
      );
    }
    if (plan.rotateTo === undefined) return;
    const active = join(dir, base);
    const rotated = join(dir, plan.rotateTo);
    await rename(active, rotated);
    try {
      await runtime.reopenContainerLog(containerID);
    } catch (err) {
      // The runtime still writes to the renamed file. A new one that is there all the same is newer: it stays.
      if (!(await isThere(active))) await rename(rotated, active);
      throw err;
    }
  } finally {
    await handle.close();
  }
}

/** Makes `<name>.gz` of a file. Killed at any moment, it leaves the file or its compressed form, and the rest is removed. */
async function compress(dir: string, name: string): Promise<void> {
  const path = join(dir, name);
  const temporary = join(dir, temporaryName(name));
  const source = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  try {
    const stats = await source.stat();
    if (!stats.isFile()) throw new Error(`${name} is not a regular file`);
    // Readable by those who could read the log; "wx" never writes through a link that is there.
    const target = await open(temporary, "wx", stats.mode & 0o777);
    try {
      // The streams close both files: a handle waits for its streams, so they must not be left open.
      await pipeline(source.createReadStream(), createGzip(), target.createWriteStream({ flush: true }));
    } finally {
      await target.close();
    }
    await rename(temporary, join(dir, compressedName(name)));
    await rm(path, { force: true });
  } catch (err) {
    if (errnoOf(err) !== "EEXIST") await rm(temporary, { force: true });
    throw err;
  } finally {
    await source.close();
  }
}
