import { AgentError, messageOf } from "../agent/lib/errors.ts";
import type { CachedAttachment } from "./cache.ts";
import type { NetworkConfig, PluginConfig } from "./config.ts";
import type { JSONObject } from "./json.ts";
import { oneLine } from "./plugin-words.ts";
import type { Deadline, FoundPlugin, PluginOutcome, Plugins } from "./plugins.ts";
import { type CNITarget, type Command, pluginInput } from "./request.ts";
import { type CNIResult, resultIn } from "./result.ts";
import { isAtLeast, negotiate, type SpecVersion } from "./version.ts";

/** A network that can be run: its executables are there, and all of them speak `version`. */
export interface RunnableNetwork {
  readonly config: NetworkConfig;
  readonly version: SpecVersion;
  readonly plugins: readonly { readonly config: PluginConfig; readonly found: FoundPlugin }[];
}

/** What DEL and CHECK need to know of a network: they look for its executables one by one. */
export type VersionedNetwork = Pick<RunnableNetwork, "config" | "version">;

/** An attached container, as GC hands it to plugins. */
export interface ValidAttachment {
  containerID: string;
  ifname: string;
}

/** Looks for the network's executables and settles the version; or says in words what is missing. */
export async function resolveNetwork(
  plugins: Plugins,
  config: NetworkConfig,
): Promise<RunnableNetwork | { problem: string }> {
  const found: { config: PluginConfig; found: FoundPlugin }[] = [];
  for (const plugin of config.plugins) {
    const executable = await plugins.find(plugin.type);
    if ("problem" in executable) return executable;
    found.push({ config: plugin, found: executable });
  }
  const versions = await Promise.all(
    found.map(async ({ found: plugin }) => ({ type: plugin.type, supported: await plugins.versionsOf(plugin) })),
  );
  const agreed = negotiate(config.versions, versions);
  return "problem" in agreed ? agreed : { config, version: agreed.version, plugins: found };
}

/**
 * A configuration with the version to use for DEL and CHECK. What ADD of this agent recorded has but one; for others' records it is
 * settled anew, and where that is not possible the plugins themselves shall say why.
 */
export async function withVersion(plugins: Plugins, config: NetworkConfig): Promise<VersionedNetwork> {
  const [first, ...others] = config.versions;
  if (first !== undefined && others.length === 0) return { config, version: first };
  const network = await resolveNetwork(plugins, config);
  return "problem" in network ? { config, version: config.versions.at(-1) ?? "0.1.0" } : network;
}

/**
 * ADD: each plugin in turn gets the result of the one before it. Rejects at the first that fails; what was done until then is the
 * caller's to undo.
 * @returns the last plugin's result, and the same as JSON in the network's version, for the cache
 */
export async function addToNetwork(
  plugins: Plugins,
  { config, version, plugins: chain }: RunnableNetwork,
  target: CNITarget,
  { deadline, signal }: { deadline: Deadline; signal?: AbortSignal | undefined },
): Promise<{ raw: JSONObject; result: CNIResult }> {
  let last: { raw: JSONObject; result: CNIResult } | undefined;
  for (const { config: plugin, found } of chain) {
    const options = { prevResult: last?.raw, capabilities: target.capabilities };
    const input = pluginInput(plugin, { name: config.name, version }, options);
    const outcome = await plugins.run({ command: "ADD", plugin: found, input, target, deadline, signal });
    last = readResult(stdoutOf(outcome), plugin.type, version);
  }
  if (last === undefined) throw new AgentError("Invalid", `network "${config.name}" has no plugins`);
  return last;
}

/**
 * DEL: in reverse order, all with the final result of ADD, where the version passes it on.
 *
 * @param keepGoing false: it ends at the first plugin that fails, as the specification says, so that an address is not given to
 *   another pod while a rule still leads to the old one. True: what can be undone is undone
 */
export async function deleteFromNetwork(
  plugins: Plugins,
  network: VersionedNetwork,
  target: CNITarget,
  options: { result: JSONObject | undefined; keepGoing: boolean; signal?: AbortSignal | undefined },
): Promise<void> {
  const { config, version } = network;
  const prevResult = isAtLeast(version, "0.4.0") ? resultAs(options.result, version) : undefined;
  const failures: AgentError[] = [];
  if (config.plugins.length === 0) throw new AgentError("Invalid", `network "${config.name}" has no plugins`);
  const deadline = plugins.within(plugins.timeouts.verbMs);
  for (const plugin of config.plugins.toReversed()) {
    try {
      await runOne(plugins, "DEL", plugin, network, { target, prevResult, deadline, signal: options.signal });
    } catch (err) {
      if (!options.keepGoing) throw err;
      failures.push(err as AgentError);
    }
  }
  throwAll(failures);
}

/** CHECK: rejects at the first plugin that finds something missing. Does nothing where the version or the network has no CHECK. */
export async function checkInNetwork(
  plugins: Plugins,
  network: VersionedNetwork,
  target: CNITarget,
  options: { result: JSONObject; signal?: AbortSignal | undefined },
): Promise<void> {
  const { config, version } = network;
  if (config.disableCheck || !isAtLeast(version, "0.4.0")) return;
  const prevResult = resultAs(options.result, version);
  const deadline = plugins.within(plugins.timeouts.verbMs);
  for (const plugin of config.plugins) {
    await runOne(plugins, "CHECK", plugin, network, { target, prevResult, deadline, signal: options.signal });
  }
}

/**
 * STATUS: rejects with what the first plugin that cannot serve ADD says. Does nothing before 1.1.0.
 */
export async function statusOfNetwork(
  plugins: Plugins,
  network: RunnableNetwork,
  { deadline, signal }: { deadline: Deadline; signal?: AbortSignal | undefined },
): Promise<void> {
  if (!isAtLeast(network.version, "1.1.0")) return;
  for (const { config: plugin } of network.plugins) {
    await runOne(plugins, "STATUS", plugin, network, { deadline, signal });
  }
}

/** GC: tells every plugin which attachments are in use, also after one of them failed. Does nothing before 1.1.0. */
export async function collectInNetwork(
  plugins: Plugins,
  network: RunnableNetwork,
  valid: readonly ValidAttachment[],
  signal?: AbortSignal,
): Promise<void> {
  if (network.config.disableGC || !isAtLeast(network.version, "1.1.0")) return;
  // The second name is how the specification first wrote it, and how some plugins read it.
  const extra = { "cni.dev/valid-attachments": valid, "cni.dev/attachments": valid };
  const failures: AgentError[] = [];
  const deadline = plugins.within(plugins.timeouts.gcMs);
  for (const { config: plugin } of network.plugins) {
    await runOne(plugins, "GC", plugin, network, { extra, deadline, signal }).catch((err: unknown) => {
      failures.push(err as AgentError);
    });
  }
  throwAll(failures);
}

/** The target with what ADD was called with, as far as the cache knows it. Pure. */
export function targetOf(attachment: CachedAttachment, netnsPath: string): CNITarget {
  const { containerID, ifName, args, capabilities } = attachment;
  return { containerID, ifName, netnsPath, args, capabilities };
}

interface OneRun {
  target?: CNITarget;
  prevResult?: JSONObject | undefined;
  extra?: JSONObject;
  signal?: AbortSignal | undefined;
  deadline: Deadline;
}

/** Runs one plugin for its exit code only. */
async function runOne(
  plugins: Plugins,
  command: Command,
  plugin: PluginConfig,
  { config, version }: VersionedNetwork,
  { target, prevResult, extra = {}, signal, deadline }: OneRun,
): Promise<void> {
  const found = await plugins.find(plugin.type);
  if ("problem" in found) throw new AgentError("Unavailable", found.problem);
  const options = { prevResult, capabilities: target?.capabilities, extra };
  const input = pluginInput(plugin, { name: config.name, version }, options);
  const run = { command, plugin: found, input, deadline, signal, ...(target === undefined ? {} : { target }) };
  stdoutOf(await plugins.run(run));
}

function stdoutOf(outcome: PluginOutcome): string {
  if (!outcome.ok) throw new AgentError(outcome.code, outcome.message);
  return outcome.stdout;
}

/** A plugin's result. One of another version than asked for is put into that form. */
function readResult(stdout: string, type: string, version: SpecVersion): { raw: JSONObject; result: CNIResult } {
  try {
    if (stdout.trim() === "") throw new AgentError("Invalid", "it printed nothing");
    return resultIn(version, JSON.parse(stdout));
  } catch (err) {
    const message = `plugin type="${type}" failed (add): its result cannot be read: ${oneLine(messageOf(err))}`;
    throw new AgentError("Internal", message, { cause: err });
  }
}

/** A cached result in the form of `version`; `undefined` if it cannot be read: DEL must do without then. */
function resultAs(raw: JSONObject | undefined, version: SpecVersion): JSONObject | undefined {
  if (raw === undefined) return undefined;
  try {
    return resultIn(version, raw).raw;
  } catch {
    return undefined;
  }
}

function throwAll(failures: readonly AgentError[]): void {
  const [first] = failures;
  if (first === undefined) return;
  throw new AgentError(first.code, failures.map(messageOf).join("; "), { cause: first });
}
