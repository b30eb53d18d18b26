import type { ExecResult } from "../../agent/lib/exec.ts";
import { hasCode, messageOf } from "../../agent/lib/errors.ts";
import type { Commands } from "../../agent/proxy/commands.ts";
import { FakeIptables } from "./fake-iptables.ts";

const builtIn = new Set(["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"]);

/**
 * The netfilter commands of a machine that has iptables, ip6tables and, as told, ipset and conntrack. Rules end in
 * `tables`; each command line is noted in `log`.
 */
export class FakeCommands implements Commands {
  readonly tables = { iptables: new FakeIptables(), ip6tables: new FakeIptables() };
  readonly log: string[] = [];
  readonly sets = new Map<string, Set<string>>();
  /** Types of `sets`. */
  readonly setKinds = new Map<string, string>();
  /** Commands that are not there. */
  readonly missing = new Set<string>();
  /** How commands end, whatever they are asked. */
  readonly failures = new Map<string, ExecResult>();
  /** What `conntrack -L` prints. */
  flows: string[] = [];
  version = "v1.8.9 (nf_tables)";

  readonly run: Commands["run"] = async (file, args, options) => {
    this.log.push([file, ...args].join(" "));
    options.signal?.throwIfAborted();
    if (this.missing.has(file)) return absent(file);
    const failure = this.failures.get(file);
    if (failure !== undefined) return failure;
    const stdin = String(options.stdin ?? "");
    if (file === "ipset") return this.#ipset(args, stdin);
    if (file === "conntrack") return ended(0, "", "");
    if (file === "nft") return ended(1, "", "Error: No such file or directory"); // no table of ours
    const tables = this.#tablesOf(file);
    if (args[0] === "--version") return ended(0, `${file} ${this.version}\n`, "");
    if (file.endsWith("-restore")) {
      return tables.restore(stdin).then(
        () => ended(0, "", ""),
        (err: unknown) =>
          hasCode(err, "Unavailable")
            ? ended(4, "", "Another app is currently holding the xtables lock.")
            : ended(1, "", `${file}: line 2 failed: ${messageOf(err)}`),
      );
    }
    return ended(1, "", `${file}: not understood: ${args.join(" ")}`);
  };

  readonly lines: Commands["lines"] = async (file, args, { onLine, stdin }) => {
    this.log.push([file, ...args].join(" "));
    if (this.missing.has(file)) return absent(file);
    const failure = this.failures.get(file);
    if (failure !== undefined) return failure;
    if (file === "ipset") {
      for (const line of this.#ipset(args, "").stdout.split("\n")) onLine(line);
      return ended(0, "", "");
    }
    if (stdin !== undefined || args.includes("-S")) {
      const asked = stdin ?? `*${args[args.indexOf("-t") + 1]}\n-S ${args[args.indexOf("-S") + 1]}\nCOMMIT\n`;
      const result = await list(this.#tablesOf(file), file, asked);
      for (const line of result.stdout.split("\n")) onLine(line);
      if (result.failure === undefined || stdin !== undefined) return { ...result, stdout: "" };
      return ended(1, "", `${file}: No chain/target/match by that name.`);
    }
    const output = file === "conntrack" ? this.flows : this.#save(file, args[args.indexOf("-t") + 1]);
    for (const line of output) if (onLine(line) === false) break;
    return ended(0, "", "");
  };

  #tablesOf(file: string): FakeIptables {
    return file.startsWith("ip6") ? this.tables.ip6tables : this.tables.iptables;
  }

  #save(file: string, only: string | undefined): string[] {
    const lines: string[] = [];
    for (const [table, chains] of this.#tablesOf(file).tables) {
      if (only !== undefined && only !== table) continue;
      lines.push(`*${table}`);
      for (const chain of chains.keys()) lines.push(`:${chain} ${builtIn.has(chain) ? "ACCEPT" : "-"} [0:0]`);
      for (const [chain, rules] of chains) for (const rule of rules) lines.push(`-A ${chain} ${rule}`);
      lines.push("COMMIT");
    }
    return lines;
  }

  #ipset(args: readonly string[], stdin: string): ExecResult {
    const [verb, name = ""] = args;
    const absent = () => ended(1, "", "ipset v7.17: The set with the given name does not exist");
    if (verb === "list" && name === "-terse") {
      const kinds = (set: string) => this.setKinds.get(set) ?? "";
      const headers = [...this.sets].map(
        ([set, members]) => `Name: ${set}\nType: ${kinds(set)}\nNumber of entries: ${members.size}\n`,
      );
      return ended(0, headers.join("\n"), "");
    }
    if (verb === "list" && name === "-name") return ended(0, [...this.sets.keys(), ""].join("\n"), "");
    if (verb === "destroy") return this.sets.delete(name) ? ended(0, "", "") : absent();
    for (const line of stdin.split("\n")) {
      const [what, set = "", member = ""] = line.split(" ");
      if (what === "create" && !this.sets.has(set)) {
        this.sets.set(set, new Set());
        this.setKinds.set(set, member);
      }
      if (what === "flush") this.sets.get(set)?.clear();
      if (what === "add") this.sets.get(set)?.add(member);
      if (what === "del") this.sets.get(set)?.delete(member);
      if (what === "destroy") this.sets.delete(set);
      if (what === "swap") {
        const [a, b] = [this.sets.get(set), this.sets.get(member)];
        if (a !== undefined && b !== undefined) this.sets.set(set, b).set(member, a);
      }
      if (what === "rename") {
        this.sets.set(member, this.sets.get(set) ?? new Set());
        this.setKinds.set(member, this.setKinds.get(set) ?? "");
        this.sets.delete(set);
      }
    }
    return ended(0, "", "");
  }
}

/** What iptables-restore does with `-S CHAIN` in its input. */
async function list(tables: FakeIptables, file: string, stdin: string): Promise<ExecResult> {
  let table = "";
  let stdout = "";
  for (const [at, line] of stdin.split("\n").entries()) {
    if (line.startsWith("*")) table = line.slice(1);
    if (!line.startsWith("-S ")) continue;
    const rules = await tables.listRules(table, line.slice(3));
    if (rules === undefined) return ended(1, "", `${file}: line ${at + 1} failed`);
    stdout += [`-N ${line.slice(3)}`, ...rules, ""].join("\n");
  }
  return ended(0, stdout, "");
}

function absent(file: string): ExecResult {
  const result = ended(undefined, "", "", "spawn");
  return { ...result, message: `${file} could not be started (spawn ${file} ENOENT)` };
}

/** The result of a command. `failure` follows from the code if it is left out. */
export function ended(
  code: number | undefined,
  stdout: string,
  stderr: string,
  failure?: ExecResult["failure"],
): ExecResult {
  const why = failure ?? (code === 0 ? undefined : "exit");
  return {
    code,
    signal: undefined,
    stdout,
    stderr,
    truncated: false,
    durationMs: 0,
    ...(why === undefined ? {} : { failure: why }),
    message: stderr === "" ? `ended (${why ?? "well"})` : stderr,
  };
}
