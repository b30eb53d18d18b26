import { backoffMs } from "../lib/backoff.ts";
import type { Clock } from "../lib/clock.ts";
import { AgentError, messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { Loop } from "../lib/loop.ts";
import { decidePlugins, type PluginAction, type PluginState } from "./decide.ts";
import type { PluginHandler, PluginInfo, PluginType } from "./port.ts";
import {
  type AnnouncedPlugin,
  type OpenRegistration,
  openRegistration,
  type RegistrationClient,
} from "./registration.ts";
import { openSocketTree, type SocketTree } from "./scan.ts";

// Between tries to register one socket: kubelet's 500 ms doubling to 2m2s.
export const registrationBackoff = { baseMs: 500, maxMs: 122_000 };
// The kernel tells of changes. This is for what it may not tell, such as changes in a mount of another machine.
export const rescanMs = 60_000;
// The same while the kernel does not let us watch (fs.inotify.max_user_watches).
export const rescanUnwatchedMs = 5_000;

export interface PluginManagerOptions {
  /** ROOT/plugins_registry. */
  dir: string;
  handlers: Partial<Record<PluginType, PluginHandler>>;
  clock: Clock;
  log: Logger;
  /** How to talk to plugins; replaced by tests. */
  open?: OpenRegistration;
}

/** Finds plugins and registers them with the handler of their type. */
export interface PluginManager {
  /** Paths of the sockets that are there, and of those whose plugins are registered. */
  sockets(): { seen: string[]; registered: string[] };
  /** Runs until `signal` aborts. What is registered then stays so: the plugins do not end with the agent. */
  run(signal: AbortSignal): Promise<void>;
}

/** Makes the manager; nothing is looked at before `run`. */
export function createPluginManager(options: PluginManagerOptions): PluginManager {
  return new Manager(options);
}

type Entry = PluginState & { readonly plugin?: AnnouncedPlugin; readonly work?: AbortController };

/**
 * ```
 *            register ok                    gone, or made anew
 *   (seen) ─▶ busy ───────────▶ registered ────────────────────▶ busy (deregister) ─▶ (unknown)
 *              │  ▲ retry, or made anew
 *              ▼  │
 *             failed ──gone──▶ (unknown)
 * ```
 */
class Manager implements PluginManager {
  readonly #options: PluginManagerOptions;
  readonly #open: OpenRegistration;
  readonly #entries = new Map<string, Entry>();
  readonly #running = new Set<Promise<void>>();
  readonly #loop: Loop;
  #tree: SocketTree | undefined;
  #seen: string[] = [];
  #isStopping = false;

  constructor(options: PluginManagerOptions) {
    this.#options = options;
    this.#open = options.open ?? openRegistration;
    this.#loop = new Loop({
      clock: options.clock,
      resyncMs: rescanMs,
      retryMs: () => rescanUnwatchedMs,
      onError: (err) => options.log.warn({ dir: options.dir, err: messageOf(err) }, "cannot look for plugins"),
      pass: (signal) => this.#pass(signal),
    });
  }

  sockets(): { seen: string[]; registered: string[] } {
    const registered = [...this.#entries].flatMap(([path, { kind }]) => (kind === "registered" ? [path] : []));
    return { seen: this.#seen, registered };
  }

  async run(signal: AbortSignal): Promise<void> {
    const { dir, log } = this.#options;
    const tree = openSocketTree(dir, () => this.#loop.wake(), log);
    this.#tree = tree;
    try {
      await this.#loop.run(signal);
    } finally {
      tree.close();
      this.#isStopping = true;
      for (const { work } of this.#entries.values()) work?.abort();
      await Promise.all(this.#running);
    }
  }

  async #pass(signal: AbortSignal): Promise<number> {
    const { clock } = this.#options;
    const seen = (await this.#tree?.scan()) ?? new Map<string, string>();
    this.#seen = [...seen.keys()];
    const { actions, nextAtMs } = decidePlugins(seen, this.#entries, clock.monotonic());
    if (!signal.aborted) for (const action of actions) this.#act(action);
    const retryInMs = nextAtMs === undefined ? rescanMs : nextAtMs - clock.monotonic();
    return Math.max(0, Math.min(retryInMs, this.#tree?.isWatched === true ? rescanMs : rescanUnwatchedMs));
  }

  #act(action: PluginAction): void {
    const { path } = action;
    const entry = this.#entries.get(path);
    switch (action.kind) {
      case "register":
        this.#start(path, action.identity, (signal) => this.#register(action, signal));
        return;
      case "deregister":
        if (entry?.plugin !== undefined) {
          const { plugin } = entry;
          this.#start(path, entry.identity, () => this.#deregister(path, plugin));
        }
        return;
      case "cancel":
        entry?.work?.abort();
        return;
      case "forget":
        this.#entries.delete(path);
        return;
      default:
        action satisfies never;
    }
  }

  /** Runs one piece of work on a socket; what it resolves to is the socket's next state, undefined: as if never seen. */
  #start(path: string, identity: string, run: (signal: AbortSignal) => Promise<Entry | undefined>): void {
    const work = new AbortController();
    this.#entries.set(path, { kind: "busy", identity, work });
    const done = run(work.signal).then((entry) => {
      if (entry === undefined) this.#entries.delete(path);
      else this.#entries.set(path, entry);
      this.#running.delete(done);
      this.#loop.wake();
    });
    this.#running.add(done);
  }

  /** Never rejects. */
  async #register(
    { path, identity, failures }: PluginAction & { kind: "register" },
    signal: AbortSignal,
  ): Promise<Entry | undefined> {
    const { clock, log } = this.#options;
    let client: RegistrationClient | undefined;
    try {
      client = await this.#open(path);
      const plugin = await client.info(signal);
      await this.#takeIntoUse(plugin, client, signal);
      const { type, name, endpoint } = plugin;
      log.info({ plugin: name, type, endpoint, socket: path }, "plugin registered");
      return { kind: "registered", identity, plugin };
    } catch (err) {
      if (signal.aborted) return undefined;
      const failuresNow = failures + 1;
      const restMs = backoffMs(failuresNow, registrationBackoff);
      log.warn({ socket: path, err: messageOf(err), retryInMs: restMs }, "cannot register a plugin");
      return { kind: "failed", identity, failures: failuresNow, retryAtMs: clock.monotonic() + restMs };
    } finally {
      client?.close();
    }
  }

  /** Rejects if the plugin cannot be used, with what it was told; nothing of it is in use then. */
  async #takeIntoUse(plugin: AnnouncedPlugin, client: RegistrationClient, signal: AbortSignal): Promise<void> {
    const { type, name } = plugin;
    const handler = this.#handlerOf(plugin);
    if (handler === undefined) {
      const problem = `plugin ${name} is of type "${type}", which this node does not know`;
      await this.#refuse(plugin, problem, client, signal);
      throw new AgentError("Unimplemented", problem);
    }
    try {
      try {
        await handler.register(plugin, signal);
      } catch (err) {
        if (!signal.aborted) await this.#refuse(plugin, messageOf(err), client, signal);
        throw err;
      }
      await client.notify(undefined, signal);
    } catch (err) {
      if (!this.#isStopping) await this.#deregisterWith(handler, plugin);
      throw err;
    }
  }

  async #refuse({ name }: PluginInfo, problem: string, client: RegistrationClient, signal: AbortSignal): Promise<void> {
    await client.notify(problem, signal).catch((err: unknown) => {
      this.#options.log.debug({ plugin: name, err: messageOf(err) }, "cannot tell a plugin that it was refused");
    });
  }

  async #deregister(path: string, plugin: AnnouncedPlugin): Promise<undefined> {
    const handler = this.#handlerOf(plugin);
    if (handler !== undefined) await this.#deregisterWith(handler, plugin);
    this.#options.log.info({ plugin: plugin.name, type: plugin.type, socket: path }, "plugin deregistered");
    return undefined;
  }

  /** Never rejects: the plugin is gone, whatever else fails. */
  async #deregisterWith(handler: PluginHandler, plugin: PluginInfo): Promise<void> {
    try {
      await handler.deregister(plugin);
    } catch (err) {
      this.#options.log.warn({ plugin: plugin.name, err: messageOf(err) }, "a plugin did not deregister cleanly");
    }
  }

  #handlerOf({ type }: AnnouncedPlugin): PluginHandler | undefined {
    return new Map<string, PluginHandler>(Object.entries(this.#options.handlers)).get(type);
  }
}
