import type { Family } from "../ip.ts";
import { formatIP, parseCIDR, parseIP } from "../ip.ts";
import { parseIptablesRule, type SavedRule } from "./iptables-rule.ts";
import {
  type BaseChain,
  type Chain,
  Entries,
  type Entry,
  type Hook,
  type Rule,
  type Table,
  type Value,
} from "./ruleset.ts";

// Where the kernel calls the tables of iptables; NF_IP_PRI_… of its headers.
const priorities: Readonly<Record<string, number>> = { raw: -300, mangle: -150, nat: -100, filter: 0, security: 50 };
const sourceNatPriority = 100;
const hooks: Readonly<Record<string, Hook>> = {
  PREROUTING: "prerouting",
  INPUT: "input",
  FORWARD: "forward",
  OUTPUT: "output",
  POSTROUTING: "postrouting",
};
const ruleRE = /^(?:\[(\d+):(\d+)\] )?-A (\S+) ?(.*)$/;

/** Sets of ipset, with their types, `hash:ip,port`. */
export interface Ipsets {
  readonly kinds: ReadonlyMap<string, string>;
  readonly entries: ReadonlyMap<string, Entries>;
}

/** Reads `ipset save`, line by line. Members that are not understood are left out, and so are their sets. Pure. */
export function parseIpsets(lines: Iterable<string>): Ipsets {
  const kinds = new Map<string, string>();
  const members = new Map<string, Entry[]>();
  for (const line of lines) {
    const [verb, name = "", text = "", ...options] = line.split(" ");
    if (verb === "create") {
      kinds.set(name, text);
      members.set(name, []);
    }
    if (verb !== "add") continue;
    const key = memberKey(text);
    // `nomatch` excepts an address from a network: such sets are more than a list.
    if (key === undefined || options.includes("nomatch")) kinds.delete(name);
    else members.get(name)?.push({ key });
  }
  return { kinds, entries: new Map([...members].map(([name, entries]) => [name, new Entries(entries)])) };
}

/** `10.0.0.1,tcp:80` → address, protocol, port. */
function memberKey(text: string): Value[] | undefined {
  const key: Value[] = [];
  for (const part of text.split(",")) {
    const [, protocol, number] = /^(?:([a-z0-9-]+):)?(\d+)$/.exec(part) ?? [];
    if (number !== undefined) key.push(...(protocol === undefined ? [] : [protocol]), Number(number));
    else {
      const prefix = part.includes("/") ? parseCIDR(part) : parseIP(part);
      if (prefix === undefined) return undefined;
      key.push(part.includes("/") ? prefix : formatIP(prefix));
    }
  }
  return key;
}

/** Reads what iptables-save prints, line by line: feed it all lines, then ask. Rules are parsed when somebody looks. */
export class SaveReader {
  #table: Map<string, SavedChain> | undefined;
  readonly #tables = new Map<string, Map<string, SavedChain>>();
  #hasSets = false;

  line(line: string): void {
    if (line.startsWith("*")) {
      this.#table = new Map();
      this.#tables.set(line.slice(1), this.#table);
    } else if (line.startsWith(":")) {
      const [name = "", policy = "-"] = line.slice(1).split(" ");
      this.#table?.set(name, { policy, rules: [] });
    } else if (line.startsWith("[") || line.startsWith("-A")) {
      const [, packets, bytes, chain = "", text = ""] = ruleRE.exec(line) ?? [];
      if (text.includes("--match-set ")) this.#hasSets = true;
      const counter = packets === undefined ? undefined : { packets: Number(packets), bytes: Number(bytes) };
      this.#table?.get(chain)?.rules.push({ text, counter });
    }
  }

  get tableNames(): string[] {
    return [...this.#tables.keys()];
  }

  /** Some rule looks into an ipset. */
  get hasSets(): boolean {
    return this.#hasSets;
  }

  result(kind: Table["kind"], family: Family, { kinds, entries }: Ipsets): Table[] {
    return [...this.#tables].map(([name, chains]) => ({
      name,
      kind,
      sets: entries,
      chains: new Map([...chains].map(([chain, saved]) => [chain, chainOf(name, chain, saved, family, kinds)])),
    }));
  }
}

interface SavedChain {
  readonly policy: string;
  readonly rules: SavedRule[];
}

function chainOf(
  table: string,
  name: string,
  { policy, rules }: SavedChain,
  family: Family,
  setKinds: ReadonlyMap<string, string>,
): Chain {
  let parsed: readonly Rule[] | undefined;
  return {
    name,
    base: policy === "-" ? undefined : baseOf(table, name, policy),
    rules: () => (parsed ??= rules.map((rule) => parseIptablesRule(rule, family, setKinds))),
    texts: () => rules.map(({ text }) => text),
  };
}

function baseOf(table: string, chain: string, policy: string): BaseChain | undefined {
  const hook = hooks[chain];
  if (hook === undefined) return undefined;
  const isSource = table === "nat" && (hook === "postrouting" || hook === "input");
  return {
    hook,
    priority: isSource ? sourceNatPriority : (priorities[table] ?? 0),
    type: table === "nat" ? "nat" : "other",
    policy: policy === "DROP" ? "drop" : "accept",
  };
}
