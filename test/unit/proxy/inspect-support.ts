import { parseNftTable } from "../../../agent/proxy/inspect/nft-json.ts";
import { parseIpsets, SaveReader } from "../../../agent/proxy/inspect/parse-save.ts";
import type { Routes } from "../../../agent/proxy/inspect/routes.ts";
import type { Ruleset, Table } from "../../../agent/proxy/inspect/ruleset.ts";
import type { Packet, Surroundings } from "../../../agent/proxy/inspect/match.ts";
import { walk } from "../../../agent/proxy/inspect/walk.ts";
import { surroundingsOf } from "../../../agent/proxy/inspect/read.ts";
import { parseCIDR } from "../../../agent/proxy/ip.ts";
import type { FakeIptables } from "../../support/fake-iptables.ts";

const builtIn = new Set(["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"]);

/** Tables that iptables-save lists, from its text. */
export function tablesOf(text: string, ipsets = ""): Table[] {
  const reader = new SaveReader();
  for (const line of text.split("\n")) reader.line(line);
  return reader.result("iptables-nft", "IPv4", parseIpsets(ipsets.split("\n")));
}

export function rulesetOf(text: string, ipsets = ""): Ruleset {
  return { family: "IPv4", tables: tablesOf(text, ipsets), unread: [] };
}

/** What the renderers wrote into the fake, as iptables-save would list it. */
export function savedText(iptables: FakeIptables): string {
  let text = "";
  for (const [table, chains] of iptables.tables) {
    text += `*${table}\n`;
    for (const chain of chains.keys()) text += `:${chain} ${builtIn.has(chain) ? "ACCEPT" : "-"} [0:0]\n`;
    for (const [chain, rules] of chains) for (const rule of rules) text += `[3:180] -A ${chain} ${rule}\n`;
    text += "COMMIT\n";
  }
  return text;
}

/** `ipset save` of one set of service addresses. */
export function savedSet(members: Iterable<string>, name = "KUBE-SERVICE-IPS"): string {
  return [`create ${name} hash:ip,port family inet`, ...[...members].map((member) => `add ${name} ${member}`)].join(
    "\n",
  );
}

export function nftRuleset(entries: readonly unknown[]): Ruleset {
  return { family: "IPv4", tables: [parseNftTable("ip kube-proxy", entries, "IPv4")], unread: [] };
}

/** A node with 192.0.2.1 and two pods' networks; everything else is behind eth0. */
export const routes: Routes = {
  local: ["127.0.0.0/8", "192.0.2.1/32", "10.244.1.1/32"].map((text) => parseCIDR(text)!),
  routes: [
    { prefix: parseCIDR("0.0.0.0/0")!, device: "eth0", metric: 0 },
    { prefix: parseCIDR("10.244.1.0/24")!, device: "veth1", metric: 0 },
  ],
};

export const surroundings: Surroundings = surroundingsOf(routes, new Map());

/** Each way in a word or two: `50% 10.244.1.5:8080 m`, `100% reject`. */
export function fates(
  ruleset: Ruleset,
  packet: Partial<Packet> & { saddr: string; daddr: string },
  place: Surroundings = surroundings,
): string[] {
  const { ways } = walk(ruleset, { protocol: "tcp", dport: 80, iif: undefined, ...packet }, place);
  return ways.map(({ share, fate, dnat, snat }) => {
    const where = dnat === undefined ? fate : `${dnat.address}:${dnat.port}`;
    const end = fate === "drop" || fate === "reject" ? fate : where;
    return `${Math.round(share * 100)}% ${end}${snat === undefined ? "" : " m"}`;
  });
}
