import type { Family } from "../ip.ts";
import { familyWords, markForMasquerade } from "./render.ts";

/** The one table of the proxy, in each family. kube-proxy's name: either program finds and replaces the other's. */
export const tableName = "kube-proxy";

/** What the chains that belong to no service depend on. */
export interface FixedContext {
  readonly family: Family;
  readonly mark: string;
  readonly masqueradeAll: boolean;
  /** What matches packets that do not come from this node's pods; undefined: cannot be told. */
  readonly notFromLocalPods: string | undefined;
  /** Addresses that accept node ports; undefined: all local ones but loopback. */
  readonly nodePortIPs: readonly string[] | undefined;
  /** The cluster's ranges of service addresses; empty: not known. */
  readonly serviceCIDRs: readonly string[];
}

/** Holds one element while all is well: whoever empties the table's sets takes it away. */
export const canarySet = "canary";

/** Chains that the kernel calls by itself: `type … hook … priority …`. Numbers, because older nft do not take every name everywhere. */
export const baseChains: Readonly<Record<string, string>> = {
  "filter-prerouting-pre-dnat": "type filter hook prerouting priority -110 ;",
  "filter-output-pre-dnat": "type filter hook output priority -110 ;",
  "filter-input": "type filter hook input priority 0 ;",
  "filter-forward": "type filter hook forward priority 0 ;",
  "filter-output": "type filter hook output priority 0 ;",
  "nat-prerouting": "type nat hook prerouting priority -100 ;",
  "nat-output": "type nat hook output priority -100 ;",
  "nat-postrouting": "type nat hook postrouting priority 100 ;",
};

/** Sets and maps that all services share, by name: their type, as in `set NAME { type … ; }`. */
export function sharedSets(family: Family): Readonly<Record<string, { kind: "set" | "map"; type: string }>> {
  const { addressType } = familyWords(family);
  const target = `${addressType} . inet_proto . inet_service`;
  return {
    "cluster-ips": { kind: "set", type: addressType },
    "nodeport-ips": { kind: "set", type: addressType },
    "hairpin-connections": { kind: "set", type: `${addressType} . ${addressType} . inet_proto . inet_service` },
    "service-ips": { kind: "map", type: `${target} : verdict` },
    "service-nodeports": { kind: "map", type: "inet_proto . inet_service : verdict" },
    "no-endpoint-services": { kind: "map", type: `${target} : verdict` },
    "no-endpoint-nodeports": { kind: "map", type: "inet_proto . inet_service : verdict" },
    "firewall-ips": { kind: "map", type: `${target} : verdict` },
    [canarySet]: { kind: "set", type: addressType },
  };
}

/** The chain that all plain services with `count` endpoints share. */
export function countChain(count: number): string {
  return `count-${count}`;
}

/** The chain's rule and the map of all plain services with `count` endpoints, as nft commands without the table. Pure. */
export function sharedEndpoints(family: Family, count: number): { map: string; rule: string } {
  const { ip } = familyWords(family);
  const key = `${ip} daddr . meta l4proto . th dport . numgen random mod ${count}`;
  return {
    map: `{ typeof ${key} : ${ip} daddr . th dport ; }`,
    rule: `dnat ${ip} addr . port to ${key} map @endpoints-${count}`,
  };
}

/** Rules by chain, of those that belong to no service; chains that others jump to come first. Pure. */
export function renderFixed(context: FixedContext): ReadonlyMap<string, readonly string[]> {
  const { family, mark, nodePortIPs, notFromLocalPods } = context;
  const { ip } = familyWords(family);
  const target = `${ip} daddr . meta l4proto . th dport`;
  const loopback = family === "IPv4" ? "127.0.0.0/8" : "::1";
  const toNodePorts =
    nodePortIPs === undefined ? `fib daddr type local ${ip} daddr != ${loopback}` : `${ip} daddr @nodeport-ips`;
  const fromElsewhere = context.masqueradeAll ? "" : notFromLocalPods;
  const isNew = "ct state new";
  return new Map([
    ["reject-chain", ["reject"]],
    [
      "services",
      [
        // Replies to clients that are no pods here must come back through this node.
        ...(fromElsewhere === undefined
          ? []
          : [`${`${ip} daddr @cluster-ips ${fromElsewhere}`.trimEnd()} ${markForMasquerade(mark)}`]),
        `${target} vmap @service-ips`,
        `${toNodePorts} meta l4proto . th dport vmap @service-nodeports`,
      ],
    ],
    ["service-endpoints-check", [`${target} vmap @no-endpoint-services`]],
    ["nodeport-endpoints-check", [`${toNodePorts} meta l4proto . th dport vmap @no-endpoint-nodeports`]],
    ["firewall-check", [`${target} vmap @firewall-ips`]],
    [
      "cluster-ips-check",
      [
        // What comes here was not translated: no port of the service, or an address that no service has.
        `${ip} daddr @cluster-ips reject`,
        ...(context.serviceCIDRs.length === 0 ? [] : [`${ip} daddr { ${context.serviceCIDRs.join(", ")} } drop`]),
      ],
    ],
    [
      "masquerading",
      [
        // Cleared, so that a packet that passes here again (through a tunnel, say) is not masqueraded twice.
        `meta mark and ${mark} != 0 meta mark set meta mark xor ${mark} masquerade fully-random`,
        // An endpoint that reached itself must not see its own address as the source.
        `ct status dnat ${ip} saddr . ${ip} daddr . meta l4proto . th dport @hairpin-connections masquerade fully-random`,
      ],
    ],
    ["filter-prerouting-pre-dnat", [`${isNew} jump firewall-check`]],
    ["filter-output-pre-dnat", [`${isNew} jump firewall-check`]],
    ["filter-input", [`${isNew} jump nodeport-endpoints-check`, `${isNew} jump service-endpoints-check`]],
    ["filter-forward", [`${isNew} jump service-endpoints-check`, `${isNew} jump cluster-ips-check`]],
    ["filter-output", [`${isNew} jump service-endpoints-check`, `${isNew} jump cluster-ips-check`]],
    ["nat-prerouting", ["jump services"]],
    ["nat-output", ["jump services"]],
    ["nat-postrouting", ["jump masquerading"]],
  ]);
}
