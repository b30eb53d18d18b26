import { canaryChain, canaryRule, canaryTables, type Jump, type Table, treeChains } from "./fixed.ts";
import { isJump } from "./own.ts";
import type { ChainsByTable } from "./port.ts";
import { chainPrint } from "./print.ts";
import type { AnyTable } from "./text.ts";

const rootChains = new Set(Object.values(treeChains).map(({ table, root }) => `${table} ${root}`));
/** Shared with the kubelet role and with kubelets, who add to it what is there already, or more. */
const sharedPlace = "filter KUBE-FIREWALL";

/**
 * What must be in the chains through which every packet comes: the fixed chains, the roots of the dispatch trees, the
 * canaries, and the jumps in the built-in chains. Those of services are not looked at: they are many.
 */
export class Guard {
  readonly #prints = new Map<string, number>();
  #shared: readonly string[] = [];
  readonly #jumps: readonly Jump[];

  constructor(jumps: readonly Jump[]) {
    this.#jumps = jumps;
    for (const table of canaryTables) this.#prints.set(`${table} ${canaryChain}`, chainPrint([canaryRule]));
  }

  /** Notes what was written to fixed chains. */
  note(table: Table, chains: ReadonlyMap<string, readonly string[]>): void {
    for (const [chain, rules] of chains) {
      if (`${table} ${chain}` === sharedPlace) this.#shared = rules;
      else this.#prints.set(`${table} ${chain}`, chainPrint(rules));
    }
  }

  /** Notes which roots are among the chains of dispatch trees that were written. */
  noteRoots(table: Table, chains: ReadonlyMap<string, readonly string[]>): void {
    for (const [chain, rules] of chains) {
      if (rootChains.has(`${table} ${chain}`)) this.#prints.set(`${table} ${chain}`, chainPrint(rules));
    }
  }

  /** What to list for {@link findDamage}. */
  chains(): ChainsByTable {
    const chains: Record<AnyTable, string[]> = { mangle: [], filter: [], nat: [] };
    const places = [...this.#prints.keys(), ...this.#jumps.map(({ table, from }) => `${table} ${from}`)];
    if (this.#shared.length > 0) places.push(sharedPlace);
    for (const place of new Set(places)) {
      const [table = "", chain = ""] = place.split(" ");
      chains[table as AnyTable].push(chain);
    }
    return chains;
  }

  /** Compares with what was listed. @returns what is not as it was written, or undefined. Pure. */
  findDamage(listed: ReadonlyMap<string, readonly string[]>): string | undefined {
    for (const [place, print] of this.#prints) {
      const rules = listed.get(place);
      if (rules === undefined || chainPrint(rules.map(withoutChain)) !== print) return describe(place, rules);
    }
    const shared = listed.get(sharedPlace)?.map((rule) => chainPrint([withoutChain(rule)]));
    if (!this.#shared.every((rule) => shared?.includes(chainPrint([rule])))) return describe(sharedPlace, undefined);
    for (const jump of this.#jumps) {
      const rules = listed.get(`${jump.table} ${jump.from}`) ?? [];
      if (rules.some((rule) => isJump(rule, jump))) continue;
      return `chain ${jump.from} of table ${jump.table} lost its jump to ${jump.to}`;
    }
    return undefined;
  }
}

function withoutChain(rule: string): string {
  return rule.slice(rule.indexOf(" ", 3) + 1);
}

function describe(place: string, rules: readonly string[] | undefined): string {
  const [table = "", chain = ""] = place.split(" ");
  if (rules?.length === 0) return `chain ${chain} of table ${table} was flushed`;
  return `chain ${chain} of table ${table} is not as it was written`;
}
