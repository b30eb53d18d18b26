import { AgentError } from "../../lib/errors.ts";
import type { ExecResult } from "../../lib/exec.ts";
import { type Commands, expectSuccess } from "../commands.ts";
import type { Family } from "../ip.ts";
import { tableName } from "./fixed.ts";
import { familyWords } from "./render.ts";

/**
 * The proxy's table of one IP family, through the nft command. No other table is ever listed: a newer nft may have made things
 * there that this one cannot read. Every call rejects with an `AgentError`: Invalid (nft or the kernel did not accept it),
 * Unavailable (killed, could not be started, the kernel is short of something) or Canceled.
 */
export interface Nft {
  /** Applies commands in one transaction: all of them or none. */
  apply(text: string, signal: AbortSignal): Promise<void>;
  /** Lets the kernel try the commands and change nothing. @returns why it would refuse them, or undefined */
  tryOut(text: string, signal: AbortSignal): Promise<string | undefined>;
  /** What is in the table, without elements; undefined: there is no such table. */
  read(signal: AbortSignal): Promise<TableContent | undefined>;
}

/** The objects of a table. */
export interface TableContent {
  readonly chains: readonly string[];
  /** Timeout in seconds by name; undefined: elements stay until they are deleted. */
  readonly sets: ReadonlyMap<string, number | undefined>;
  readonly maps: readonly string[];
  /** Handles of the rules by chain, in order. */
  readonly handles: ReadonlyMap<string, readonly number[]>;
}

// A transaction with everything of a huge cluster, on a slow machine. A change takes milliseconds.
const commandTimeoutMs = 120_000;
// Longest text of one failing line in an error.
const lineLengthMax = 300;

/** Drives nft for one family's table. */
export function createNft(commands: Commands, family: Family): Nft {
  const { ip } = familyWords(family);
  const run = async (text: string, args: readonly string[], signal: AbortSignal) =>
    await commands.run("nft", [...args, "-f", "-"], { stdin: text, timeoutMs: commandTimeoutMs, signal });
  return {
    apply: async (text, signal) => {
      const result = await run(text, [], signal);
      expectNotPassing(result, "apply rules");
      expectSuccess(result, "apply rules", (stderr) => failedLine(stderr, text));
    },
    tryOut: async (text, signal) => {
      const result = await run(text, ["--check"], signal);
      expectNotPassing(result, "try rules out");
      if (result.failure === "exit") return `${result.message}${failedLine(result.stderr, text)}`;
      expectSuccess(result, "try rules out");
      return undefined;
    },
    read: async (signal) => {
      // Line by line, and not in nft's JSON: the rules of ten thousand services in one piece would stop the event loop.
      const reader = new TableReader();
      const result = await commands.lines("nft", ["--terse", "--handle", "list", "table", ip, tableName], {
        timeoutMs: commandTimeoutMs,
        signal,
        onLine: (line) => reader.add(line),
      });
      if (result.failure === "exit" && isAbsent(result.stderr)) return undefined;
      expectSuccess(result, `read table ${ip} ${tableName}`);
      return reader;
    },
  };
}

/** Takes the lines of `nft --handle list table`, in order. Lines that it does not know say nothing. */
export class TableReader implements TableContent {
  readonly chains: string[] = [];
  readonly sets = new Map<string, number | undefined>();
  readonly maps: string[] = [];
  readonly handles = new Map<string, number[]>();
  #kind: string | undefined;
  #name = "";

  add(line: string): void {
    // One tab: an object of the table. Two: what is in it, where each rule ends with its handle.
    const [, kind, name = ""] = /^\t(chain|set|map) (\S+) \{/.exec(line) ?? [];
    if (kind !== undefined) {
      this.#kind = kind;
      this.#name = name;
      if (kind === "chain") this.chains.push(name);
      else if (kind === "set") this.sets.set(name, undefined);
      else this.maps.push(name);
      return;
    }
    if (this.#kind === "chain") {
      const handle = /# handle (\d+)$/.exec(line)?.[1];
      if (handle === undefined) return;
      const handles = this.handles.get(this.#name);
      if (handles === undefined) this.handles.set(this.#name, [Number(handle)]);
      else handles.push(Number(handle));
    }
    if (this.#kind === "set") {
      const timeout = /^\t\ttimeout (\S+)$/.exec(line)?.[1];
      if (timeout !== undefined) this.sets.set(this.#name, secondsOf(timeout));
    }
  }
}

const unitSeconds: Readonly<Record<string, number>> = { d: 86_400, h: 3_600, m: 60, s: 1, ms: 0.001 };

/** Of `1d2h3m4s5ms`. */
function secondsOf(text: string): number {
  let seconds = 0;
  for (const [, count, unit = ""] of text.matchAll(/(\d+)(ms|[dhms])/g)) {
    seconds += Number(count) * (unitSeconds[unit] ?? 0);
  }
  return seconds;
}

/** True for what nft says of a table, chain or set that is not there. */
export function isAbsent(stderr: string): boolean {
  return stderr.includes("No such file or directory");
}

// What the kernel says when it is short of something, or was interrupted: the same text may be right the next time.
const passingRE =
  /No buffer space available|Cannot allocate memory|Interrupted system call|Resource temporarily unavailable/;

function expectNotPassing({ failure, stderr, message }: ExecResult, what: string): void {
  if (failure === "exit" && passingRE.test(stderr)) throw new AgentError("Unavailable", `${what}: ${message}`);
}

function failedLine(stderr: string, text: string): string {
  const number = /(?:^|\n)\S*?:(\d+):\d+-\d+: Error/.exec(stderr)?.[1];
  const line = number === undefined ? undefined : text.split("\n", Number(number))[Number(number) - 1];
  return line === undefined ? "" : ` (line ${number}: ${line.slice(0, lineLengthMax)})`;
}
