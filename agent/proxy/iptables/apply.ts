import { hasCode } from "../../lib/errors.ts";
import type { Iptables } from "./port.ts";
import { chainPrint } from "./print.ts";
import { type AnyTable, filterFirst, RestoreText, type TableOrder } from "./text.ts";

// iptables-nft's time for one transaction grows faster than the transaction. About 150 services of 5 endpoints each;
// found with test/bench/proxy.ts: from half to twice of it take about as long, one text for all several times as long.
const batchLinesMax = 4_000;

/** What an applier did so far. */
export interface ApplyResult {
  readonly restores: number;
  readonly lines: number;
  /** Rules written, by table. */
  readonly natRules: number;
  readonly filterRules: number;
}

/** Chains of one service that are to be written. */
export interface ServiceWrites {
  readonly key: string;
  readonly writes: readonly (readonly [chain: string, rules: readonly string[]])[];
}

/**
 * Collects changes into texts of bounded size and applies each when it is full, while the next one is being collected.
 * Texts are applied in order, one at a time; after a failure none follows.
 */
export class Applier {
  text = new RestoreText();
  readonly #iptables: Iptables;
  readonly #signal: AbortSignal;
  /** The restore under way. Its failure is noticed by whoever waits for it; nobody else should. */
  #running: Promise<void> = Promise.resolve();
  #restores = 0;
  #lines = 0;
  /** Those whose chains are in the text. */
  #services: ServiceWrites[] = [];
  /** Those whose chains were in the text that failed. */
  failedServices: readonly ServiceWrites[] = [];
  /** Chains that were to go and that something may hold. They may be there still, empty. */
  readonly undeleted: { readonly table: AnyTable; readonly chain: string }[] = [];
  #natRules = 0;
  #filterRules = 0;
  #order = filterFirst;

  /**
   * What is in the kernel already and need not be written again; by table and chain. Rewriting live chains costs: the
   * kernel checks everything that can be reached anew for every text.
   */
  readonly #present: Readonly<Partial<Record<AnyTable, ReadonlyMap<string, number>>>>;
  readonly #beforeText: () => Promise<void>;

  /** @param beforeText what the rules of a text depend on; called before each of them is applied */
  constructor(
    iptables: Iptables,
    signal: AbortSignal,
    present: Readonly<Partial<Record<AnyTable, ReadonlyMap<string, number>>>> = {},
    beforeText: () => Promise<void> = async () => {},
  ) {
    this.#present = present;
    this.#beforeText = beforeText;
    this.#iptables = iptables;
    this.#signal = signal;
  }

  result(): ApplyResult {
    return {
      restores: this.#restores,
      lines: this.#lines,
      natRules: this.#natRules,
      filterRules: this.#filterRules,
    };
  }

  /** From here on, tables change in this order; what was written before is applied before. */
  async changeOrder(order: TableOrder): Promise<void> {
    if (order === this.#order) return;
    await this.#start();
    this.#order = order;
    this.text = new RestoreText(order);
  }

  async write(table: AnyTable, chain: string, rules: readonly string[]): Promise<void> {
    const present = this.#present[table]?.get(chain);
    if (present !== undefined && present === chainPrint(rules)) return;
    this.text.write(table, chain, rules);
    if (this.text.lines >= batchLinesMax) await this.#start();
  }

  /**
   * Writes chains of one service, which stay in one text.
   *
   * @param onRewrite called first if packets may meet some of these chains already, with other rules in them
   */
  async writeService({ key, writes }: ServiceWrites, onRewrite?: () => void): Promise<void> {
    const present = this.#present.nat;
    const differing = writes.filter(([chain, rules]) => {
      const print = present?.get(chain);
      return print === undefined || print !== chainPrint(rules);
    });
    if (differing.length === 0) return;
    if (differing.some(([chain]) => present?.has(chain) === true)) onRewrite?.();
    for (const [chain, rules] of differing) this.text.write("nat", chain, rules);
    this.#services.push({ key, writes: differing });
    if (this.text.lines >= batchLinesMax) await this.#start();
  }

  async writeAll(table: AnyTable, chains: ReadonlyMap<string, readonly string[]>): Promise<void> {
    for (const [chain, rules] of chains) await this.write(table, chain, rules);
  }

  /** Deletes chains that may lead to each other, after all that was written before. */
  async deleteAll(table: AnyTable, chains: readonly string[]): Promise<void> {
    if (chains.length * 2 + this.text.lines <= batchLinesMax) {
      for (const chain of chains) this.text.delete(table, chain);
      return;
    }
    // Too many for one text: empty all of them before the first goes, since one may lead to another.
    for (const chain of chains) {
      this.text.write(table, chain, []);
      if (this.text.lines >= batchLinesMax) await this.#start();
    }
    await this.#start();
    for (const chain of chains) {
      this.text.deleteEmpty(table, chain);
      if (this.text.lines >= batchLinesMax) await this.#start();
    }
  }

  /** Resolves when everything so far is applied. */
  async flush(): Promise<void> {
    await this.#start();
    await this.#running;
  }

  /** Waits for the text before, then starts this one. */
  async #start(): Promise<void> {
    await this.#running;
    const { text } = this;
    if (text.lines === 0) return;
    await this.#beforeText();
    this.#lines += this.text.lines;
    this.#natRules += this.text.ruleCount("nat");
    this.#filterRules += this.text.ruleCount("filter");
    this.#restores += 1;
    this.text = new RestoreText(this.#order);
    const services = this.#services;
    this.#services = [];
    this.#running = this.#restore(text);
    this.#running.catch(() => {
      this.failedServices = services;
    });
  }

  /**
   * What holds a chain that is to go is somebody else's rule, which says nothing of the change that no longer needs the chain. So it is
   * deleted in the same text, which costs nothing, and a text that is refused is repeated without.
   */
  async #restore(text: RestoreText): Promise<void> {
    try {
      await this.#iptables.restore(text.toString(), this.#signal);
    } catch (err) {
      const deletions = text.deletions();
      if (!hasCode(err, "Invalid") || deletions.length === 0) throw err;
      const rest = text.withoutDeletions();
      if (rest !== "") await this.#iptables.restore(rest, this.#signal);
      this.undeleted.push(...deletions);
    }
  }
}
