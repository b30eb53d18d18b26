/**
 * What a rule of the nftables mode is for, in the words of the iptables mode's comments; undefined: it says so itself.
 * The kernel's rules carry no comments there. Pure.
 *
 * @param chain the rule's chain
 * @param text the rule, as nft lists it
 */
export function wordsOfRule(chain: string, text: string): string | undefined {
  const marks = text.includes("meta mark set meta mark |");
  const kind = /^(external|firewall)-.*\//.exec(chain)?.[1] ?? chain;
  switch (kind) {
    case "external": {
      const isFromNode = text.startsWith("fib saddr type local");
      if (marks) return isFromNode ? "masquerade traffic of this node" : "masquerade external traffic";
      if (isFromNode) return "external address, from this node";
      return text.startsWith("goto") ? undefined : "external address, from a pod here";
    }
    case "firewall":
      return "source not in range";
    case "services":
      return marks ? "masquerade traffic to cluster IPs that is not of pods here" : undefined;
    case "cluster-ips-check":
      return text.includes("@cluster-ips") ? "the service has no such port" : "no service has this address";
    case "masquerading":
      return text.includes("@hairpin-connections")
        ? "an endpoint that reaches itself"
        : "kubernetes service traffic requiring SNAT";
    default:
      return undefined;
  }
}
