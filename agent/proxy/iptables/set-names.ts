import type { Family } from "../ip.ts";
import { clientSetPrefix } from "./affinity.ts";
import { hashSuffix } from "./names.ts";

/** The sets that all services share. */
export type SharedSet = "serviceIPs" | "clusterIPs" | "nodePorts" | "hairpins";

/** Names by what they hold. */
export type SharedSetNames = Readonly<Record<SharedSet, string>>;

/** ipset's types of sets that rules refer to, beside the sets of clients. */
export type SetKind = "hash:ip,port" | "hash:net,port" | "hash:ip,port,ip" | "hash:net";

const kinds: Readonly<Record<SharedSet, SetKind>> = {
  serviceIPs: "hash:ip,port",
  clusterIPs: "hash:ip,port",
  // Of protocol and port: the address is there because no type knows both without one. See nodePortMembers.
  nodePorts: "hash:net,port",
  hairpins: "hash:ip,port,ip",
};

// ipset takes 31 characters. IPVS mode has sets of other names.
function prefixOf(family: Family): string {
  return family === "IPv4" ? "KUBE-" : "KUBE-6-";
}

const sharedNames: Readonly<Record<Family, SharedSetNames>> = { IPv4: namesWith("KUBE-"), IPv6: namesWith("KUBE-6-") };

function namesWith(prefix: string): SharedSetNames {
  return {
    serviceIPs: `${prefix}SERVICE-IPS`,
    clusterIPs: `${prefix}CLUSTER-IPS`,
    nodePorts: `${prefix}SERVICE-NODEPORTS`,
    hairpins: `${prefix}HAIRPIN-CONNECTIONS`,
  };
}

/** Names of the shared sets: addresses of services, cluster IPs among them, node ports, and endpoints that may reach themselves. */
export function sharedSetNames(family: Family): SharedSetNames {
  return sharedNames[family];
}

/** The name of the set of service addresses. */
export function serviceSetName(family: Family): string {
  return sharedSetNames(family).serviceIPs;
}

/** What names of sets of source ranges start with. */
export function rangeSetPrefix(family: Family): string {
  return `${prefixOf(family)}RANGES-`;
}

/** The set of source ranges of a service's load balancer. */
export function rangeSetName(family: Family, serviceKey: string): string {
  return rangeSetPrefix(family) + hashSuffix(serviceKey);
}

/** A set is filled under this name before it takes the place of another. */
export function temporarySetName(family: Family): string {
  return `${prefixOf(family)}NEW`;
}

/** ipset's type of a set of ours that is not one of clients. */
export function kindOfSet(family: Family, name: string): SetKind {
  const names = sharedSetNames(family);
  const shared = (Object.keys(names) as SharedSet[]).find((set) => names[set] === name);
  return shared === undefined ? "hash:net" : kinds[shared];
}

/** Whether a set is one of ours, of this family; also one that was only begun. */
export function isOwnSet(family: Family, name: string): boolean {
  const prefixes = [rangeSetPrefix(family), clientSetPrefix(family)];
  const names = [...Object.values(sharedSetNames(family)), temporarySetName(family)];
  return (
    prefixes.some((prefix) => name.startsWith(prefix)) || names.some((own) => name === own || name === `${own}-NEW`)
  );
}

/** Members that stand for a node port on any address: sets of networks hold none of length 0, so there are two halves. */
export function nodePortMembers(family: Family, protocol: string, nodePort: number): string[] {
  const halves = family === "IPv4" ? ["0.0.0.0/1", "128.0.0.0/1"] : ["::/1", "8000::/1"];
  return halves.map((half) => `${half},${protocol}:${nodePort}`);
}

/** A range as ipset lists it, where a network of one address is that address. */
export function rangeMember(family: Family, range: string): string {
  return range.replace(family === "IPv4" ? /\/32$/ : /\/128$/, "");
}
