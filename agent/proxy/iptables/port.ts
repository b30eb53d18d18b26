import type { AnyTable } from "./text.ts";

// As many lines as the reference logs.
const neighboursOfRefusedLine = 3;
// Longest text of one line in an error or log line.
const lineLengthMax = 300;

/**
 * The kernel's rules, for one IP family, through the iptables commands. Every call rejects with an `AgentError`:
 * Invalid (the command did not accept its input), Unavailable (locked, killed, could not be started) or Canceled.
 */
export interface Iptables {
  /** Whether MASQUERADE takes `--random-fully`. */
  readonly hasRandomFully: boolean;
  /** Applies an iptables-restore text without flushing anything that it does not name. Atomic for each table. */
  restore(text: string, signal: AbortSignal): Promise<void>;
  /**
   * Rules of one chain as `-A chain …` lines in the command's own spelling; undefined: there is no such chain. Of a chain
   * whose name does not start with `KUBE-`, only the rules that jump to one whose name does: it may hold any number of others.
   */
  listRules(table: string, chain: string, signal: AbortSignal): Promise<string[] | undefined>;
  /**
   * Rules of many chains by one command, by `table chain`, as {@link listRules} has them; or the first one found missing.
   * All that was asked for or a rejection, never a part. Also cheap beside tens of thousands of other chains.
   */
  listMany(chains: ChainsByTable, signal: AbortSignal): Promise<ReadonlyMap<string, readonly string[]> | MissingChain>;
  /** Rejects, in the command's own words, if the table cannot be had on this machine. */
  expectTable(table: AnyTable, signal: AbortSignal): Promise<void>;
  /** How many packets met each rule of a chain of ours, with the rule as {@link listRules} has it; none if there is no such chain. */
  listPackets(table: AnyTable, chain: string, signal: AbortSignal): Promise<PacketCount[]>;
  /** All chains of a table that are not built in, with the `chainPrint` of what they hold. */
  readChains(table: string, signal: AbortSignal): Promise<Map<string, number>>;
}

/** What a rule has counted since it was written. */
export interface PacketCount {
  readonly rule: string;
  readonly packets: number;
}

/** Names of chains, by table. */
export type ChainsByTable = Readonly<Partial<Record<AnyTable, readonly string[]>>>;

export interface MissingChain {
  readonly missing: string;
}

/** The `cause` of an Invalid error of {@link Iptables.restore}, if the command named the line that it did not accept. */
export class RefusedLine {
  /** Counted from 1. */
  readonly number: number;
  readonly line: string;
  /** The line with its neighbours, each with its number. */
  readonly around: readonly string[];

  constructor(text: string, number: number) {
    const first = Math.max(0, number - 1 - neighboursOfRefusedLine);
    const lines = text.split("\n", number + neighboursOfRefusedLine);
    this.number = number;
    this.line = (lines[number - 1] ?? "").slice(0, lineLengthMax);
    this.around = lines.slice(first).map((line, at) => `${first + at + 1}: ${line.slice(0, lineLengthMax)}`);
  }
}

/** Members that come to a set and that leave it. */
export interface SetChanges {
  readonly add: Iterable<string>;
  readonly remove: Iterable<string>;
}

/**
 * Sets of one IP family, as netfilter's ipset keeps them; their names say of which type they are. Calls reject like those of
 * {@link Iptables}.
 */
export interface Ipset {
  /** Creates those that are not there. What is in the others stays; one of another type is made anew if no rule refers to it. */
  create(names: Iterable<string>, signal: AbortSignal): Promise<void>;
  /** Makes each set have exactly these members; creates it. Readers see the old members or the new, never a mix. */
  replace(sets: ReadonlyMap<string, Iterable<string>>, signal: AbortSignal): Promise<void>;
  /** Adding what is there and removing what is not is fine. Invalid also if a set is full. */
  change(sets: ReadonlyMap<string, SetChanges>, signal: AbortSignal): Promise<void>;
  /** Numbers of members by the name of every set of ours, those of clients included. */
  counts(signal: AbortSignal): Promise<ReadonlyMap<string, number>>;
  /** Removes those that are there. One that a rule refers to stays. */
  destroy(names: Iterable<string>, signal: AbortSignal): Promise<void>;
}
