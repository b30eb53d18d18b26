import { addressBits, type Family, formatIP, isLoopback, type Prefix, parseCIDR, parseIP } from "./ip.ts";
import type { ProxyOptions } from "./options.ts";

/** The masquerade mark as the rules print it: at least six hex digits. */
export function markText(masqueradeBit: number): string {
  return `0x${(2 ** masqueradeBit).toString(16).padStart(6, "0")}`;
}

/** What `nodePortAddresses` means for one family. */
export interface NodePortAddresses {
  /** undefined: all local addresses accept node ports. */
  readonly cidrs: readonly Prefix[] | undefined;
  readonly hasLoopback: boolean;
}

/** `nodePortAddresses`, with the mode's default. Pure. */
export function nodePortAddressesOf({
  mode,
  nodePortAddresses,
}: Pick<ProxyOptions, "mode" | "nodePortAddresses">): readonly string[] {
  return mode === "nftables" && nodePortAddresses.length === 0 ? ["primary"] : nodePortAddresses;
}

/** Reads `nodePortAddresses` for one family; a family without an entry accepts node ports on every address. Pure. */
export function readNodePortAddresses(
  entries: readonly string[],
  nodeIPs: readonly string[],
  family: Family,
): NodePortAddresses {
  const texts = entries.length === 1 && entries[0] === "primary" ? primaryCIDRs(nodeIPs) : entries;
  const cidrs = texts.map(parseCIDR).filter((cidr) => cidr?.family === family) as Prefix[];
  if (cidrs.length === 0 || cidrs.some((cidr) => cidr.bits === "")) return { cidrs: undefined, hasLoopback: true };
  const loopbackBits = family === "IPv4" ? "01111111" : "1".padStart(addressBits.IPv6, "0");
  return {
    cidrs,
    hasLoopback: cidrs.some(({ bits }) => bits.startsWith(loopbackBits) || loopbackBits.startsWith(bits)),
  };
}

/** The local addresses that accept node ports, sorted; undefined: all, and then nobody is asked. */
export function nodePortIPs(
  addresses: NodePortAddresses,
  localIPs: () => readonly string[],
  family: Family,
  hasLocalhostNodePorts: boolean,
): string[] | undefined {
  return matchingIPs(addresses, localIPs, family, (ip) => {
    return !isLoopback(ip) || (family === "IPv4" && hasLocalhostNodePorts);
  });
}

/**
 * The local addresses on which health checks of services are answered, sorted; undefined: all. Loopback ones are among them if
 * they are named. Those that mean something on one link only cannot be listened on without naming it.
 */
export function healthCheckIPs(
  addresses: NodePortAddresses,
  localIPs: () => readonly string[],
  family: Family,
): string[] | undefined {
  return matchingIPs(addresses, localIPs, family, ({ bits }) => {
    return family === "IPv4" || !bits.startsWith(linkLocalBits);
  });
}

// fe80::/10
const linkLocalBits = "1111111010";

function matchingIPs(
  { cidrs }: NodePortAddresses,
  localIPs: () => readonly string[],
  family: Family,
  isWanted: (ip: Prefix) => boolean,
): string[] | undefined {
  if (cidrs === undefined) return undefined;
  const found = new Set<string>();
  for (const text of localIPs()) {
    const ip = parseIP(text);
    if (ip?.family !== family || !cidrs.some((cidr) => ip.bits.startsWith(cidr.bits))) continue;
    if (isWanted(ip)) found.add(formatIP(ip));
  }
  return [...found].sort();
}

function primaryCIDRs(nodeIPs: readonly string[]): string[] {
  return nodeIPs.flatMap((text) => {
    const ip = parseIP(text);
    return ip === undefined || isLoopback(ip) ? [] : [`${formatIP(ip)}/${addressBits[ip.family]}`];
  });
}
