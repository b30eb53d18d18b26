import { isIP, isIPv6 } from "node:net";
import { isCIDR } from "./kinds.ts";
import type { Problem } from "./problems.ts";
import type { KubeProxyConfiguration } from "./proxy-config.ts";
import { checkFeatureGates, when } from "./validate-kubelet.ts";
import { kubeletVersion } from "../version.ts";

/** What is wrong with a proxy's configuration beyond what its fields' kinds say. */
export function validateProxy(config: KubeProxyConfiguration): Problem[] {
  return [
    ...checkFeatureGates(config),
    ...checkMode(config),
    ...checkAddresses(config),
    ...checkLocalDetection(config),
    ...checkShownVersion(config),
  ];
}

// As in the reference: metrics are hidden for one minor version before they go.
function checkShownVersion({ showHiddenMetricsForVersion: version }: KubeProxyConfiguration): Problem[] {
  const [, major = "", minor = ""] = /^v(\d+)\.(\d+)\./.exec(kubeletVersion) ?? [];
  const previous = `${major}.${Number(minor) - 1}`;
  const isGood = version === "" || version === previous;
  return when(!isGood, "showHiddenMetricsForVersion", `must be omitted or ${previous}, not "${version}"`);
}

function checkMode({ mode, iptables, nftables }: KubeProxyConfiguration): Problem[] {
  return [
    ...when(mode === "ipvs", "mode", "ipvs is not supported yet; leave it empty, or use iptables or nftables"),
    ...Object.entries({ iptables, nftables }).flatMap(([name, { minSyncPeriod, syncPeriod }]) =>
      when(minSyncPeriod > syncPeriod, `${name}.minSyncPeriod`, `must be at most ${name}.syncPeriod`),
    ),
  ];
}

function checkAddresses(config: KubeProxyConfiguration): Problem[] {
  const { bindAddress, healthzBindAddress: healthz, metricsBindAddress: metrics, nodePortAddresses } = config;
  return [
    ...when(isIP(bindAddress) === 0, "bindAddress", `must be an IP address, not "${bindAddress}"`),
    ...when(healthz !== "" && !isIPAndPort(healthz), "healthzBindAddress", `must be address:port, not "${healthz}"`),
    ...when(!isIPAndPort(metrics), "metricsBindAddress", `must be address:port, not "${metrics}"`),
    ...nodePortAddresses.flatMap((text, i) =>
      when(
        text === "primary" ? nodePortAddresses.length > 1 : !isCIDR(text),
        `nodePortAddresses[${i}]`,
        text === "primary" ? "must have nothing beside primary" : `must be a CIDR or primary, not "${text}"`,
      ),
    ),
  ];
}

function checkLocalDetection({ detectLocalMode, detectLocal, clusterCIDR }: KubeProxyConfiguration): Problem[] {
  return [
    ...when(
      detectLocalMode === "BridgeInterface" && detectLocal.bridgeInterface === "",
      "detectLocal.bridgeInterface",
      "must be set when detectLocalMode is BridgeInterface",
    ),
    ...when(
      detectLocalMode === "InterfaceNamePrefix" && detectLocal.interfaceNamePrefix === "",
      "detectLocal.interfaceNamePrefix",
      "must be set when detectLocalMode is InterfaceNamePrefix",
    ),
    ...when(
      detectLocalMode === "ClusterCIDR" && clusterCIDR !== "" && !isCIDRPair(clusterCIDR),
      "clusterCIDR",
      `must be one CIDR, or one IPv4 and one IPv6 CIDR with a comma between, not "${clusterCIDR}"`,
    ),
  ];
}

function isCIDRPair(text: string): boolean {
  const cidrs = text.split(",");
  const isDual = cidrs.length === 2 && cidrs.filter((cidr) => cidr.includes(":")).length === 1;
  return cidrs.every(isCIDR) && (cidrs.length === 1 || isDual);
}

function isIPAndPort(text: string): boolean {
  const parts = splitHostPort(text);
  const port = Number(parts?.port);
  return parts !== undefined && isIP(parts.host) !== 0 && port >= 1 && port <= 65535;
}

/**
 * Splits `1.2.3.4:80` and `[::1]:80`.
 * @returns undefined if there is no port
 */
export function splitHostPort(text: string): { host: string; port: string } | undefined {
  const match = /^(?:\[([^\]]*)\]|([^:]*)):(\d+)$/.exec(text);
  return match === null ? undefined : { host: match[1] ?? match[2] ?? "", port: match[3] ?? "" };
}

/** `address` with a port: its own, else `port`. Addresses of either family, IPv6 with or without brackets. */
export function withPort(address: string, port: number): string {
  const bare = address.replace(/^\[(.*)\]$/, "$1");
  if (isIPv6(bare)) return `[${bare}]:${port}`;
  return splitHostPort(address) === undefined ? `${bare}:${port}` : address;
}
