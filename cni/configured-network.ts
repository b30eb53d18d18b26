import type { Clock } from "../agent/lib/clock.ts";
import { AgentError } from "../agent/lib/errors.ts";
import type { Logger } from "../agent/lib/log.ts";
import type { NetworkConfig } from "./config.ts";
import { type ConfigDir, decideTakeOver, readConfigDir } from "./config-dir.ts";
import { watchConfigDir } from "./config-watch.ts";
import { resolveNetwork, type RunnableNetwork } from "./network.ts";
import type { Plugins } from "./plugins.ts";

export interface ConfiguredNetworkOptions {
  readonly confDir: string;
  readonly plugins: Plugins;
  readonly clock: Clock;
  readonly log: Logger;
  /** Replaced by tests. */
  readonly read?: typeof readConfigDir;
}

/** The network in use: what the configuration directory said when it was last looked at. */
export class ConfiguredNetwork {
  readonly #options: ConfiguredNetworkOptions;
  #current: ConfigDir | undefined;
  #brokenSinceMs: number | undefined;
  #reloading: Promise<number | undefined> | undefined;
  #onChange: () => void = () => {};

  constructor(options: ConfiguredNetworkOptions) {
    this.#options = options;
  }

  /** `undefined` if there is none; looks then. */
  async config(): Promise<NetworkConfig | undefined> {
    if (this.#current?.config === undefined) await this.#reload();
    return this.#current?.config;
  }

  /** With its executables. Rejects with Unavailable if there is no configuration or one of them is missing. */
  async runnable(): Promise<RunnableNetwork> {
    const config = await this.config();
    if (config === undefined) throw this.missing();
    const network = await resolveNetwork(this.#options.plugins, config);
    if ("problem" in network) throw new AgentError("Unavailable", `network "${config.name}": ${network.problem}`);
    return network;
  }

  /** The error that says why there is no configuration. */
  missing(): AgentError {
    const { problems = [] } = this.#current ?? {};
    const why = problems.length === 0 ? "" : ` (${problems.join("; ")})`;
    const message = `cni plugin not initialized: no network config found in ${this.#options.confDir}${why}`;
    return new AgentError("Unavailable", message);
  }

  /** Follows the directory until `signal` aborts. `onChange` is called after another network, or none, came into use. */
  async watch(signal: AbortSignal, onChange: () => void = () => {}): Promise<void> {
    const { confDir: dir, clock, log } = this.#options;
    this.#onChange = onChange;
    const subdirs = () => {
      const config = this.#current?.config;
      return config === undefined || config.loadOnlyInlinedPlugins ? [] : [config.name];
    };
    await watchConfigDir({ dir, subdirs, onChange: async () => await this.#reload(), clock, log }, signal);
  }

  /**
   * Takes over what the directory says. One look at a time, or the older might be the last to end; who comes meanwhile waits for it
   * with the first.
   *
   * @returns the ms after which to look again, if that is soon
   */
  async #reload(): Promise<number | undefined> {
    this.#reloading ??= this.#readAndTakeOver().finally(() => {
      this.#reloading = undefined;
    });
    return await this.#reloading;
  }

  async #readAndTakeOver(): Promise<number | undefined> {
    const { confDir, clock, log, read = readConfigDir } = this.#options;
    const next = await read(confDir);
    const before = this.#current;
    const decided = decideTakeOver(before, next, this.#brokenSinceMs, clock.monotonic());
    this.#brokenSinceMs = decided.takeOver ? undefined : decided.brokenSinceMs;
    if (!decided.takeOver) return decided.waitMs;
    this.#current = next;
    for (const problem of next.problems) {
      if (before?.problems.includes(problem) !== true) log.warn({ err: problem }, "passing over a CNI configuration");
    }
    if (JSON.stringify(identityOf(before)) === JSON.stringify(identityOf(next))) return undefined;
    const { config, file } = next;
    const types = config?.plugins.map(({ type }) => type);
    if (config === undefined) log.info({ dir: confDir }, "there is no CNI configuration");
    else log.info({ file, network: config.name, plugins: types }, "using a CNI network");
    this.#onChange();
    return undefined;
  }
}

/** What makes one configuration another. Pure. */
function identityOf(dir: ConfigDir | undefined): unknown {
  if (dir === undefined) return undefined;
  const { config, file } = dir;
  if (config === undefined) return { file: "" };
  const { plugins, ...head } = config;
  return { file, head, plugins: plugins.map(({ body }) => body) };
}
