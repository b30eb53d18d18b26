import { isIPv6 } from "node:net";
import { readDocument } from "./document.ts";
import { type Flag, flagsOf } from "./flags.ts";
import type { ConfigHost } from "./host.ts";
import type { Loaded } from "./load-kubelet.ts";
import { type KubeProxyConfiguration, proxyFields, proxyFlagFields } from "./proxy-config.ts";
import { encodeTable, setValueAt, type Values, type ValuesOf, withDefaults } from "./schema.ts";
import { decodeFields, fail, noteSources, type Sources, supportWarnings } from "./sources.ts";
import { validateProxy, withPort } from "./validate-proxy.ts";

/** Everything that the proxy role is told. */
export interface ProxySettings {
  /** URL of the API server that overrides the kubeconfig's; "" if none. */
  master: string;
  /** Flags that are no fields. */
  flags: ProxyFlags;
  config: KubeProxyConfiguration;
}

const documentType = { apiVersion: "kubeproxy.config.k8s.io/v1alpha1", kind: "KubeProxyConfiguration" };

/** Flags of the proxy role. */
export const proxyCommandFlags = flagsOf(proxyFields, proxyFlagFields);

/** Flags of the proxy that are no fields, with their defaults. */
export type ProxyFlags = ValuesOf<typeof proxyFlagFields>;

/** What the command line says beside the configuration. */
export function proxyFlagValues(given: ReadonlyMap<Flag, unknown>): ProxyFlags {
  const values: Values = {};
  for (const [{ table, path }, value] of given) if (table === proxyFlagFields) setValueAt(values, path, value);
  return withDefaults(proxyFlagFields, values);
}

/**
 * Puts together the proxy's settings: with a file, that and the few flags that override it; without one, the flags.
 *
 * @param given flags; those of the proxy command, or none
 * @param anyMode the mode need not be one that works: rules are only removed
 * @throws ConfigError with a line for each problem
 */
export function loadProxySettings(
  given: ReadonlyMap<Flag, unknown>,
  file: string,
  host: Pick<ConfigHost, "readFile">,
  anyMode = false,
): Loaded<ProxySettings> {
  const sources: Sources = new Map();
  // As in the reference, what nobody knows is told and passed over: the file may be meant for another version.
  const warnings: string[] = [];
  const raw = file === "" ? {} : readDocument(file, documentType, host, warnings);
  const values: Values = decodeFields(proxyFields, raw, file, warnings);
  noteSources(sources, proxyFields, values, file);
  const ignored = applyFlags(values, given, sources, file !== "");
  const flags = file === "" ? proxyFlagValues(given) : withDefaults(proxyFlagFields, {});
  const config = withDefaults(proxyFields, withAddresses(values, flags));
  // These flags mean the mode in use, whichever that is.
  config.nftables.masqueradeAll ||=
    sources.get("iptables.masqueradeAll") === "--masquerade-all" && config.iptables.masqueradeAll;
  for (const [field, flag] of [
    ["syncPeriod", "--iptables-sync-period"],
    ["minSyncPeriod", "--iptables-min-sync-period"],
  ] as const) {
    if (sources.get(`iptables.${field}`) === flag) config.nftables[field] = config.iptables[field];
  }

  const problems = validateProxy(config).filter(({ path }) => !(anyMode && path === "mode"));
  fail(problems, sources, file === "" ? "configuration" : file);
  if (ignored.length > 0) warnings.push(`flags ignored because of --config ${file}: ${ignored.join(", ")}`);
  warnings.push(...supportWarnings(proxyFields, config, sources));
  const { master, ...others } = proxyFlagValues(given);
  return { settings: { master, flags: { master, ...others, config: file }, config }, warnings };
}

/** Puts flags over `values`. @returns those that a file rules out */
function applyFlags(values: Values, given: ReadonlyMap<Flag, unknown>, sources: Sources, hasFile: boolean): string[] {
  const ignored: string[] = [];
  for (const [{ table, path, flag }, value] of given) {
    const isField = table === proxyFields;
    if (hasFile && (isField ? !overridesFile(path) : portFlags.has(flag))) {
      ignored.push(`--${flag}`);
    } else if (isField && !(value === "" && emptyFlags.has(flag))) {
      setValueAt(values, path, value);
      sources.set(path.join("."), `--${flag}`);
    }
  }
  return ignored;
}

const portFlags = new Set(["healthz-port", "metrics-port"]);
// The reference ignores these when they are empty; of the addresses, instead of switching the server off.
const emptyFlags = new Set([
  "bind-address",
  "healthz-bind-address",
  "metrics-bind-address",
  "proxy-mode",
  "detect-local-mode",
]);

function overridesFile(path: readonly string[]): boolean {
  return path[0] === "hostnameOverride" || path[0] === "logging";
}

// Server addresses follow the family of bindAddress, and get a port when they have none. Port 0 switches a server off.
function withAddresses(values: Values, { healthzPort, metricsPort }: ProxyFlags): Values {
  const { bindAddress, healthzBindAddress, metricsBindAddress } = values;
  const v6 = typeof bindAddress === "string" && isIPv6(bindAddress);
  const place = (address: unknown, fallback: string, port: number) =>
    port === 0 ? "" : withPort(typeof address === "string" ? address : fallback, port);
  return {
    ...values,
    healthzBindAddress: place(healthzBindAddress, v6 ? "::" : "0.0.0.0", healthzPort),
    metricsBindAddress: place(metricsBindAddress, v6 ? "::1" : "127.0.0.1", metricsPort),
  };
}

/** The answer of the proxy's `/configz`: the configuration in use, as a file would say it. */
export function proxyConfigz(config: KubeProxyConfiguration): Values {
  const [group = ""] = documentType.apiVersion.split("/");
  const isDefault = config.mode === "nftables" && config.nodePortAddresses.length === 0;
  // A file that says nothing means this in the mode; said in a file it would also switch loopback off.
  return { [group]: proxyDocument(isDefault ? { ...config, nodePortAddresses: ["primary"] } : config) };
}

/** A proxy's configuration as a document that `--config` reads. */
export function proxyDocument(config: KubeProxyConfiguration): Values {
  return { ...documentType, ...encodeTable(proxyFields, config) };
}
