import { type Family, parseCIDR } from "./ip.ts";
import type { ProxyOptions } from "./options.ts";

/** How the configured addresses and the IP families that are programmed fit together. */
export interface FamilyMatch {
  /** Why the proxy must not go on: its rules would take every pod for a stranger. Undefined: it may. */
  readonly fatal: string | undefined;
  /** One line for people each. */
  readonly warnings: readonly string[];
}

type Configured = Pick<ProxyOptions, "mode" | "nodeName" | "detectLocal" | "nodePortAddresses">;

/**
 * Looks whether configured ranges are of the IP families that are programmed here. What kube-proxy does not start with ends
 * the start here, too; what it only warns about is a warning. Pure.
 *
 * @param families those that are programmed, or will be once somebody lets them
 * @param primary of the node's own address
 */
export function matchFamilies(options: Configured, families: readonly Family[], primary: Family): FamilyMatch {
  const { detectLocal, nodePortAddresses } = options;
  const warnings: string[] = [];
  let fatal: string | undefined;
  const ranges = familiesOf(detectLocal.cidrs);
  const [only] = families;
  if (detectLocal.mode === "ClusterCIDR" && ranges.size > 0) {
    const text = `clusterCIDR ${detectLocal.cidrs.join(",")}`;
    if (families.length === 1 && only !== undefined && !ranges.has(only)) {
      fatal = `${text} has no ${only} range, and only ${only} services can be programmed on this machine`;
    } else if (!ranges.has(primary)) {
      warnings.push(`${text} has no range of the node's primary family ${primary}: its pods are not recognised`);
    }
    if (detectLocal.cidrs.some((cidr) => parseCIDR(cidr)?.bits === "")) {
      warnings.push(`${text} takes in every address: pods are not told from others by it`);
    }
  }
  if (detectLocal.mode === "NodeCIDR" && ranges.size > 0 && !ranges.has(primary)) {
    fatal = `the pod CIDRs ${detectLocal.cidrs.join(",")} of node ${options.nodeName} have none of its primary family ${primary}`;
  }
  if (options.mode === "iptables" && nodePortAddresses.length === 0) {
    warnings.push('nodePortAddresses is not set: node ports answer on all addresses of the node; consider "primary"');
  }
  const answering = familiesOf(nodePortAddresses);
  if (answering.size > 0) {
    for (const family of families.filter((one) => !answering.has(one))) {
      warnings.push(`nodePortAddresses has no ${family} range: ${family} node ports answer on all addresses`);
    }
  }
  return { fatal, warnings };
}

function familiesOf(texts: readonly string[]): Set<Family> {
  return new Set(texts.flatMap((text) => parseCIDR(text)?.family ?? []));
}
