import type { DetectLocalOptions } from "./options.ts";
import { type Family, formatCIDR, parseCIDR } from "./ip.ts";

/** How packets of this node's pods are told from others; see KubeProxyConfiguration's detectLocalMode. */
export type LocalPods =
  /** By their source, in this CIDR, which is in its one canonical spelling. */
  | { readonly kind: "source"; readonly cidr: string }
  /** By the interface they come in by, or by what its name starts with. */
  | { readonly kind: "interface"; readonly name: string; readonly isPrefix: boolean };

/** Decides it for one family; undefined: it cannot be told. Pure. */
export function detectLocalPods(options: DetectLocalOptions, family: Family): LocalPods | undefined {
  switch (options.mode) {
    case "ClusterCIDR":
    case "NodeCIDR": {
      const cidr = options.cidrs.map(parseCIDR).find((one) => one?.family === family);
      // A range of everything tells nothing; and iptables-nft refuses a match of nothing, with all rules.
      return cidr === undefined || cidr.bits === "" ? undefined : { kind: "source", cidr: formatCIDR(cidr) };
    }
    case "BridgeInterface":
      return interfacePods(options.bridgeInterface, false);
    case "InterfaceNamePrefix":
      return interfacePods(options.interfaceNamePrefix, true);
    default:
      return options.mode satisfies never;
  }
}

function interfacePods(name: string, isPrefix: boolean): LocalPods | undefined {
  return name === "" ? undefined : { kind: "interface", name, isPrefix };
}
