import { AgentError } from "../../agent/lib/errors.ts";
import type { Nft, TableContent } from "../../agent/proxy/nftables/exec.ts";

/**
 * One nftables table in memory, changed by the text of nft commands. As strict as the kernel: nothing may be used before it is
 * there, deleted while somebody refers to it, or added twice with another value. A transaction that fails changes nothing.
 */
export class FakeNft implements Nft {
  chains: Map<string, string[]> | undefined;
  /** What base chains are attached to, by chain. */
  hooks = new Map<string, { type: string; hook: string; priority: number }>();
  sets = new Map<string, { kind: string; body: string; elements: Map<string, string> }>();
  /** Texts that were applied. */
  readonly applied: string[] = [];
  /** Thrown instead of the next transaction. */
  failure: AgentError | undefined;
  /** Lines that this kernel does not take. */
  refuses: RegExp | undefined;

  apply = async (text: string): Promise<void> => {
    const { failure } = this;
    this.failure = undefined;
    if (failure !== undefined) throw failure;
    const before = structuredClone({ chains: this.chains, sets: this.sets });
    try {
      for (const line of text.split("\n")) if (line !== "") this.#command(line);
      this.#expectClosed();
      this.applied.push(text);
    } catch (err) {
      Object.assign(this, before);
      throw err;
    }
  };

  tryOut = async (text: string): Promise<string | undefined> => {
    const before = structuredClone({ chains: this.chains, sets: this.sets });
    try {
      if (text.startsWith("add table ip kube-proxy-trial")) Object.assign(this, { chains: undefined, sets: new Map() });
      for (const line of text.split("\n")) {
        if (line.startsWith("delete rule")) this.#expectRule(line);
        else if (line !== "") this.#command(line);
      }
      this.#expectClosed();
      return undefined;
    } catch (err) {
      return (err as Error).message;
    } finally {
      Object.assign(this, before);
    }
  };

  read = async (): Promise<TableContent | undefined> => {
    if (this.chains === undefined) return undefined;
    const named = (kind: string) => [...this.sets].filter(([, set]) => set.kind === kind).map(([name]) => name);
    const handles = new Map([...this.chains].map(([chain, rules]) => [chain, rules.map((_, at) => at + 1)]));
    const timeout = (name: string) => /timeout (\d+)s/.exec(this.sets.get(name)?.body ?? "")?.[1];
    const sets = named("set").map((name): [string, number | undefined] => {
      const seconds = timeout(name);
      return [name, seconds === undefined ? undefined : Number(seconds)];
    });
    return { chains: [...this.chains.keys()], sets: new Map(sets), maps: named("map"), handles };
  };

  /** The table as text: chains and sets in the order of their names. */
  dump(): string {
    const lines: string[] = [];
    for (const [name, { kind, body, elements }] of [...this.sets].sort(byName)) {
      lines.push(`${kind} ${name} ${body}`);
      for (const [key, value] of [...elements].sort(byName)) lines.push(`  ${key}${value === "" ? "" : ` : ${value}`}`);
    }
    for (const [name, rules] of [...(this.chains ?? [])].sort(byName)) {
      lines.push(`chain ${name}`, ...rules.map((rule) => `  ${rule}`));
    }
    return `${lines.join("\n")}\n`;
  }

  #command(line: string): void {
    const fail = (why: string) => new AgentError("Invalid", `${why}: ${line}`);
    const found =
      /^(add|delete|flush) (table|chain|rule|set|map|element) ip6? kube-proxy(?:-trial)?(?: (\S+))?(?: (.*))?$/.exec(
        line,
      );
    if (found === null) throw fail("not understood");
    if (this.refuses?.test(line) === true) throw fail("refused");
    const comment = [...line.matchAll(/comment "([^"]*)"/g)].find(([, text = ""]) => text.length > 128);
    if (comment !== undefined) throw fail("comment too long, 128 characters maximum allowed");
    const [, verb, kind, name = "", rest = ""] = found;
    if (kind === "table") {
      if (verb === "delete") this.sets = new Map();
      this.chains = verb === "delete" ? undefined : (this.chains ?? new Map());
      return;
    }
    const { chains, sets } = this;
    if (chains === undefined) throw fail("no such table");
    const chain = chains.get(name);
    const set = sets.get(name);
    switch (`${verb} ${kind}`) {
      case "add chain":
        if (chain === undefined) chains.set(name, []);
        this.#attach(name, rest);
        return;
      case "flush chain":
        if (chain === undefined) throw fail("no such chain");
        chains.set(name, []);
        return;
      case "delete chain":
        if (chain === undefined) throw fail("no such chain");
        if (chain.length > 0) throw fail("the chain has rules");
        chains.delete(name);
        return;
      case "add rule":
        if (chain === undefined) throw fail("no such chain");
        chain.push(rest);
        return;
      case "add set":
      case "add map":
        if (set !== undefined && set.body !== rest) throw fail("File exists");
        if (set === undefined) sets.set(name, { kind: kind ?? "", body: rest, elements: new Map() });
        return;
      case "flush set":
      case "flush map":
        if (set === undefined) throw fail("no such set");
        set.elements = new Map();
        return;
      case "delete set":
      case "delete map":
        if (!sets.delete(name)) throw fail("no such set");
        for (const rules of chains.values()) {
          if (rules.some((rule) => rule.split(" ").includes(`@${name}`))) throw fail("Device or resource busy");
        }
        return;
      default: {
        if (set === undefined) throw fail("no such set");
        for (const element of rest.slice(2, -2).split(", ")) {
          const [about = "", value = ""] = element.split(" : ");
          const key = about.replace(/ comment ".*"$/, "");
          const present = set.elements.get(key);
          if (verb === "delete" && !set.elements.delete(key)) throw fail(`no element ${key}`);
          if (verb === "add" && present !== undefined && present !== value) throw fail("File exists");
          if (verb === "add") set.elements.set(key, value);
        }
      }
    }
  }

  /** Handles count a chain's rules. */
  #expectRule(line: string): void {
    const [, chain = "", handle = ""] = /kube-proxy (\S+) handle (\d+)$/.exec(line) ?? [];
    const count = this.chains?.get(chain)?.length ?? 0;
    if (count < Number(handle)) throw new AgentError("Invalid", `no such rule: ${line}`);
  }

  #attach(chain: string, rest: string): void {
    const found = /^\{ type (\w+) hook (\w+) priority (-?\d+) ; \}$/.exec(rest);
    if (found === null && rest !== "") throw new AgentError("Invalid", `not understood: ${rest}`);
    const [, type = "", hook = "", priority = ""] = found ?? [];
    if (found !== null) this.hooks.set(chain, { type, hook, priority: Number(priority) });
  }

  /** Whatever is referred to must be there at the end. */
  #expectClosed(): void {
    const { chains, sets } = this;
    const goals: string[] = [];
    for (const rules of chains?.values() ?? []) {
      for (const rule of rules) {
        goals.push(...[...rule.matchAll(/(?:goto|jump) ([^\s,]+)/g)].map(([, goal = ""]) => goal));
        for (const [, name = ""] of rule.matchAll(/@(\S+)/g)) {
          if (!sets.has(name)) throw new AgentError("Invalid", `no set ${name} for: ${rule}`);
        }
      }
    }
    for (const { elements } of sets.values()) {
      for (const value of elements.values()) if (value.startsWith("goto ")) goals.push(value.slice("goto ".length));
    }
    const missing = goals.find((goal) => chains?.has(goal) !== true);
    if (missing !== undefined) throw new AgentError("Invalid", `no chain ${missing}`);
  }
}

function byName(a: readonly [string, unknown], b: readonly [string, unknown]): number {
  return a[0] < b[0] ? -1 : 1;
}
