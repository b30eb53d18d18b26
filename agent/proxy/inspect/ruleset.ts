import type { Family } from "../ip.ts";

/** What a rule can look at. `random`: one of the numbers below `below`, each with the same chance. */
export type Field =
  | { readonly kind: "saddr" | "daddr" | "protocol" | "sport" | "dport" | "iif" | "oif" | "ctstate" | "ctstatus" }
  /** The kind of an address: "local" or something else. */
  | { readonly kind: "saddrType" | "daddrType" }
  | { readonly kind: "mark"; readonly mask: number }
  | { readonly kind: "random"; readonly below: number };

/** One value, or many of them at once. Addresses are canonical texts, `bits` a prefix of their bits. */
export type Value =
  | string
  | number
  | { readonly bits: string; readonly family: Family }
  | { readonly first: string | number; readonly last: string | number }
  | { readonly startsWith: string };

/** What becomes of a packet. Chains are those of the rule's own table. */
export type Verdict =
  | { readonly kind: "accept" | "drop" | "return" | "continue" }
  | { readonly kind: "reject"; readonly with: string }
  | { readonly kind: "jump" | "goto"; readonly chain: string }
  | { readonly kind: "dnat"; readonly address: string; readonly port: number | undefined }
  | { readonly kind: "redirect"; readonly port: number | undefined }
  /** `to` "": the address of the interface by which it leaves. */
  | { readonly kind: "snat"; readonly to: string };

/** A member of a set or map. */
export interface Entry {
  readonly key: readonly Value[];
  /** Maps only. */
  readonly verdict?: Verdict;
  readonly comment?: string;
}

/** Members of a set or map; most are found by their whole key. */
export class Entries {
  readonly #exact = new Map<string, Entry>();
  readonly #others: Entry[] = [];

  constructor(entries: Iterable<Entry>) {
    for (const entry of entries) {
      if (entry.key.every((part) => typeof part !== "object")) this.#exact.set(entry.key.join(" "), entry);
      else this.#others.push(entry);
    }
  }

  get size(): number {
    return this.#exact.size + this.#others.length;
  }

  *[Symbol.iterator](): Iterator<Entry> {
    yield* this.#exact.values();
    yield* this.#others;
  }

  /** By a whole key: one value for each of its fields. */
  find(
    key: readonly (string | number)[],
    contains: (value: Value, one: string | number) => boolean,
  ): Entry | undefined {
    const exact = this.#exact.get(key.join(" "));
    if (exact !== undefined) return exact;
    return this.#others.find((entry) => entry.key.every((value, at) => contains(value, key[at] ?? "")));
  }
}

/** Written in the rule itself, or kept under a name. */
export type Members = Entries | { readonly set: string };

/** A part of a rule. They are looked at in order; the first that does not match ends the rule. */
export type Step =
  | { readonly kind: "match"; readonly fields: readonly Field[]; readonly among: Members; readonly isNegated: boolean }
  | { readonly kind: "chance"; readonly probability: number }
  /** The client is in a list of xt_recent. */
  | { readonly kind: "recent"; readonly list: string; readonly isNegated: boolean }
  /** A condition that is not understood. */
  | { readonly kind: "unknown"; readonly text: string }
  /** mark = (mark & keep) ^ flip */
  | { readonly kind: "mark"; readonly keep: number; readonly flip: number }
  | { readonly kind: "verdict"; readonly verdict: Verdict }
  /** The verdict stands in a map; without an entry the rule goes on. */
  | { readonly kind: "lookup"; readonly fields: readonly Field[]; readonly map: Members };

export interface Counter {
  readonly packets: number;
  readonly bytes: number;
}

/** One rule as the kernel has it. */
export interface Rule {
  /** As its table's own command lists it, without the chain. */
  readonly text: string;
  readonly comment: string | undefined;
  readonly counter: Counter | undefined;
  readonly steps: readonly Step[];
}

export type Hook = "prerouting" | "input" | "forward" | "output" | "postrouting";

/** Where the kernel calls a chain by itself. */
export interface BaseChain {
  readonly hook: Hook;
  readonly priority: number;
  /** "nat": looked at until something is translated, and for the first packet of a connection only. */
  readonly type: "nat" | "other";
  readonly policy: "accept" | "drop";
}

export interface Chain {
  readonly name: string;
  readonly base: BaseChain | undefined;
  /** Parsed when asked for: of a hundred thousand rules, a packet meets forty. */
  rules(): readonly Rule[];
  /** The rules' texts, in order, for looking something up; cheaper than `rules` with iptables. */
  texts(): readonly string[];
}

export interface Table {
  /** As people call it: `nat`, `ip kube-proxy`. */
  readonly name: string;
  /** The commands that made it. */
  readonly kind: "iptables-nft" | "iptables-legacy" | "nft";
  readonly chains: ReadonlyMap<string, Chain>;
  readonly sets: ReadonlyMap<string, Entries>;
}

/** The rules of one IP family, all tables of it. */
export interface Ruleset {
  readonly family: Family;
  readonly tables: readonly Table[];
  /** What could not be read, one line each. */
  readonly unread: readonly string[];
}

/** A value as a word; "" for one that stands for many. */
export function wordOf(value: Value | undefined): string {
  return value === undefined || typeof value === "object" ? "" : String(value);
}

/** Entries of single values. */
export function oneOf(...values: readonly Value[]): Entries {
  return new Entries(values.map((value) => ({ key: [value] })));
}
