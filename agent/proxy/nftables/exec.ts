import { AgentError } from "../../lib/errors.ts";
import { type Commands, expectSuccess } from "../commands.ts";
import type { Family } from "../ip.ts";
import { tableName } from "./fixed.ts";
import { familyWords } from "./render.ts";

/**
 * The proxy's table of one IP family, through the nft command. No other table is ever listed: a newer nft may have made things
 * there that this one cannot read. Every call rejects with an `AgentError`: Invalid (nft or the kernel did not accept it),
 * Unavailable (killed, could not be started) or Canceled.
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
// The list of a table with a hundred thousand rules; without elements it is far less.
const listBytesMax = 64 * 1024 * 1024;

/** Drives nft for one family's table. */
export function createNft(commands: Commands, family: Family): Nft {
  const { ip } = familyWords(family);
  const run = async (text: string, args: readonly string[], signal: AbortSignal) =>
    await commands.run("nft", [...args, "-f", "-"], { stdin: text, timeoutMs: commandTimeoutMs, signal });
  return {
    apply: async (text, signal) => {
      const result = await run(text, [], signal);
      expectSuccess(result, "apply rules", (stderr) => failedLine(stderr, text));
    },
    tryOut: async (text, signal) => {
      const result = await run(text, ["--check"], signal);
      if (result.failure === "exit") return `${result.message}${failedLine(result.stderr, text)}`;
      expectSuccess(result, "try rules out");
      return undefined;
    },
    read: async (signal) => {
      const result = await commands.run("nft", ["--json", "--terse", "--handle", "list", "table", ip, tableName], {
        timeoutMs: commandTimeoutMs,
        signal,
        outputBytesMax: listBytesMax,
      });
      if (result.failure === "exit" && isAbsent(result.stderr)) return undefined;
      expectSuccess(result, `read table ${ip} ${tableName}`);
      if (result.truncated) throw new AgentError("Unavailable", `the list of table ${ip} ${tableName} is too long`);
      return parseTable(result.stdout);
    },
  };
}

/** Reads the JSON form of `nft list table`. Rejects with Invalid if it is none. Pure. */
export function parseTable(text: string): TableContent {
  const chains: string[] = [];
  const sets = new Map<string, number | undefined>();
  const maps: string[] = [];
  const handles = new Map<string, number[]>();
  for (const entry of entriesOf(text)) {
    for (const [kind, value] of Object.entries(entry)) {
      if (!isRecord(value)) continue;
      const { name, chain, handle } = value;
      if (kind === "rule" && typeof chain === "string" && typeof handle === "number") {
        handles.set(chain, [...(handles.get(chain) ?? []), handle]);
      }
      if (typeof name !== "string") continue;
      if (kind === "chain") chains.push(name);
      if (kind === "set") sets.set(name, typeof value.timeout === "number" ? value.timeout : undefined);
      if (kind === "map") maps.push(name);
    }
  }
  return { chains, sets, maps, handles };
}

function entriesOf(text: string): Record<string, unknown>[] {
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch (err) {
    throw new AgentError("Invalid", "nft's list of the table is no JSON", { cause: err });
  }
  const list = isRecord(parsed) ? parsed.nftables : undefined;
  return Array.isArray(list) ? list.filter(isRecord) : [];
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null;
}

/** True for what nft says of a table, chain or set that is not there. */
export function isAbsent(stderr: string): boolean {
  return stderr.includes("No such file or directory");
}

function failedLine(stderr: string, text: string): string {
  const number = /(?:^|\n)\S*?:(\d+):\d+-\d+: Error/.exec(stderr)?.[1];
  const line = number === undefined ? undefined : text.split("\n", Number(number))[Number(number) - 1];
  return line === undefined ? "" : ` (line ${number}: ${line.slice(0, lineLengthMax)})`;
}
