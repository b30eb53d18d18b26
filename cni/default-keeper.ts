import type { Clock } from "../agent/lib/clock.ts";
import { messageOf } from "../agent/lib/errors.ts";
import { watchConfigDir } from "./config-watch.ts";
import { type DefaultConfigOptions, writeDefaultConfig } from "./default-config.ts";
import { Plugins } from "./plugins.ts";

export interface DefaultNetworkOptions extends Omit<DefaultConfigOptions, "podCIDRs" | "plugins"> {
  readonly clock: Clock;
}

type Outcome = Awaited<ReturnType<typeof writeDefaultConfig>>;

/**
 * Keeps the default network described while there is no other: a provider's description that comes is left alone, and when that goes,
 * or somebody deletes ours, ours is written again; also when plugins come or go, a minute later.
 */
export class DefaultNetwork {
  readonly #options: DefaultNetworkOptions;
  readonly #plugins: Plugins;
  readonly #stop = new AbortController();
  #podCIDRs: readonly string[] = [];
  #outcome: Outcome | undefined;
  #problem: string | undefined;
  #following: Promise<void> | undefined;
  /** The last write: one at a time, or an old one might end last. */
  #writing: Promise<unknown> = Promise.resolve();

  constructor(options: DefaultNetworkOptions) {
    this.#options = options;
    this.#plugins = new Plugins({ ...options, signal: this.#stop.signal });
  }

  /** The node's `podCIDRs`, at first and when they change. Rejects as {@link writeDefaultConfig}. */
  async use(podCIDRs: readonly string[]): Promise<void> {
    this.#podCIDRs = podCIDRs;
    await this.#write();
    this.#following ??= this.#follow();
  }

  /** Ends the watch; the file stays. */
  async close(): Promise<void> {
    this.#stop.abort();
    await this.#following;
  }

  async #follow(): Promise<void> {
    const { confDir: dir, clock, log } = this.#options;
    const onChange = async () => {
      await this.#write().then(
        () => {
          this.#problem = undefined;
        },
        (err: unknown) => {
          // It is tried again every minute.
          const problem = messageOf(err);
          if (this.#problem !== problem) log.warn({ dir, err: problem }, "cannot keep the default network");
          this.#problem = problem;
        },
      );
      return undefined;
    };
    await watchConfigDir({ dir, subdirs: () => [], onChange, clock, log }, this.#stop.signal);
  }

  async #write(): Promise<void> {
    const writing = this.#writing.then(
      async () => await writeDefaultConfig({ ...this.#options, podCIDRs: this.#podCIDRs, plugins: this.#plugins }),
    );
    this.#writing = writing.catch(() => {});
    const outcome = await writing;
    const { confDir, log } = this.#options;
    const isNews = outcome === "written" || (outcome === "foreign" && this.#outcome !== "foreign");
    this.#outcome = outcome;
    if (isNews) log.info({ confDir, podCIDRs: this.#podCIDRs, outcome }, "default network for pods");
  }
}
