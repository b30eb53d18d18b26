import { isIPv6 } from "node:net";
import { readDocument } from "./document.ts";
import { type Flag, flagsOf } from "./flags.ts";
import type { ConfigHost } from "./host.ts";
import type { Loaded } from "./load-kubelet.ts";
import { type KubeProxyConfiguration, proxyFields, proxyFlagFields } from "./proxy-config.ts";
import { encodeTable, isRecord, setValueAt, type Values, withDefaults } from "./schema.ts";
import { decodeFields, fail, noteSources, type Sources, supportWarnings } from "./sources.ts";
import { validateProxy, withPort } from "./validate-proxy.ts";

/** Everything that the proxy role is told. */
export interface ProxySettings {
  /** URL of the API server that overrides the kubeconfig's; "" if none. */
  master: string;
  config: KubeProxyConfiguration;
}

const documentType = { apiVersion: "kubeproxy.config.k8s.io/v1alpha1", kind: "KubeProxyConfiguration" };

// IANA-free ports that kube-proxy has always used.
const healthzPortDefault = 10256;
const metricsPortDefault = 10249;

/** Flags of the proxy role. */
export const proxyCommandFlags = flagsOf(proxyFields, proxyFlagFields);

/** The proxy's action flags. */
export function proxyActions(given: ReadonlyMap<Flag, unknown>) {
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
  const warnings: string[] = [];
  const { master, healthzPort, metricsPort } = proxyActions(given);
  const values: Values = file === "" ? {} : decodeFields(proxyFields, readDocument(file, documentType, host), file);
  noteSources(sources, proxyFields, values, file);

  const ignored: string[] = [];
  for (const [{ table, path, flag }, value] of given) {
    const isAction = table !== proxyFields && flag !== "healthz-port" && flag !== "metrics-port";
    if (isAction) continue;
    if (file !== "" && !overridesFile(path)) ignored.push(`--${flag}`);
    else if (table === proxyFields && !(value === "" && addressFlags.has(flag))) {
      setValueAt(values, path, value);
      sources.set(path.join("."), `--${flag}`);
    }
  }
  if (ignored.length > 0) warnings.push(`flags ignored because of --config ${file}: ${ignored.join(", ")}`);

  const ports =
    file === "" ? { healthzPort, metricsPort } : { healthzPort: healthzPortDefault, metricsPort: metricsPortDefault };
  const config = withDefaults(proxyFields, withAddresses(values, ports));
  // The flag means the mode in use, whichever that is.
  if (sources.get("iptables.masqueradeAll") === "--masquerade-all")
    config.nftables.masqueradeAll = config.iptables.masqueradeAll;
  const problems = validateProxy(config).filter(({ path }) => !(anyMode && path === "mode"));
  fail(problems, sources, file === "" ? "configuration" : file);
  warnings.push(...supportWarnings(proxyFields, config, sources));
  return { settings: { master, config }, warnings };
}

const addressFlags = new Set(["bind-address", "healthz-bind-address", "metrics-bind-address"]);

function overridesFile(path: readonly string[]): boolean {
  return path[0] === "hostnameOverride" || path[0] === "logging";
}

// Server addresses follow the family of bindAddress, and get a port when they have none. Port 0 switches a server off.
function withAddresses(
  values: Values,
  { healthzPort, metricsPort }: { healthzPort: number; metricsPort: number },
): Values {
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

/** A proxy's configuration as a document that `--config` reads. */
export function proxyDocument(config: KubeProxyConfiguration): Values {
  const fields = encodeTable(proxyFields, config);
  return { ...documentType, ...(isRecord(fields) ? fields : {}) };
}
