import { constants } from "node:fs";
import { mkdir, open, readlink, rename, rm, symlink } from "node:fs/promises";
import { basename, dirname, isAbsolute, join } from "node:path";
import { ignoreErrno } from "../../lib/errno.ts";
import { AgentError, hasCode, messageOf, withContext } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import type { LogConfig } from "./create-body.ts";
import { readContainer } from "./labels.ts";
import type { WireInspect } from "./wire.ts";

export interface DockerLogOptions {
  /** `containerLogMaxSize` in bytes; negative: logs are not rotated. */
  maxSizeBytes: number;
  /** `containerLogMaxFiles`, the active one included. */
  maxFiles: number;
}

// The driver takes no "unlimited", and a size left out would be the one of the daemon's own `log-opts`.
const unlimitedBytes = Number.MAX_SAFE_INTEGER;

// As of CRI runtimes: everybody may see which logs there are.
const logDirMode = 0o755;

/**
 * Docker's own json-file driver, which rotates by itself. What the daemon has other defaults for is named: compressing holds up
 * the container's output in older daemons, and the mode that does not loses lines.
 */
function logConfig({ maxSizeBytes, maxFiles }: DockerLogOptions): LogConfig {
  const isRotated = maxSizeBytes >= 0;
  return {
    Type: "json-file",
    Config: {
      "max-size": String(isRotated ? Math.max(1, maxSizeBytes) : unlimitedBytes),
      "max-file": String(isRotated ? maxFiles : 1),
      compress: "false",
      mode: "blocking",
    },
  };
}

/** The log driver of new containers, as far as the daemon allows for it. */
export interface LogDriver {
  readonly config: LogConfig;
  /** True if a create call was refused for this config, and another one is to be tried. */
  giveWay(err: unknown): boolean;
}

/**
 * Docker adds its own `log-opts` to those of a container, and with a buffer's size among them refuses every mode but the one that
 * loses lines. That is its administrator's choice then: nothing tells it but the refusal.
 */
export function createLogDriver(options: DockerLogOptions, log: Logger): LogDriver {
  const wanted = logConfig(options);
  const { mode: _, ...withoutMode } = wanted.Config;
  let config = wanted;
  return {
    get config() {
      return config;
    },
    giveWay: (err) => {
      // Any number of containers may have been on their way when the first was refused.
      if (!hasCode(err, "Invalid") || !messageOf(err).includes(bufferRefusal)) return false;
      if (config === wanted) {
        config = { ...wanted, Config: withoutMode };
        const message = "the Docker daemon's log-opts set max-buffer-size: lines that come too fast are not logged";
        log.warn({ refusal: messageOf(err) }, message);
      }
      return true;
    },
  };
}

const bufferRefusal = "max-buffer-size option is only supported with";

/**
 * Puts a link to Docker's log file where the pod's logs lie. May be called again.
 *
 * Rejects with Invalid if the container has no log of ours.
 *
 * @param container as the daemon tells of it once it was started: only then it says where it writes
 */
export async function linkLog(container: WireInspect): Promise<void> {
  const { Id, LogPath = "", Config } = container;
  const { logPath } = readContainer(Config?.Labels ?? {});
  if (!isAbsolute(LogPath) || !isAbsolute(logPath)) {
    const message = `link log of container ${Id}: the daemon writes none for it; it has no log driver json-file or is no pod's`;
    throw new AgentError("Invalid", message);
  }
  try {
    await placeLink(LogPath, logPath);
  } catch (err) {
    throw withContext(err, `link log of container ${Id} to ${logPath}`);
  }
}

/**
 * Removes the link. What else is in its place stays: a file, which another runtime wrote, or the link of another container that
 * was to have the same path, as when the daemon was slow to make the first.
 */
export async function unlinkLog({ LogPath = "", Config }: WireInspect): Promise<void> {
  const { logPath } = readContainer(Config?.Labels ?? {});
  const target = await readlink(logPath).catch(ignoreErrno("ENOENT", "ENOTDIR", "EINVAL"));
  if (target !== undefined && target === LogPath) await rm(logPath, { force: true });
}

/** What is at `logPath` already, a log of an earlier runtime perhaps, is replaced at once. */
async function placeLink(target: string, logPath: string): Promise<void> {
  const dir = dirname(logPath);
  await mkdir(dir, { recursive: true, mode: logDirMode });
  // Through a descriptor, and not through a link: a pod that may write to the host's logs must not lead us elsewhere.
  const handle = await open(dir, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW);
  try {
    const link = join(`/proc/self/fd/${handle.fd}`, basename(logPath));
    if ((await readlink(link).catch(() => undefined)) === target) return;
    const temporary = `${link}.tmp`;
    await rm(temporary, { force: true });
    await symlink(target, temporary);
    await rename(temporary, link);
  } finally {
    await handle.close();
  }
}
