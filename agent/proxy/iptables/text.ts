/** The tables that hold anything of ours. */
export type AnyTable = "mangle" | "filter" | "nat";

/** Tables in the order in which they change. */
export type TableOrder = readonly AnyTable[];
/** For services that get endpoints: they are translated before they are no longer refused. */
export const natFirst: TableOrder = ["mangle", "nat", "filter"];
/** For services that lose endpoints: they are refused before they are no longer translated. */
export const filterFirst: TableOrder = ["mangle", "filter", "nat"];

/** One input of iptables-restore, table by table; in each, chains before rules before deletions. */
export class RestoreText {
  readonly #tables: Readonly<Record<AnyTable, { chains: string[]; rules: string[]; deletes: string[] }>> = {
    mangle: { chains: [], rules: [], deletes: [] },
    filter: { chains: [], rules: [], deletes: [] },
    nat: { chains: [], rules: [], deletes: [] },
  };
  readonly #ruleCounts: Record<AnyTable, number> = { mangle: 0, filter: 0, nat: 0 };
  readonly #order: TableOrder;
  #lines = 0;

  constructor(order: TableOrder = filterFirst) {
    this.#order = order;
  }

  /** Lines so far. */
  get lines(): number {
    return this.#lines;
  }

  /** Rules of chains that are written, so far. */
  ruleCount(table: AnyTable): number {
    return this.#ruleCounts[table];
  }

  /** Makes `chain` have exactly these rules, given as arguments without `-A chain`. */
  write(table: AnyTable, chain: string, rules: readonly string[]): void {
    this.#tables[table].chains.push(`:${chain} - [0:0]`);
    for (const rule of rules) this.#tables[table].rules.push(`-A ${chain} ${rule}`);
    this.#ruleCounts[table] += rules.length;
    this.#lines += rules.length + 1;
  }

  /** Empties and deletes `chain`. Nothing may lead to it after this text's other writes. */
  delete(table: AnyTable, chain: string): void {
    this.write(table, chain, []);
    this.deleteEmpty(table, chain);
  }

  /** Deletes `chain`, which an earlier text has emptied. */
  deleteEmpty(table: AnyTable, chain: string): void {
    this.#tables[table].deletes.push(`-X ${chain}`);
    this.#lines += 1;
  }

  /** A rule into a chain that is not ours: `-I CHAIN …` or `-D CHAIN …`. */
  raw(table: AnyTable, rule: string): void {
    this.#tables[table].rules.push(rule);
    this.#lines += 1;
  }

  /** Chains that the text deletes. */
  deletions(): { table: AnyTable; chain: string }[] {
    return this.#order.flatMap((table) =>
      this.#tables[table].deletes.map((line) => ({ table, chain: line.slice("-X ".length) })),
    );
  }

  /** The text; "" if nothing was added. */
  toString(): string {
    return this.#text(true);
  }

  /** The text, in which chains that it deletes are emptied only; "" if nothing else was added. */
  withoutDeletions(): string {
    return this.#text(false);
  }

  #text(withDeletions: boolean): string {
    let text = "";
    for (const table of this.#order) {
      const { chains, rules } = this.#tables[table];
      const deletes = withDeletions ? this.#tables[table].deletes : [];
      if (chains.length + rules.length + deletes.length === 0) continue;
      // iptables-nft keeps names in a sorted list and looks for a place from the front: backwards, that is the first one.
      // A quarter less time for a full text.
      const declarations = chains.sort().reverse();
      text += `*${table}\n${[...declarations, ...rules, ...deletes].join("\n")}\nCOMMIT\n`;
    }
    return text;
  }
}
