import { AgentError } from "../agent/lib/errors.ts";
import type { PluginConfig } from "./config.ts";
import type { JSONObject } from "./json.ts";
import type { SpecVersion } from "./version.ts";

/** `CNI_ARGS`, in the order given. */
export type CNIArgs = readonly (readonly [key: string, value: string])[];

/** A container's interface in a network. */
export interface CNITarget {
  /** The sandbox's ID. */
  containerID: string;
  /** `/proc/PID/ns/net` or a file the namespace is bound to; "" if there is none any more. */
  netnsPath: string;
  /** The interface's name in the sandbox. Default {@link defaultIfName}. */
  ifName?: string;
  args?: CNIArgs;
  /** Capability arguments by name: `portMappings`, `bandwidth`, `dns`, `ipRanges`, `cgroupPath` … */
  capabilities?: Readonly<Record<string, unknown>>;
}

/** The name of a pod's only interface, that Kubernetes takes the pod's addresses from. */
export const defaultIfName = "eth0";

export type Command = "ADD" | "DEL" | "CHECK" | "GC" | "STATUS" | "VERSION";

// IFNAMSIZ, with its terminating zero.
const ifNameLengthMax = 15;

/**
 * Refuses what no plugin would take, and what would lead out of the cache's directory. Pure.
 *
 * @throws AgentError Invalid
 */
export function checkTarget({ containerID, ifName = defaultIfName, args = [] }: CNITarget): void {
  const invalid = (what: string) => new AgentError("Invalid", what);
  if (!/^[a-zA-Z0-9][a-zA-Z0-9_.-]*$/.test(containerID)) throw invalid(`container ID "${containerID}" is not valid`);
  // oxlint-disable-next-line no-control-regex -- none may be in a name
  if (!/^[^/:\s\0]+$/.test(ifName) || ifName === "." || ifName === ".." || ifName.length > ifNameLengthMax) {
    throw invalid(`interface name "${ifName}" is not valid`);
  }
  for (const [key, value] of args) {
    if (/[;=]/.test(key) || value.includes(";")) throw invalid(`CNI argument ${key}: must not hold ";"`);
  }
}

/** A plugin's variables, besides the agent's own, which libcni passes on too. Pure. */
export function pluginEnv(
  command: Command,
  binDirs: readonly string[],
  target?: CNITarget,
): Record<`CNI_${string}`, string> {
  return {
    CNI_COMMAND: command,
    CNI_CONTAINERID: target?.containerID ?? "",
    CNI_NETNS: target?.netnsPath ?? "",
    CNI_IFNAME: target === undefined ? "" : (target.ifName ?? defaultIfName),
    CNI_ARGS: (target?.args ?? []).map(([key, value]) => `${key}=${value}`).join(";"),
    CNI_PATH: binDirs.join(":"),
  };
}

/**
 * What a plugin reads on its standard input: its own configuration, the network's name, the version, the result so far, and those
 * capability arguments that it declares. `capabilities` stays in, as libcni leaves it: plugins that delegate read it. Pure.
 */
export function pluginInput(
  plugin: PluginConfig,
  network: { name: string; version: SpecVersion },
  options: {
    prevResult?: JSONObject | undefined;
    capabilities?: Readonly<Record<string, unknown>> | undefined;
    extra?: JSONObject;
  } = {},
): JSONObject {
  const { prevResult, capabilities = {}, extra = {} } = options;
  const wanted = Object.entries(capabilities).filter(
    ([name, value]) => value !== undefined && plugin.capabilities.has(name),
  );
  return {
    ...plugin.body,
    ...extra,
    name: network.name,
    cniVersion: network.version,
    ...(prevResult === undefined ? {} : { prevResult }),
    ...(wanted.length === 0 ? {} : { runtimeConfig: Object.fromEntries(wanted) }),
  };
}
