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

/** Rules by `table chain`, as `-A CHAIN …`, from what the command printed. It begins each chain with a line of its own. Pure. */
export function parseListing(stdout: string, order: ReadonlyMap<number, string>): Map<string, string[]> {
  const asked = [...order.values()];
  const rules = new Map<string, string[]>();
  let current: string[] | undefined;
  for (const line of stdout.split("\n")) {
    const head = /^-[NP] (\S+)/.exec(line)?.[1];
    if (head !== undefined) {
      const place = asked[rules.size];
      // Chains come in the order in which they were asked for. Anything else is no answer to this question.
      if (place?.split(" ")[1] !== head) return new Map();
      rules.set(place, (current = []));
    } else if (line.startsWith("-A ")) current?.push(line);
  }
  return rules;
}
