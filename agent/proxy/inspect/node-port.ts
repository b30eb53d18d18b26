import { isLoopback, parseIP } from "../ip.ts";
import { treeChains } from "../iptables/fixed.ts";
import { printable, serviceOfChain, serviceOfComment } from "./names.ts";
import type { Packet } from "./match.ts";
import { type Ruleset, type Table, wordOf } from "./ruleset.ts";

/** A node port whose packets rules do not take at the address that was asked for. */
export interface UnansweredNodePort {
  /** `namespace/name:port`. */
  readonly service: string;
  /** Why, or where else, for people. */
  readonly note: string;
}

/**
 * The usual surprise: the right port of the node, and an address at which node ports are not answered.
 * Meant for packets that came to this machine untranslated. Pure.
 */
export function findNodePort({ tables }: Pick<Ruleset, "tables">, packet: Packet): UnansweredNodePort | undefined {
  for (const table of tables) {
    const service = table.kind === "nft" ? nftNodePort(table, packet) : iptablesNodePort(table, packet);
    if (service !== undefined) return { service, note: noteOf(table, packet) };
  }
  return undefined;
}

/** The addresses at which the table's rules answer node ports; undefined: all of the node, or all but loopback. */
export function nodePortAddresses({ kind, chains, sets }: Table): string[] | undefined {
  const texts = (chain: string) => chains.get(chain)?.texts() ?? [];
  if (kind === "nft") {
    const isLimited = texts("services").some((text) => text.includes("@nodeport-ips"));
    return isLimited ? [...(sets.get("nodeport-ips") ?? [])].map(({ key }) => wordOf(key[0])) : undefined;
  }
  const ways = [...texts("KUBE-SERVICES"), ...texts("KUBE-EXTERNAL-SERVICES")].filter((text) => {
    return [treeChains.natNodePorts, treeChains.noNodePort].some(({ root }) => text.endsWith(`-j ${root}`));
  });
  const addresses = ways.flatMap((text) => {
    const [, not, address] = /(! )?-d ([^/ ]+)/.exec(text) ?? [];
    return not === undefined && address !== undefined ? [address] : [];
  });
  return addresses.length === ways.length ? addresses : undefined;
}

function noteOf(table: Table, { daddr }: Packet): string {
  const ip = parseIP(daddr);
  if (ip !== undefined && isLoopback(ip)) {
    if (table.kind === "nft") {
      return "rules of nftables mode leave loopback alone: nodelet itself listens on node ports there, unless localhostNodePorts or nodePortAddresses rule that out";
    }
    return ip.family === "IPv6"
      ? "in iptables mode node ports do not answer on ::1: the kernel sends nothing from there to other machines"
      : "localhostNodePorts or nodePortAddresses rule node ports on loopback out";
  }
  const addresses = nodePortAddresses(table) ?? [];
  return `node ports answer on ${addresses.length === 0 ? "no address" : addresses.join(", ")} of this node (nodePortAddresses)`;
}

function nftNodePort({ name, sets }: Table, { protocol, dport }: Packet): string | undefined {
  if (!name.endsWith(" kube-proxy")) return undefined;
  for (const map of ["service-nodeports", "no-endpoint-nodeports"]) {
    const entry = sets.get(map)?.find([protocol, dport], (value, one) => value === one);
    const { verdict, comment = "" } = entry ?? {};
    const chain = verdict?.kind === "goto" || verdict?.kind === "jump" ? verdict.chain : "";
    const service = serviceOfChain(chain) ?? serviceOfComment(comment);
    if (service !== undefined) return printable(service);
  }
  return undefined;
}

function iptablesNodePort({ name, chains }: Table, { protocol, dport }: Packet): string | undefined {
  const trees = [treeChains.natNodePorts, treeChains.noNodePort].filter(({ table }) => table === name);
  for (const chain of chains.values()) {
    if (!trees.some(({ root, inner }) => chain.name === root || chain.name.startsWith(inner))) continue;
    const at = chain.texts().findIndex((text) => {
      return text.includes(`-p ${protocol} `) && text.includes(`--dport ${dport} `) && !/(^| )-d /.test(text);
    });
    const service = serviceOfComment(chain.rules()[at]?.comment ?? "");
    if (service !== undefined) return printable(service);
  }
  return undefined;
}
