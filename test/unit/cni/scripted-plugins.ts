import { chmod, mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Clock, systemClock } from "../../../agent/lib/clock.ts";
import { type Logger, silentLogger } from "../../../agent/lib/log.ts";
import { namesIn } from "../../../agent/lib/names-in.ts";
import { type CNI, createCNI } from "../../../cni/index.ts";
import { pluginTimeouts, type PluginTimeouts } from "../../../cni/plugins.ts";

/** One run of a scripted plugin, as the plugin saw it. */
export interface Call {
  plugin: string;
  command: string;
  env: Record<string, string>;
  input: Record<string, unknown>;
}

/** Shell text by command; what is not given succeeds, and ADD answers with an address. */
export type Script = Partial<Record<"ADD" | "DEL" | "CHECK" | "GC" | "STATUS" | "VERSION", string>>;

const variables = ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"];
const allVersions = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
export const versionScript = (supported: string[]) =>
  `printf '%s' '${JSON.stringify({ cniVersion: "1.1.0", supportedVersions: supported })}'`;
/** An exit with this error object. */
export const failure = (error: object) => `printf '%s' '${JSON.stringify(error)}'; exit 1`;
/** An ADD that answers with this result, in the version asked for. */
export const answer = (result: object) => `printf '%s' '${JSON.stringify(result)}'`;

/** Directories for a CNI host whose plugins are shell scripts that write down how they were called. */
export class ScriptedNode {
  readonly dir: string;
  readonly confDir: string;
  readonly binDir: string;
  readonly cacheDir: string;
  readonly #callsFile: string;
  readonly #made: CNI[] = [];

  private constructor(dir: string) {
    this.dir = dir;
    this.confDir = join(dir, "conf");
    this.binDir = join(dir, "bin");
    this.cacheDir = join(dir, "cache");
    this.#callsFile = join(dir, "calls");
  }

  static async create(): Promise<ScriptedNode> {
    const node = new ScriptedNode(await mkdtemp(join(tmpdir(), "nodelet-cni-")));
    for (const path of [node.confDir, node.binDir]) await mkdir(path);
    await node.plugin("loopback");
    return node;
  }

  cni(options: { timeouts?: Partial<PluginTimeouts>; clock?: Clock; log?: Logger } = {}): CNI {
    const { confDir, cacheDir } = this;
    const timeouts = { ...pluginTimeouts, ...options.timeouts };
    const clock = options.clock ?? systemClock;
    const log = options.log ?? silentLogger;
    const cni = createCNI({ confDir, binDirs: [this.binDir], cacheDir, log, timeouts, clock });
    this.#made.push(cni);
    return cni;
  }

  async plugin(name: string, script: Script = {}): Promise<void> {
    const all: Script = {
      ADD: answer({ ips: [{ address: "10.1.0.5/24" }] }),
      VERSION: versionScript(allVersions),
      ...script,
    };
    const cases = Object.entries(all).map(([command, text]) => `${command}) ${text} ;;`);
    // Nothing but the shell itself, which is quick; a call is written down before it acts, with one write.
    const text = `#!/bin/sh
IFS= read -r input
if [ "$CNI_COMMAND" != VERSION ] && [ "$CNI_IFNAME" != lo ]; then
  printf '%s\\n' "${name}" ${variables.map((key) => `"$${key}"`).join(" ")} "$input" >> "${this.#callsFile}"
fi
case "$CNI_COMMAND" in
${cases.join("\n")}
esac
`;
    const path = join(this.binDir, name);
    await writeFile(path, text);
    await chmod(path, 0o755);
  }

  async network(config: object, file = "10-net.conflist"): Promise<void> {
    await mkdir(this.confDir, { recursive: true });
    await writeFile(join(this.confDir, file), JSON.stringify(config));
  }

  /** Every call so far but VERSION and those for `lo`, in order. */
  async calls(): Promise<Call[]> {
    const lines = (await readFile(this.#callsFile, "utf8").catch(() => "")).split("\n").slice(0, -1);
    const width = variables.length + 2;
    return Array.from({ length: lines.length / width }, (_, i) => {
      const [plugin = "", ...rest] = lines.slice(i * width, (i + 1) * width);
      const env = Object.fromEntries(variables.map((key, at) => [key, rest[at] ?? ""]));
      return {
        plugin,
        command: env["CNI_COMMAND"] ?? "",
        env,
        input: JSON.parse(rest.at(-1) ?? "") as Record<string, unknown>,
      };
    });
  }

  /** The calls in short: `ADD bridge`. */
  async story(): Promise<string[]> {
    return (await this.calls()).map(({ plugin, command }) => `${command} ${plugin}`);
  }

  /** The names of the records in the cache. */
  async records(): Promise<string[]> {
    return (await namesIn(join(this.cacheDir, "results"))).sort((a, b) => a.localeCompare(b));
  }

  /** The text of a file in the node's directory; "" if there is none. */
  async read(name: string): Promise<string> {
    return await readFile(join(this.dir, name), "utf8").catch(() => "");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const cni of this.#made) await cni.close();
    await rm(this.dir, { recursive: true, force: true });
  }
}
