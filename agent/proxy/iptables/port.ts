/**
 * The kernel's rules, for one IP family, through the iptables commands. Every call rejects with an `AgentError`:
 * Invalid (the command did not accept its input), Unavailable (locked, killed, could not be started) or Canceled.
 */
export interface Iptables {
  /** Whether MASQUERADE takes `--random-fully`. */
  readonly hasRandomFully: boolean;
  /** Applies an iptables-restore text without flushing anything that it does not name. Atomic for each table. */
  restore(text: string, signal: AbortSignal): Promise<void>;
  /** Rules of one chain as `-A chain …` lines in the command's own spelling; undefined: there is no such chain. */
  listRules(table: string, chain: string, signal: AbortSignal): Promise<string[] | undefined>;
  /** All chains of a table that are not built in, with the `chainPrint` of what they hold. */
  readChains(table: string, signal: AbortSignal): Promise<Map<string, number>>;
}

/** A set of `ip,proto:port`, as netfilter's ipset keeps it. Calls reject like those of {@link Iptables}. */
export interface ServiceSet {
  readonly name: string;
  /** Makes the set have exactly these members; creates it. Readers see the old members or the new, never a mix. */
  replace(members: Iterable<string>, signal: AbortSignal): Promise<void>;
  /** Adding what is there and removing what is not is fine. */
  change(add: Iterable<string>, remove: Iterable<string>, signal: AbortSignal): Promise<void>;
  /** Number of members; undefined: the set does not exist. */
  count(signal: AbortSignal): Promise<number | undefined>;
  /** Removes the set, if it is there. No rule may refer to it. */
  destroy(signal: AbortSignal): Promise<void>;
}
