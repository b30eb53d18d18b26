import { isIP, isIPv6 } from "node:net";
import type { Pod } from "../kube/types.ts";
import { AgentError } from "../lib/errors.ts";

/** What a resolv.conf says, and what a sandbox is told. */
export interface DNSConfig {
  servers: string[];
  searches: string[];
  /** `name` or `name:value`, each name once. */
  options: string[];
}

/** An event to record about the pod; `alsoNode`: about the node, too. Type Warning. */
export interface DNSWarning {
  reason: "DNSConfigForming" | "MissingClusterDNS";
  message: string;
  alsoNode: boolean;
}

export interface DNSContext {
  /** `clusterDNS` of the configuration; entries that are not addresses are left out. */
  clusterDNS: readonly string[];
  /** `clusterDomain` of the configuration, may be empty. */
  clusterDomain: string;
  /** The host's file; undefined when `resolvConf` is "". */
  host: DNSConfig | undefined;
  /** For a pod with the host's DNS and no host file: which loopback families to name. */
  nodeIPs: readonly string[];
}

// What the C library reads: MAXNS in resolv.h.
export const nameserversMax = 3;
// Kubernetes' own limits for search domains; libc since 2.26 has none.
export const searchDomainsMax = 32;
export const searchLineLengthMax = 2048;
// RFC 1035: a domain name in text form.
export const searchDomainLengthMax = 253;
/** A resolv.conf longer than this is read no further. */
export const resolvConfBytesMax = 10 << 20;
// The cluster's names have up to four dots before the search list ends (name.ns.svc.cluster.local).
const clusterOptions = ["ndots:5"];
// Search domains that the cluster adds to the host's: <ns>.svc.<domain>, svc.<domain>, <domain>.
const clusterSearchDomains = 3;

/** Parses the text of a resolv.conf. Rejects with code Invalid for a `nameserver` line without an address. */
export function parseResolvConf(text: string): DNSConfig {
  const servers: string[] = [];
  let searches: string[] = [];
  const options = new Map<string, string>();
  for (const line of text.split("\n")) {
    if (line.startsWith("#")) continue;
    const [keyword, ...args] = line.trim().split(/\s+/);
    if (keyword === "nameserver") {
      const [server] = args;
      if (server === undefined) throw new AgentError("Invalid", "resolv.conf: a nameserver line has no address");
      servers.push(server);
    } else if (keyword === "search") {
      searches = args.filter((domain) => domain !== ".").map((domain) => domain.replace(/\.$/, ""));
    } else if (keyword === "options") {
      for (const option of args) options.set(option.split(":", 1)[0] ?? "", option);
    }
  }
  return { servers, searches, options: [...options.values()] };
}

/** DNS settings of a pod's sandbox, and what to warn about. Pure. */
export function podDNS(pod: Pod, context: DNSContext): { config: DNSConfig; warnings: DNSWarning[] } {
  const warnings: DNSWarning[] = [];
  const base = baseConfig(pod, context, warnings);
  const extra = pod.spec.dnsConfig;
  const options = new Map(base.options.map((option) => [option.split(":", 1)[0] ?? "", option]));
  for (const { name = "", value } of extra?.options ?? []) {
    options.set(name, (value ?? "") === "" ? name : `${name}:${value}`);
  }
  const servers = [...new Set([...base.servers, ...(extra?.nameservers ?? [])])];
  const searches = [...new Set([...base.searches, ...(extra?.searches ?? [])])];
  return {
    config: {
      servers: limitServers(servers, warnings),
      searches: limitSearches(searches, warnings),
      options: [...options.values()],
    },
    warnings,
  };
}

/**
 * What is wrong with the host's file for pods that use it, for the node's CheckLimitsForResolvConf event.
 * @returns undefined if nothing is
 */
export function checkResolvConf(host: DNSConfig, clusterDomain: string): string | undefined {
  const max = clusterDomain === "" ? searchDomainsMax : searchDomainsMax - clusterSearchDomains;
  if (host.searches.length > max) return `resolv.conf has ${host.searches.length} search domains, pods can use ${max}`;
  const long = host.searches.find((domain) => domain.length > searchDomainLengthMax);
  if (long !== undefined) {
    return `resolv.conf has a search domain of ${long.length} characters, more than ${searchDomainLengthMax}`;
  }
  const length = host.searches.join(" ").length;
  if (length > searchLineLengthMax) {
    return `resolv.conf has a search line of ${length} characters, more than ${searchLineLengthMax}`;
  }
  return undefined;
}

function baseConfig(pod: Pod, context: DNSContext, warnings: DNSWarning[]): DNSConfig {
  const { dnsPolicy = "ClusterFirst", hostNetwork = false } = pod.spec;
  if (dnsPolicy === "None") return { servers: [], searches: [], options: [] };
  if (dnsPolicy === "Default" || (dnsPolicy === "ClusterFirst" && hostNetwork)) return hostConfig(context);
  const servers = context.clusterDNS.filter((server) => isIP(server) !== 0);
  if (servers.length === 0) {
    const message =
      `kubelet does not have ClusterDNS IP configured and cannot create Pod using "${dnsPolicy}" policy. ` +
      `Falling back to "Default" policy.`;
    warnings.push({ reason: "MissingClusterDNS", message, alsoNode: true });
    return hostConfig(context);
  }
  const { clusterDomain } = context;
  const own =
    clusterDomain === ""
      ? []
      : [`${pod.metadata.namespace ?? "default"}.svc.${clusterDomain}`, `svc.${clusterDomain}`, clusterDomain];
  return { servers, searches: [...own, ...(context.host?.searches ?? [])], options: clusterOptions };
}

function hostConfig({ host, nodeIPs }: DNSContext): DNSConfig {
  if (host !== undefined) return host;
  const loopback = nodeIPs.map((ip) => (isIPv6(ip) ? "::1" : "127.0.0.1"));
  return { servers: loopback.length === 0 ? ["127.0.0.1"] : [...new Set(loopback)], searches: ["."], options: [] };
}

function limitServers(servers: string[], warnings: DNSWarning[]): string[] {
  if (servers.length <= nameserversMax) return servers;
  const kept = servers.slice(0, nameserversMax);
  warnings.push(
    forming(
      "Nameserver limits were exceeded, some nameservers have been omitted, " +
        `the applied nameserver line is: ${kept.join(" ")}`,
    ),
  );
  return kept;
}

function limitSearches(searches: string[], warnings: DNSWarning[]): string[] {
  const kept = searches.slice(0, searchDomainsMax).filter((domain) => domain.length <= searchDomainLengthMax);
  while (kept.join(" ").length > searchLineLengthMax) kept.pop();
  if (kept.length < searches.length) {
    warnings.push(
      forming(
        "Search Line limits were exceeded, some search paths have been omitted, " +
          `the applied search line is: ${kept.join(" ")}`,
      ),
    );
  }
  return kept;
}

function forming(message: string): DNSWarning {
  return { reason: "DNSConfigForming", message, alsoNode: false };
}
