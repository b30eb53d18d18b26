import type {
  ChainsByTable,
  Ipset,
  Iptables,
  MissingChain,
  PacketCount,
  SetChanges,
} from "../../agent/proxy/iptables/port.ts";
import { RefusedLine } from "../../agent/proxy/iptables/port.ts";
import { AgentError } from "../../agent/lib/errors.ts";
import { chainPrint } from "../../agent/proxy/iptables/print.ts";

const builtIn: Readonly<Record<string, readonly string[]>> = {
  mangle: ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"],
  filter: ["INPUT", "FORWARD", "OUTPUT"],
  nat: ["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"],
};
const targetsWithoutChain = new Set([
  "ACCEPT",
  "DROP",
  "RETURN",
  "REJECT",
  "DNAT",
  "SNAT",
  "MASQUERADE",
  "MARK",
  "SET",
]);
const chainNameLengthMax = 28;
const nestingMax = 16;

/** Rules by chain, as arguments without `-A chain`. */
export type Chains = Map<string, string[]>;

/**
 * The kernel's tables, as far as iptables-restore text can change them: with the checks that the real thing makes
 * (targets exist, deleted chains are empty and unused, names are short enough, chains nest at most 16 deep) and
 * all or nothing for each table. Faults on demand.
 */
export class FakeIptables implements Iptables {
  readonly hasRandomFully = true;
  readonly tables = new Map<string, Chains>();
  /** Every text that was applied or refused. */
  readonly texts: string[] = [];
  readonly #failures: AgentError[] = [];
  /** A text with a line that matches is refused, as a kernel without some module would. */
  refuses: RegExp | undefined;
  /** Hears of each moment at which packets may meet other rules. */
  onCommit: (() => void) | undefined;

  constructor() {
    for (const [table, chains] of Object.entries(builtIn)) this.tables.set(table, new Map(chains.map((c) => [c, []])));
  }

  /** The next restores fail with these errors, before they change anything. */
  failNext(...errors: AgentError[]): void {
    this.#failures.push(...errors);
  }

  /** As somebody's `iptables -F` and `-X` in all tables. */
  flushEverything(): void {
    for (const [table, chains] of Object.entries(builtIn)) this.tables.set(table, new Map(chains.map((c) => [c, []])));
  }

  async restore(text: string): Promise<void> {
    this.texts.push(text);
    const failure = this.#failures.shift();
    if (failure !== undefined) throw failure;
    const refused = text.split("\n").findIndex((line) => this.refuses?.test(line) === true);
    if (refused >= 0) {
      throw new AgentError("Invalid", "the kernel says no", { cause: new RefusedLine(text, refused + 1) });
    }
    for (const [table, lines] of splitTables(text)) {
      const next: Chains = new Map([...(this.tables.get(table) ?? [])].map(([chain, rules]) => [chain, [...rules]]));
      for (const line of lines) applyLine(next, line);
      checkClosed(table, next);
      this.tables.set(table, next);
      this.onCommit?.();
    }
  }

  async listRules(table: string, chain: string): Promise<string[] | undefined> {
    return this.tables
      .get(table)
      ?.get(chain)
      ?.map((rule) => `-A ${chain} ${rule}`);
  }

  async expectTable(): Promise<void> {}

  async listPackets(table: string, chain: string): Promise<PacketCount[]> {
    return (await this.listRules(table, chain))?.map((rule) => ({ rule, packets: 0 })) ?? [];
  }

  async listMany(chains: ChainsByTable): Promise<Map<string, string[]> | MissingChain> {
    const found = new Map<string, string[]>();
    for (const [table, names] of Object.entries(chains)) {
      for (const name of names) {
        const rules = await this.listRules(table, name);
        if (rules === undefined) return { missing: `${table} ${name}` };
        found.set(`${table} ${name}`, rules);
      }
    }
    return found;
  }

  async readChains(table: string): Promise<Map<string, number>> {
    const chains = [...(this.tables.get(table) ?? [])].filter(([chain]) => builtIn[table]?.includes(chain) !== true);
    return new Map(chains.map(([chain, rules]) => [chain, chainPrint(rules)]));
  }

  /** All of it as text, chains sorted: equal texts mean equal tables. */
  dump(): string {
    let text = "";
    for (const [table, chains] of this.tables) {
      text += `*${table}\n`;
      for (const [chain, rules] of [...chains].sort(([a], [b]) => (a < b ? -1 : 1))) {
        text += `:${chain}\n${rules.map((rule) => `  ${rule}\n`).join("")}`;
      }
    }
    return text;
  }
}

/** Sets in memory. */
export class FakeIpset implements Ipset {
  readonly sets = new Map<string, Set<string>>();
  /** As {@link FakeIptables.onCommit}. */
  onCommit: (() => void) | undefined;
  /** Changes that were made, one line each. */
  readonly log: string[] = [];
  /** More members than this are refused in changes, until the set is replaced. */
  readonly sizes = new Map<string, number>();
  #failures: AgentError[] = [];

  /** The members of the set of service addresses. */
  get members(): Set<string> | undefined {
    return this.sets.get("KUBE-SERVICE-IPS");
  }

  /** The next replacements and changes fail with these errors, before they change anything. */
  failNext(...errors: AgentError[]): void {
    this.#failures.push(...errors);
  }

  /** Failures that have not happened do not. */
  forgetFailures(): void {
    this.#failures = [];
  }

  /** All of it as text, sorted. */
  dump(): string {
    const lines = [...this.sets].flatMap(([name, members]) => [name, ...[...members].map((one) => `${name} ${one}`)]);
    return lines.sort().join("\n");
  }

  /** For the packet tracer. */
  bySet(): Record<string, Set<string>> {
    return Object.fromEntries(this.sets);
  }

  async create(names: Iterable<string>): Promise<void> {
    for (const name of names) if (!this.sets.has(name)) this.sets.set(name, new Set());
  }

  async replace(sets: ReadonlyMap<string, Iterable<string>>): Promise<void> {
    this.#maybeFail();
    for (const [name, members] of sets) {
      this.sets.set(name, new Set(members));
      this.sizes.delete(name);
      this.log.push(`replace ${name}`);
    }
    this.onCommit?.();
  }

  async change(sets: ReadonlyMap<string, SetChanges>): Promise<void> {
    this.#maybeFail();
    for (const [name, { add, remove }] of sets) {
      const members = this.sets.get(name);
      if (members === undefined) throw invalid(`no set ${name}`);
      for (const member of remove) {
        members.delete(member);
        this.log.push(`del ${name} ${member}`);
      }
      for (const member of add) {
        if (members.size >= (this.sizes.get(name) ?? Number.POSITIVE_INFINITY)) throw invalid("Hash is full");
        members.add(member);
        this.log.push(`add ${name} ${member}`);
      }
    }
    this.onCommit?.();
  }

  async counts(): Promise<Map<string, number>> {
    return new Map([...this.sets].map(([name, members]) => [name, members.size]));
  }

  async destroy(names: Iterable<string>): Promise<void> {
    for (const name of names) this.sets.delete(name);
  }

  #maybeFail(): void {
    const failure = this.#failures.shift();
    if (failure !== undefined) throw failure;
  }
}

/** Lines of a restore text by table. Throws if a table does not COMMIT. */
export function splitTables(text: string): [table: string, lines: string[]][] {
  const tables: [string, string[]][] = [];
  let current: [string, string[]] | undefined;
  for (const line of text.split("\n")) {
    if (line === "" || line.startsWith("#")) continue;
    if (line.startsWith("*")) {
      if (current !== undefined) throw invalid(`table ${current[0]} does not COMMIT`);
      current = [line.slice(1), []];
    } else if (line === "COMMIT") {
      if (current === undefined) throw invalid("COMMIT outside a table");
      tables.push(current);
      current = undefined;
    } else if (current === undefined) throw invalid(`outside a table: ${line}`);
    else current[1].push(line);
  }
  if (current !== undefined) throw invalid(`table ${current[0]} does not COMMIT`);
  return tables;
}

/** The chain that a rule jumps or goes to; undefined if it goes nowhere else. */
export function chainTarget(rule: string): string | undefined {
  const target = /(?:^| )-[jg] (\S+)/.exec(rule)?.[1];
  return target === undefined || targetsWithoutChain.has(target) ? undefined : target;
}

function applyLine(chains: Chains, line: string): void {
  const [verb = "", name = ""] = line.split(" ", 2);
  if (verb.startsWith(":")) {
    const chain = verb.slice(1);
    if (chain.length > chainNameLengthMax) throw invalid(`chain name ${chain} is too long`);
    chains.set(chain, []);
    return;
  }
  const rules = chains.get(name);
  if (rules === undefined) throw invalid(`no chain ${name}: ${line}`);
  const rule = line.slice(verb.length + name.length + 2);
  if (verb === "-A") rules.push(rule);
  else if (verb === "-I") rules.unshift(rule);
  else if (verb === "-D") {
    const at = rules.indexOf(rule);
    if (at < 0) throw invalid(`no such rule: ${line}`);
    rules.splice(at, 1);
  } else if (verb === "-X") {
    if (rules.length > 0) throw invalid(`chain ${name} is not empty`);
    chains.delete(name);
  } else throw invalid(`not understood: ${line}`);
}

function checkClosed(table: string, chains: Chains): void {
  const depths = new Map<string, number>();
  const depthBelow = (chain: string, path: readonly string[]): number => {
    const known = depths.get(chain);
    if (known !== undefined) return known;
    if (path.includes(chain)) throw invalid(`loop through chain ${chain} of table ${table}`);
    const rules = chains.get(chain);
    if (rules === undefined) throw invalid(`table ${table}: ${path.at(-1)} leads to ${chain}, which is not there`);
    const below = rules.map((rule) => {
      const target = chainTarget(rule);
      return target === undefined ? 0 : depthBelow(target, [...path, chain]);
    });
    const depth = 1 + Math.max(0, ...below);
    depths.set(chain, depth);
    return depth;
  };
  for (const chain of chains.keys()) {
    if (depthBelow(chain, []) > nestingMax) throw invalid(`chains of table ${table} nest too deep from ${chain}`);
  }
}

function invalid(message: string): AgentError {
  return new AgentError("Invalid", message);
}
