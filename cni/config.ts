import { fieldError, isObject, type JSONObject, kindOf, listIn, stringIn } from "./json.ts";
import { isSpecVersion, type SpecVersion } from "./version.ts";

/** One plugin of a network. */
export interface PluginConfig {
  /** The name of the plugin's executable. */
  readonly type: string;
  /** The keys of `runtimeConfig` that the plugin asks for. */
  readonly capabilities: ReadonlySet<string>;
  /** The plugin's object as it was written; goes to the plugin with little added. */
  readonly body: JSONObject;
}

/** A network: what a `.conflist` says, and a `.conf` or `.json` as a list of one. */
export interface NetworkConfig {
  readonly name: string;
  /** The versions it may be run with, that of `cniVersion` first; never empty. Which one it is depends on the plugins. */
  readonly versions: readonly SpecVersion[];
  readonly disableCheck: boolean;
  readonly disableGC: boolean;
  /** False: the directory that is called as the network may hold further plugins. */
  readonly loadOnlyInlinedPlugins: boolean;
  /** In the order of ADD. Empty only before the further plugins are appended. */
  readonly plugins: readonly PluginConfig[];
}

// The specification's rule for names of networks; also keeps a name from leaving the directories it is a part of.
const namePattern = /^[a-zA-Z0-9][a-zA-Z0-9_.-]*$/;
// Configurations without a version were written before there were any.
const versionUnsaid: SpecVersion = "0.1.0";

/**
 * Reads a network's configuration. Pure.
 *
 * @param fileName tells the kinds apart: `.conflist`, and `.conf` or `.json` with a single plugin
 * @throws AgentError Invalid with the field's path
 */
export function parseNetworkConfig(fileName: string, text: string): NetworkConfig {
  const top = parseText(text);
  if (!fileName.endsWith(".conflist")) {
    if (top["plugins"] !== undefined) throw fieldError("plugins", "a list of plugins needs a file name in .conflist");
    return { ...parseHead(top), loadOnlyInlinedPlugins: true, plugins: [parsePlugin(top, "")] };
  }
  const head = parseHead(top);
  if (top["plugins"] === undefined) {
    if (head.loadOnlyInlinedPlugins) throw fieldError("plugins", "must be set, as loadOnlyInlinedPlugins is true");
    return head;
  }
  const plugins = listIn(top, "plugins");
  if (plugins.length === 0) throw fieldError("plugins", "must name at least one plugin");
  return {
    ...head,
    plugins: plugins.map((plugin, i) => {
      if (!isObject(plugin)) throw fieldError(`plugins[${i}]`, `must be an object, is ${kindOf(plugin)}`);
      return parsePlugin(plugin, `plugins[${i}].`);
    }),
  };
}

/** Reads a file that holds one further plugin of a network. Pure; throws as {@link parseNetworkConfig}. */
export function parsePluginConfig(text: string): PluginConfig {
  return parsePlugin(parseText(text), "");
}

/**
 * A network as the text of a `.conflist` that needs nothing besides itself: one version, all plugins inlined. Pure.
 */
export function renderNetworkConfig(config: NetworkConfig, version: SpecVersion): string {
  return JSON.stringify({
    cniVersion: version,
    name: config.name,
    ...(config.disableCheck ? { disableCheck: true } : {}),
    ...(config.disableGC ? { disableGC: true } : {}),
    loadOnlyInlinedPlugins: true,
    plugins: config.plugins.map(({ body }) => body),
  });
}

function parseText(text: string): JSONObject {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (err) {
    throw fieldError("file", `is no JSON (${err instanceof Error ? err.message : String(err)})`);
  }
  if (!isObject(value)) throw fieldError("file", `must hold an object, holds ${kindOf(value)}`);
  return value;
}

function parseHead(top: JSONObject): NetworkConfig {
  const name = stringIn(top, "name");
  if (name === undefined || name === "") throw fieldError("name", "must be set");
  if (!namePattern.test(name)) {
    throw fieldError("name", `"${name}" must begin with a letter or digit and hold only those and "_", ".", "-"`);
  }
  return {
    name,
    versions: parseVersions(top),
    disableCheck: flagIn(top, "disableCheck"),
    disableGC: flagIn(top, "disableGC"),
    loadOnlyInlinedPlugins: flagIn(top, "loadOnlyInlinedPlugins"),
    plugins: [],
  };
}

/** A version alone must be one of ours; in a list, those that are not are for others. */
function parseVersions(top: JSONObject): SpecVersion[] {
  const one = stringIn(top, "cniVersion");
  const first = one === "" ? undefined : one;
  if (top["cniVersions"] === undefined) {
    const version = first ?? versionUnsaid;
    if (!isSpecVersion(version)) throw fieldError("cniVersion", `"${version}" is not supported`);
    return [version];
  }
  const listed = listIn(top, "cniVersions").map((version, i) => {
    if (typeof version === "string") return version;
    throw fieldError(`cniVersions[${i}]`, `must be a string, is ${kindOf(version)}`);
  });
  const all = new Set(first === undefined ? listed : [first, ...listed]);
  const known = [...all].filter(isSpecVersion);
  if (all.size === 0) return [versionUnsaid];
  if (known.length === 0) throw fieldError("cniVersions", `none of ${[...all].join(", ")} is supported`);
  return known;
}

function parsePlugin(body: JSONObject, path: string): PluginConfig {
  const type = stringIn(body, "type", path);
  if (type === undefined || type === "") throw fieldError(`${path}type`, "must be set");
  // It becomes the name of a file to execute.
  if (type.includes("/") || type.includes("\0") || type === "." || type === "..") {
    throw fieldError(`${path}type`, `"${type}" must be the name of a plugin, not a path`);
  }
  const capabilities = body["capabilities"] ?? {};
  if (!isObject(capabilities)) {
    throw fieldError(`${path}capabilities`, `must be an object, is ${kindOf(capabilities)}`);
  }
  for (const [key, value] of Object.entries(capabilities)) {
    if (typeof value !== "boolean") {
      throw fieldError(`${path}capabilities.${key}`, `must be true or false, is ${kindOf(value)}`);
    }
  }
  const declared = Object.keys(capabilities).filter((key) => capabilities[key] === true);
  return { type, capabilities: new Set(declared), body };
}

/** A flag; libcni takes it as a string too. */
function flagIn(top: JSONObject, key: string): boolean {
  const value = top[key] ?? false;
  if (typeof value === "boolean") return value;
  const text = typeof value === "string" ? value.toLowerCase() : undefined;
  if (text === "true" || text === "false") return text === "true";
  throw fieldError(key, `must be true or false, is ${text === undefined ? kindOf(value) : `"${text}"`}`);
}
