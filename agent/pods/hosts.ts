import type { Pod } from "../kube/types.ts";
import { AgentError } from "../lib/errors.ts";

// One DNS label, and what sethostname(2) takes (HOST_NAME_MAX).
const hostnameLengthMax = 63;
export const kernelHostnameLengthMax = 64;
const subdomainLengthMax = 253;
const labelPattern = /^[a-z0-9](?:[-a-z0-9]*[a-z0-9])?$/;

/** A pod's short name, and the domain it has a record in (undefined without `subdomain`). */
export interface PodHostname {
  hostname: string;
  domain: string | undefined;
}

/**
 * Hostname and domain of a pod. Rejects with code Invalid for names that are none; the API server lets none through, but a
 * static pod may have one.
 */
export function podHostname(pod: Pod, clusterDomain: string): PodHostname {
  const { hostname, hostnameOverride, subdomain } = pod.spec;
  if (hostnameOverride !== undefined && hostnameOverride !== "") {
    if (!isSubdomain(hostnameOverride)) throw invalid("hostnameOverride", hostnameOverride, "a DNS subdomain");
    return { hostname: truncate(hostnameOverride), domain: undefined };
  }
  if (hostname !== undefined && hostname !== "" && !isLabel(hostname)) {
    throw invalid("hostname", hostname, "a DNS label");
  }
  const short = truncate(hostname === undefined || hostname === "" ? pod.metadata.name : hostname);
  if (subdomain === undefined || subdomain === "") return { hostname: short, domain: undefined };
  if (!isLabel(subdomain)) throw invalid("subdomain", subdomain, "a DNS label");
  return { hostname: short, domain: `${subdomain}.${pod.metadata.namespace ?? "default"}.svc.${clusterDomain}` };
}

/**
 * What uname(2) shows in the pod: the short name, or all of it with `setHostnameAsFQDN`.
 * Rejects with code Invalid if the kernel cannot take it.
 */
export function kernelHostname(pod: Pod, { hostname, domain }: PodHostname): string {
  if (pod.spec.setHostnameAsFQDN !== true || domain === undefined) return hostname;
  const full = `${hostname}.${domain}`;
  if (full.length > kernelHostnameLengthMax) {
    throw new AgentError(
      "Invalid",
      `failed to construct FQDN from pod hostname and cluster domain, FQDN ${full} is too long ` +
        `(${kernelHostnameLengthMax} characters is the max, ${full.length} characters requested)`,
    );
  }
  return full;
}

/**
 * The hostname that a pod's sandbox gets; "" on the host's network, where names that cannot be only concern containers.
 * Rejects with code Invalid for these elsewhere.
 */
export function sandboxHostname(pod: Pod, clusterDomain: string): string {
  if (pod.spec.hostNetwork === true) return "";
  return kernelHostname(pod, podHostname(pod, clusterDomain));
}

/** True if a container gets the managed /etc/hosts: it has addresses and does not mount one of its own. */
export function needsHostsFile(
  pod: Pod,
  container: { volumeMounts?: { mountPath: string }[] },
  podIPs: readonly string[],
): boolean {
  if (container.volumeMounts?.some(({ mountPath }) => mountPath === "/etc/hosts") === true) return false;
  return podIPs.length > 0 || pod.spec.hostNetwork === true;
}

/** Text of a pod's /etc/hosts on the pod network: loopback names, one line per address of the pod, the aliases. */
export function renderHosts(pod: Pod, podIPs: readonly string[], { hostname, domain }: PodHostname): string {
  const names = domain === undefined ? hostname : `${hostname}.${domain}\t${hostname}`;
  const lines = [
    "# Kubernetes-managed hosts file.",
    "127.0.0.1\tlocalhost",
    "::1\tlocalhost ip6-localhost ip6-loopback",
    "fe00::0\tip6-localnet",
    "fe00::0\tip6-mcastprefix",
    "fe00::1\tip6-allnodes",
    "fe00::2\tip6-allrouters",
    ...podIPs.map((ip) => `${ip}\t${names}`),
  ];
  return `${lines.join("\n")}\n${renderAliases(pod)}`;
}

/** Text of a host-network pod's /etc/hosts: the node's file as it is, then the aliases. */
export function renderHostNetworkHosts(pod: Pod, nodeHostsFile: string): string {
  return `# Kubernetes-managed hosts file (host network).\n${nodeHostsFile}${renderAliases(pod)}`;
}

function renderAliases(pod: Pod): string {
  const aliases = pod.spec.hostAliases ?? [];
  if (aliases.length === 0) return "";
  const lines = aliases.map(({ ip, hostnames = [] }) => [ip, ...hostnames].join("\t"));
  return `\n# Entries added by HostAliases.\n${lines.join("\n")}\n`;
}

function truncate(name: string): string {
  if (name.length <= hostnameLengthMax) return name;
  const cut = name.slice(0, hostnameLengthMax).replace(/[-.]+$/, "");
  if (cut === "") {
    throw new AgentError("Invalid", `hostname "${name}" has nothing left when cut to ${hostnameLengthMax} characters`);
  }
  return cut;
}

function isLabel(name: string): boolean {
  return name.length <= hostnameLengthMax && labelPattern.test(name);
}

function isSubdomain(name: string): boolean {
  return name.length <= subdomainLengthMax && name.split(".").every((part) => labelPattern.test(part));
}

function invalid(field: string, value: string, wanted: string): AgentError {
  return new AgentError("Invalid", `spec.${field} "${value}" is not ${wanted}`);
}
