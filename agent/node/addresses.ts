import { isIP, isIPv4, isIPv6 } from "node:net";
import type { Node, NodeAddress } from "../kube/types.ts";

/** What addresses are chosen from. Made by {@link readAddressSources}. */
export interface AddressSources {
  /** IPs on local interfaces, without zone. */
  localIPs: readonly string[];
  /** Answers of the resolver for the node's name. */
  resolvedIPs: readonly string[];
  /** IPs on the interfaces of the default routes, IPv4 first. */
  defaultRouteIPs: readonly string[];
}

export interface AddressOptions {
  nodeName: string;
  hostname: string;
  /** `--node-ip`: none, one (an unspecified one chooses the family), or one of each family. */
  nodeIPs: readonly string[];
  cloudProvider: "" | "external";
}

export type AddressResult =
  | { kind: "addresses"; addresses: NodeAddress[] }
  /** A cloud controller wrote them and goes on doing so. */
  | { kind: "keep" }
  | { kind: "failed"; problem: string };

/**
 * `--node-ip` as a list.
 * @returns what is wrong with it, or the addresses
 */
export function parseNodeIPs(flag: string): { ips: string[] } | { problem: string } {
  const ips = flag.split(",").flatMap((part) => (part.trim() === "" ? [] : [part.trim()]));
  const bad = ips.find((ip) => isIP(ip) === 0);
  if (bad !== undefined) return { problem: `--node-ip: "${bad}" is not an IP address` };
  if (ips.length > 2) return { problem: `--node-ip: "${flag}" has ${ips.length} addresses; at most one per IP family` };
  if (ips.length === 2) {
    if (isIPv4(ips[0] ?? "") === isIPv4(ips[1] ?? "")) {
      return { problem: `--node-ip: "${flag}" has two addresses of one IP family; give one IPv4 and one IPv6 address` };
    }
    if (ips.some(isUnspecified)) return { problem: `--node-ip: "${flag}": a pair must not contain 0.0.0.0 or ::` };
  }
  return { ips };
}

/** True if nothing but the flags is needed: then the resolver need not be asked. */
export function needsLookup(options: AddressOptions): boolean {
  const [first] = options.nodeIPs;
  if (options.nodeIPs.length === 2) return false;
  if (first !== undefined && !isUnspecified(first)) return false;
  return isIP(options.hostname) === 0;
}

/** The node's addresses. Pure. `existing` is the Node as the API server has it. */
export function chooseAddresses(
  options: AddressOptions,
  sources: AddressSources,
  existing: readonly NodeAddress[],
): AddressResult {
  const { nodeIPs, hostname, nodeName } = options;
  const explicit = nodeIPs.filter((ip) => !isUnspecified(ip));
  for (const ip of explicit) {
    const why = nodeIPProblem(ip, sources.localIPs);
    if (why !== undefined) return failed(nodeName, `node IP ${ip} ${why}`);
  }
  const hostnameAddress: NodeAddress = { type: "Hostname", address: hostname };
  if (options.cloudProvider === "external") {
    if (existing.length > 0) return { kind: "keep" };
    const wantsBootstrap = nodeIPs.length === 1 && explicit.length === 0;
    if (!wantsBootstrap) return { kind: "addresses", addresses: [hostnameAddress] };
  }
  if (explicit.length === 2) {
    const addresses = explicit.map((address): NodeAddress => ({ type: "InternalIP", address }));
    return { kind: "addresses", addresses: [...addresses, hostnameAddress] };
  }
  const ip = explicit[0] ?? findIP(options, sources);
  if (ip === undefined) return failed(nodeName, "no usable address by name or default route; set --node-ip");
  return { kind: "addresses", addresses: [{ type: "InternalIP", address: ip }, hostnameAddress] };
}

/** Why an address cannot be the node's; undefined if it can. */
export function nodeIPProblem(ip: string, localIPs: readonly string[]): string | undefined {
  if (isLoopback(ip)) return "is a loopback address";
  if (isMulticast(ip)) return "is a multicast address";
  if (isLinkLocal(ip)) return "is a link-local address";
  if (isUnspecified(ip)) return "is the unspecified address";
  if (!localIPs.includes(canonicalIP(ip))) return "is not on any interface of this machine";
  return undefined;
}

/**
 * IPs that pods see as their host's, primary first: the first InternalIP (else ExternalIP), then the first one of the
 * other family.
 */
export function hostIPs(node: Node | undefined): string[] {
  const addresses = node?.status?.addresses ?? [];
  const ips = [
    ...addresses.filter(({ type }) => type === "InternalIP"),
    ...addresses.filter(({ type }) => type === "ExternalIP"),
  ].map(({ address }) => address);
  const [primary] = ips;
  if (primary === undefined) return [];
  const secondary = ips.find((ip) => isIPv6(ip) !== isIPv6(primary));
  return secondary === undefined ? [primary] : [primary, secondary];
}

/** An IP in the one spelling by which addresses are compared. */
export function canonicalIP(ip: string): string {
  if (!isIPv6(ip)) return ip;
  // The URL parser shortens IPv6 as RFC 5952 says.
  return new URL(`http://[${ip}]`).hostname.slice(1, -1);
}

function findIP(options: AddressOptions, sources: AddressSources): string | undefined {
  if (isIP(options.hostname) !== 0) return options.hostname;
  const prefersIPv6 = options.nodeIPs[0] !== undefined && isIPv6(options.nodeIPs[0]);
  const choose = (ips: readonly string[]) => {
    const usable = ips.filter((ip) => nodeIPProblem(ip, sources.localIPs) === undefined);
    return usable.find((ip) => isIPv6(ip) === prefersIPv6) ?? usable[0];
  };
  return choose(sources.resolvedIPs) ?? choose(sources.defaultRouteIPs);
}

function failed(nodeName: string, why: string): AddressResult {
  return { kind: "failed", problem: `can't get ip address of node ${nodeName}. error: ${why}` };
}

function isUnspecified(ip: string): boolean {
  return canonicalIP(ip) === "0.0.0.0" || canonicalIP(ip) === "::";
}

function isLoopback(ip: string): boolean {
  return isIPv4(ip) ? ip.startsWith("127.") : canonicalIP(ip) === "::1";
}

function isMulticast(ip: string): boolean {
  return isIPv4(ip) ? firstByte(ip) >= 224 && firstByte(ip) <= 239 : canonicalIP(ip).startsWith("ff");
}

function isLinkLocal(ip: string): boolean {
  return isIPv4(ip) ? ip.startsWith("169.254.") : /^fe[89ab]/.test(canonicalIP(ip));
}

function firstByte(ip: string): number {
  return Number(ip.split(".", 1)[0]);
}
