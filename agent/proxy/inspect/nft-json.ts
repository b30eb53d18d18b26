import type { Family } from "../ip.ts";
import { tableName } from "../nftables/fixed.ts";
import { parseNftRule } from "./nft-rule.ts";
import { entriesOf, isJson, type Json, listOf, textOf } from "./nft-values.ts";
import { wordsOfRule } from "./nft-words.ts";
import type { BaseChain, Chain, Entries, Hook, Rule, Table } from "./ruleset.ts";

const hooks = new Set(["prerouting", "input", "forward", "output", "postrouting"]);

/** Reads what `nft --json list table` prints. What is not understood becomes a step of kind "unknown". Pure. */
export function parseNftTable(name: string, entries: readonly unknown[], family: Family): Table {
  const chains = new Map<string, { base: BaseChain | undefined; rules: Json[] }>();
  const sets = new Map<string, Entries>();
  for (const entry of entries) {
    if (!isJson(entry)) continue;
    const { chain, rule, set, map } = entry;
    if (isJson(chain)) chains.set(textOf(chain["name"]), { base: baseOf(chain), rules: [] });
    if (isJson(rule)) chains.get(textOf(rule["chain"]))?.rules.push(rule);
    for (const one of [set, map]) {
      if (isJson(one)) sets.set(textOf(one["name"]), entriesOf(one["elem"]));
    }
  }
  return {
    name,
    kind: "nft",
    sets,
    chains: new Map(
      [...chains].map(([chain, { base, rules }]) => {
        const wordsOf = name.endsWith(` ${tableName}`) ? wordsOfRule : () => undefined;
        return [chain, chainOf(chain, base, rules, family, wordsOf)];
      }),
    ),
  };
}

/** The list in an answer of `nft --json`. Throws a SyntaxError if it is no JSON. */
export function parseNftList(text: string): readonly unknown[] {
  const parsed: unknown = JSON.parse(text);
  return isJson(parsed) ? listOf(parsed["nftables"]) : [];
}

function chainOf(
  name: string,
  base: BaseChain | undefined,
  rules: readonly Json[],
  family: Family,
  wordsOf: (chain: string, text: string) => string | undefined,
): Chain {
  let parsed: readonly Rule[] | undefined;
  const all = () =>
    (parsed ??= rules.map((json) => {
      const rule = parseNftRule(json, family);
      return { ...rule, comment: rule.comment ?? wordsOf(name, rule.text) };
    }));
  return { name, base, rules: all, texts: () => all().map(({ text }) => text) };
}

function baseOf({ hook, prio, type, policy }: Json): BaseChain | undefined {
  if (typeof hook !== "string" || !hooks.has(hook)) return undefined;
  return {
    hook: hook as Hook,
    priority: typeof prio === "number" ? prio : 0,
    type: type === "nat" ? "nat" : "other",
    policy: policy === "drop" ? "drop" : "accept",
  };
}
