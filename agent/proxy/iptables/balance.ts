import { hash } from "node:crypto";

/** Groups within groups: together with what leads to them, no more chains nest than nf_tables takes. See treeDepthMax. */
export const groupDepthMax = 2;

/** One step of a choice: take `target` with this chance, or go on with the next step. */
export interface Choice<T> {
  /** An item, or the name of a chain that chooses among some of them. */
  readonly target: { readonly item: T } | { readonly chain: string };
  /** In (0, 1]; 1: always. */
  readonly chance: number;
}

/** Up to this many items are chosen from one after the other: that reads best, and costs a packet 8 rules on average. */
export const itemsInRowMax = 16;

/**
 * Chains that choose one of `items`, each with the same chance. Few are tried in a row. Many are grouped by the first digit of
 * a hash, these by the second …, so that a packet passes some twenty rules among a thousand items, and so that one that comes or goes changes
 * the chains on its own path only. Pure.
 *
 * @param idOf what an item is told apart by
 * @param chainOf the name of a group's chain, by its digits; "" is the first one
 * @returns steps by chain, those that others lead to first
 */
export function balance<T>(
  items: readonly T[],
  idOf: (item: T) => string,
  chainOf: (digits: string) => string,
): Map<string, Choice<T>[]> {
  const chains = new Map<string, Choice<T>[]>();
  if (items.length <= itemsInRowMax) {
    const choices = inRow(items.map((item) => ({ target: { item }, weight: 1 })));
    return chains.set(chainOf(""), choices);
  }
  const hashed = items.map((item) => ({ item, digest: hash("sha256", idOf(item), "hex") }));
  choose("", hashed, chainOf, chains);
  return chains;
}

interface Hashed<T> {
  readonly item: T;
  readonly digest: string;
}

function choose<T>(
  digits: string,
  members: readonly Hashed<T>[],
  chainOf: (digits: string) => string,
  chains: Map<string, Choice<T>[]>,
): void {
  if (members.length <= itemsInRowMax || digits.length === groupDepthMax) {
    chains.set(chainOf(digits), inRow(members.map(({ item }) => ({ target: { item }, weight: 1 }))));
    return;
  }
  const groups = new Map<string, Hashed<T>[]>();
  for (const member of members) {
    const group = digits + member.digest.charAt(digits.length);
    const present = groups.get(group);
    if (present === undefined) groups.set(group, [member]);
    else present.push(member);
  }
  const sorted = [...groups].sort(([a], [b]) => (a < b ? -1 : 1));
  for (const [group, of] of sorted) choose(group, of, chainOf, chains);
  const steps = sorted.map(([group, of]) => ({ target: { chain: chainOf(group) }, weight: of.length }));
  chains.set(chainOf(digits), inRow(steps));
}

/** The i-th step sees what the ones before let pass: with equal weights 1/n, then 1/(n-1) of the rest … then all of it. */
function inRow<T>(steps: readonly { target: Choice<T>["target"]; weight: number }[]): Choice<T>[] {
  let left = steps.reduce((sum, { weight }) => sum + weight, 0);
  return steps.map(({ target, weight }) => {
    const chance = weight / left;
    left -= weight;
    return { target, chance: left === 0 ? 1 : chance };
  });
}
