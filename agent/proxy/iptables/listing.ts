import type { ChainsByTable } from "./port.ts";
import type { AnyTable } from "./text.ts";

/**
 * An input for iptables-restore that changes nothing and makes it print chains: one process for all of them, where
 * `iptables -S` needs one for each. Pure.
 *
 * @returns the text, and which `table chain` each of its lines (from 1) asks for
 */
export function listingText(chains: ChainsByTable): { text: string; order: ReadonlyMap<number, string> } {
  const lines: string[] = [];
  const order = new Map<number, string>();
  for (const [table, names] of Object.entries(chains) as [AnyTable, readonly string[]][]) {
    if (names.length === 0) continue;
    lines.push(`*${table}`);
    for (const name of names) order.set(lines.push(`-S ${name}`), `${table} ${name}`);
    lines.push("COMMIT");
  }
  return { text: `${lines.join("\n")}\n`, order };
}

// Chains of others may hold tens of thousands of rules, of which only the jumps into ours matter here.
const ownChainRE = /^KUBE-/;
const ownJump = " -j KUBE-";

/** True if this `-A chain …` line is worth keeping: all of our chains, and of others' chains what leads into ours. */
export function isKept(chain: string, line: string): boolean {
  return ownChainRE.test(chain) || line.includes(ownJump);
}

/**
 * Picks rules by `table chain`, as `-A CHAIN …`, out of the lines that the command prints, of which there may be many.
 * It begins each chain with a line of its own. Of chains whose name is not ours, only rules that lead into ours are kept.
 */
export class ListingReader {
  readonly #asked: readonly string[];
  readonly #rules = new Map<string, string[]>();
  #chain = "";
  #current: string[] | undefined;
  #isOdd = false;

  constructor(order: ReadonlyMap<number, string>) {
    this.#asked = [...order.values()];
  }

  line(line: string): void {
    const head = /^-[NP] (\S+)/.exec(line)?.[1];
    if (head !== undefined) {
      const place = this.#asked[this.#rules.size];
      // Chains come in the order in which they were asked for. Anything else is no answer to this question.
      if (place?.split(" ")[1] !== head) this.#isOdd = true;
      else this.#rules.set(place, (this.#current = []));
      this.#chain = head;
    } else if (line.startsWith("-A ") && isKept(this.#chain, line)) this.#current?.push(line);
  }

  /** Undefined unless every chain that was asked for was printed. */
  result(): Map<string, string[]> | undefined {
    return this.#isOdd || this.#rules.size < this.#asked.length ? undefined : this.#rules;
  }
}
