import type { DetectLocalOptions } from "../options.ts";
import { type Family, parseCIDR } from "../ip.ts";
import { familyWords } from "./render.ts";

/** What matches packets of this node's pods, and of everybody else; undefined: cannot be told for the family. Pure. */
export function detectLocalMatch(
  options: DetectLocalOptions,
  family: Family,
): { match: string; notMatch: string } | undefined {
  const { ip } = familyWords(family);
  switch (options.mode) {
    case "ClusterCIDR":
    case "NodeCIDR": {
      const cidr = options.cidrs.find((text) => parseCIDR(text)?.family === family);
      return cidr === undefined ? undefined : { match: `${ip} saddr ${cidr}`, notMatch: `${ip} saddr != ${cidr}` };
    }
    case "BridgeInterface":
      return interfaceMatch(options.bridgeInterface, "");
    case "InterfaceNamePrefix":
      return interfaceMatch(options.interfaceNamePrefix, "*");
    default:
      return options.mode satisfies never;
  }
}

/** Quoted: a name may begin with what nft takes for a number or a keyword. */
function interfaceMatch(name: string, wildcard: "" | "*") {
  if (name === "") return undefined;
  return { match: `iifname "${name}${wildcard}"`, notMatch: `iifname != "${name}${wildcard}"` };
}
