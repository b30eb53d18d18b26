import { open } from "node:fs/promises";
import { constants } from "node:fs";
import { join } from "node:path";
import { errnoOf } from "../agent/lib/errno.ts";
import { AgentError, messageOf } from "../agent/lib/errors.ts";
import { namesIn } from "../agent/lib/names-in.ts";
import { type NetworkConfig, parseNetworkConfig, parsePluginConfig } from "./config.ts";

/** What a configuration directory holds. */
export interface ConfigDir {
  /** The network to use; `undefined` if no file describes one. */
  readonly config: NetworkConfig | undefined;
  /** The file it was read from. */
  readonly file: string | undefined;
  /** Files before it that describe none, each with the reason: `/etc/cni/net.d/10-a.conf: type: must be set`. */
  readonly problems: readonly string[];
}

// A network's configuration is a few KiB; whatever is larger is something else.
export const configBytesMax = 1 << 20;
const extensions = [".conflist", ".conf", ".json"];

/**
 * The network of a directory: the first file, by name, that describes one. Files that do not are named in `problems` and passed
 * over. A directory that is not there holds nothing. Never rejects.
 */
export async function readConfigDir(dir: string): Promise<ConfigDir> {
  const problems: string[] = [];
  const names = await namesIn(dir).catch((err: unknown) => {
    problems.push(`${dir}: ${messageOf(err)}`);
    return [];
  });
  for (const name of names.filter(isConfigName).sort(byBytes)) {
    const file = join(dir, name);
    try {
      const text = await readSmallFile(file);
      if (text === undefined) continue;
      const config = await withFurtherPlugins(dir, parseNetworkConfig(name, text));
      return { config, file, problems };
    } catch (err) {
      problems.push(`${file}: ${messageOf(err)}`);
    }
  }
  return { config: undefined, file: undefined, problems };
}

// A file that was good is not given up at once when it cannot be read: somebody may be writing it, and pods that start in this
// moment would land in the next file's network.
export const brokenGraceMs = 2_000;

/**
 * Whether what was just read takes the place of what is in use. Pure.
 *
 * @param brokenSinceMs when the file in use was first found broken; `undefined`: it was good at the last look
 * @returns `waitMs`: keep what is in use, and look again after this long
 */
export function decideTakeOver(
  inUse: ConfigDir | undefined,
  next: ConfigDir,
  brokenSinceMs: number | undefined,
  nowMs: number,
): { takeOver: true } | { takeOver: false; brokenSinceMs: number; waitMs: number } {
  const file = inUse?.file;
  const isBroken = file !== undefined && next.problems.some((problem) => problem.startsWith(`${file}: `));
  if (!isBroken) return { takeOver: true };
  const sinceMs = brokenSinceMs ?? nowMs;
  const waitMs = sinceMs + brokenGraceMs - nowMs;
  return waitMs > 0 ? { takeOver: false, brokenSinceMs: sinceMs, waitMs } : { takeOver: true };
}

/** Appends the plugins of `DIR/NETWORK/*.conf`, unless the network says not to. */
async function withFurtherPlugins(dir: string, config: NetworkConfig): Promise<NetworkConfig> {
  if (config.loadOnlyInlinedPlugins) return config;
  const plugins = [...config.plugins];
  const names = await namesIn(join(dir, config.name));
  for (const name of names.filter((entry) => entry.endsWith(".conf")).sort(byBytes)) {
    const text = await readSmallFile(join(dir, config.name, name));
    if (text === undefined) continue;
    try {
      plugins.push(parsePluginConfig(text));
    } catch (err) {
      throw new AgentError("Invalid", `${config.name}/${name}: ${messageOf(err)}`, { cause: err });
    }
  }
  if (plugins.length === 0) {
    throw new AgentError("Invalid", `plugins: must be set, as there is no ${config.name}/*.conf either`);
  }
  return { ...config, plugins };
}

/** A regular file's text; `undefined` for what is none, or has gone. Never waits for a pipe's other end. */
async function readSmallFile(path: string): Promise<string | undefined> {
  let file;
  try {
    file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (err) {
    if (errnoOf(err) === "ENOENT") return undefined;
    throw err;
  }
  try {
    const stats = await file.stat();
    if (!stats.isFile()) return undefined;
    if (stats.size > configBytesMax) {
      throw new AgentError("Invalid", `file: has ${stats.size} bytes, more than ${configBytesMax}`);
    }
    return await file.readFile("utf8");
  } finally {
    await file.close();
  }
}

function isConfigName(name: string): boolean {
  return extensions.some((extension) => name.endsWith(extension));
}

/** As other runtimes sort the same directory: by bytes, not by language. */
function byBytes(a: string, b: string): number {
  return Buffer.compare(Buffer.from(a), Buffer.from(b));
}
