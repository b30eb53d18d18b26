import type { Clock } from "../../lib/clock.ts";
import { hasCode, messageOf } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import type { Family } from "../ip.ts";
import { type ClientSets, clientSetPrefix } from "./affinity.ts";
import type { Ipset, Iptables, SetChanges } from "./port.ts";
import { sharedSetNames } from "./set-names.ts";
import { RestoreText } from "./text.ts";

// What keeps sets from being made or matched (no kernel module, too many of them) changes seldom.
const retryMs = 3_600_000;
/** Holds rules that only try what the kernel takes. Named like a service's chain, so that what is left of it is removed. */
const probeChain = "KUBE-SVC-PROBE";

interface SetsDeps {
  readonly iptables: Iptables;
  /** undefined: rules do without sets. */
  readonly ipset: Ipset | undefined;
  /** undefined: new clients of services that remember clients pass a rule for each endpoint. */
  readonly clientSets: ClientSets | undefined;
  readonly clock: Clock;
  readonly log: Logger;
}

/** Sets that rules refer to could not be filled: the rules are to be written without them. */
export class SetsUnusable extends Error {
  override readonly name = "SetsUnusable";
}

/**
 * The sets that rules refer to, as far as this machine can. That ipset makes sets does not mean that iptables can match
 * them: that takes one more kernel module, and is tried before services depend on it.
 */
export class Sets {
  readonly #deps: SetsDeps;
  #isUsed = false;
  #trouble: string | undefined;
  #canMatch = false;
  #canAdd = false;
  /** Until then, rules without sets. */
  #matchOffUntilMs = 0;
  #clientsOffUntilMs = 0;

  constructor(deps: SetsDeps) {
    this.#deps = deps;
  }

  /** Whether services may remember clients in sets now. */
  get hasClientSets(): boolean {
    const nowMs = this.#deps.clock.monotonic();
    return this.#deps.clientSets !== undefined && nowMs >= Math.max(this.#clientsOffUntilMs, this.#matchOffUntilMs);
  }

  /**
   * Has the shared sets there, so that rules can refer to them; what is in them stays.
   *
   * @returns false: rules must do without sets, until a later call says otherwise
   */
  async prepare(family: Family, signal: AbortSignal): Promise<boolean> {
    const { ipset, clock } = this.#deps;
    this.#isUsed = false;
    if (ipset === undefined || clock.monotonic() < this.#matchOffUntilMs) return false;
    const { serviceIPs, clusterIPs, nodePorts, hairpins } = sharedSetNames(family);
    try {
      await ipset.create([serviceIPs, clusterIPs, nodePorts, hairpins], signal);
    } catch (err) {
      if (hasCode(err, "Canceled")) throw err;
      this.#tell(err);
      return false;
    }
    if (this.#canMatch) return true;
    const rules = [`${serviceIPs} dst,dst`, `${nodePorts} dst,dst`, `${hairpins} dst,dst,src`];
    try {
      await this.#probe(
        rules.map((set) => `-m set --match-set ${set} -j RETURN`),
        signal,
      );
    } catch (err) {
      // A lock that somebody holds says nothing of sets: the sync fails, and the next one asks again.
      if (!hasCode(err, "Invalid")) throw err;
      this.#matchOffUntilMs = clock.monotonic() + retryMs;
      this.#tell(err);
      return false;
    }
    this.#canMatch = true;
    return true;
  }

  /** Makes the sets have these members and no others. Rejects with {@link SetsUnusable} unless it is canceled. */
  async fill(members: ReadonlyMap<string, Iterable<string>>, signal: AbortSignal): Promise<void> {
    await this.#orUnusable(async (ipset) => await ipset.replace(members, signal));
    this.#isUsed = true;
    this.#trouble = undefined;
  }

  /** Adds members before rules depend on them; creates the sets. Rejects as {@link fill} does. */
  async extend(members: ReadonlyMap<string, Iterable<string>>, signal: AbortSignal): Promise<void> {
    if (members.size === 0) return;
    await this.#orUnusable(async (ipset) => {
      await ipset.create(members.keys(), signal);
      await ipset.change(withoutRemovals(members), signal);
    });
  }

  /**
   * Adds members to sets, of which those in `fresh` are created.
   *
   * @param all what the sets have afterwards: with it one that is full, or gone, is made anew
   */
  async add(
    members: ReadonlyMap<string, Iterable<string>>,
    fresh: readonly string[],
    all: (name: string) => Iterable<string>,
    signal: AbortSignal,
  ): Promise<void> {
    const { ipset, log } = this.#deps;
    if (ipset === undefined || members.size === 0) return;
    try {
      if (fresh.length > 0) await ipset.create(fresh, signal);
      await ipset.change(withoutRemovals(members), signal);
    } catch (err) {
      if (!hasCode(err, "Invalid")) throw err;
      log.info({ sets: [...members.keys()].join(" "), err: messageOf(err) }, "sets are made anew, with room to grow");
      await ipset.replace(new Map([...members.keys()].map((name) => [name, all(name)])), signal);
    }
  }

  /** Removes members from sets; and sets that no rule refers to any more, of which what stays is found by {@link removeStale}. */
  async remove(
    members: ReadonlyMap<string, Iterable<string>>,
    gone: readonly string[],
    signal: AbortSignal,
  ): Promise<void> {
    const { ipset } = this.#deps;
    if (ipset === undefined) return;
    const changes = [...members].map(([name, remove]): [string, SetChanges] => [name, { add: [], remove }]);
    if (changes.length > 0) await ipset.change(new Map(changes), signal);
    await this.#destroy(gone, signal);
  }

  /** What is not there of sets that should have so many members, or undefined. */
  async findDamage(counts: ReadonlyMap<string, number>, signal: AbortSignal): Promise<string | undefined> {
    const { ipset } = this.#deps;
    if (ipset === undefined || !this.#isUsed) return undefined;
    const found = await ipset.counts(signal);
    for (const [name, count] of counts) {
      if (found.get(name) !== count) return `set ${name} has ${found.get(name) ?? 0} of ${count} members`;
    }
    return undefined;
  }

  async #orUnusable(act: (ipset: Ipset) => Promise<void>): Promise<void> {
    const { ipset } = this.#deps;
    if (ipset === undefined) throw new SetsUnusable("no ipset");
    try {
      await act(ipset);
    } catch (err) {
      if (hasCode(err, "Canceled")) throw err;
      this.#tell(err);
      throw new SetsUnusable(messageOf(err), { cause: err });
    }
  }

  /** Once for each kind of trouble. */
  #tell(err: unknown): void {
    const trouble = messageOf(err);
    if (trouble !== this.#trouble) this.#deps.log.warn({ err: trouble }, "sets are unusable; going on without them");
    this.#trouble = trouble;
  }

  /** Makes sets of clients. A failure fails the sync; the next one goes without them, and so does every one for an hour. */
  async createClientSets(names: readonly string[], signal: AbortSignal): Promise<void> {
    const { clientSets, clock } = this.#deps;
    const [first] = names;
    if (first === undefined || clientSets === undefined) return;
    let isMade = false;
    try {
      await clientSets.create(names, signal);
      isMade = true;
      if (this.#canAdd) return;
      await this.#probe(
        [`-m set --match-set ${first} src -j RETURN`, `-j SET --add-set ${first} src --exist --timeout 1`],
        signal,
      );
      this.#canAdd = true;
    } catch (err) {
      // Whatever ipset says; but a lock of iptables that somebody holds says nothing of sets.
      const isAboutSets = hasCode(err, "Invalid") || !(isMade || hasCode(err, "Canceled"));
      if (isAboutSets) this.#clientsOffUntilMs = clock.monotonic() + retryMs;
      throw err;
    }
  }

  /** Removes sets of clients that no rule refers to. What stays is found by the next {@link removeStaleClientSets}. */
  async destroyClientSets(names: readonly string[], signal: AbortSignal): Promise<void> {
    const { clientSets, log } = this.#deps;
    if (clientSets === undefined || names.length === 0) return;
    try {
      await clientSets.destroy(names, signal);
    } catch (err) {
      if (hasCode(err, "Canceled")) throw err;
      log.warn({ sets: names.length, err: messageOf(err) }, "sets of clients that are not needed could not be removed");
    }
  }

  /** Removes all sets of clients but the wanted ones. They are in nobody's way: it rejects only if it is canceled. */
  async removeStaleClientSets(wanted: Iterable<string>, signal: AbortSignal): Promise<void> {
    const { clientSets, log } = this.#deps;
    if (clientSets === undefined) return;
    const isWanted = new Set(wanted);
    let names: string[];
    try {
      names = await clientSets.list(signal);
    } catch (err) {
      if (hasCode(err, "Canceled")) throw err;
      log.warn({ err: messageOf(err) }, "sets of clients could not be listed; those not needed stay");
      return;
    }
    await this.destroyClientSets(
      names.filter((name) => !isWanted.has(name)),
      signal,
    );
  }

  /** Removes what is left of sets of ours, but for those of clients. They are in nobody's way: it rejects only if it is canceled. */
  async removeStale(wanted: { has(name: string): boolean }, family: Family, signal: AbortSignal): Promise<void> {
    const { ipset, log } = this.#deps;
    if (ipset === undefined) return;
    try {
      const names = [...(await ipset.counts(signal)).keys()];
      const shared = Object.values(sharedSetNames(family));
      const isLeft = (name: string) =>
        !wanted.has(name) && !shared.includes(name) && !name.startsWith(clientSetPrefix(family));
      await this.#destroy(names.filter(isLeft), signal);
    } catch (err) {
      if (hasCode(err, "Canceled")) throw err;
      log.warn({ err: messageOf(err) }, "sets could not be listed; those not needed stay");
    }
  }

  async #destroy(names: readonly string[], signal: AbortSignal): Promise<void> {
    const { ipset, log } = this.#deps;
    if (ipset === undefined || names.length === 0) return;
    try {
      await ipset.destroy(names, signal);
    } catch (err) {
      if (hasCode(err, "Canceled")) throw err;
      log.warn({ sets: names.length, err: messageOf(err) }, "sets that are not needed could not be removed");
    }
  }

  /** Rejects with Invalid if the kernel or its tool does not take these rules of the nat table. */
  async #probe(rules: readonly string[], signal: AbortSignal): Promise<void> {
    const { iptables } = this.#deps;
    const attempt = new RestoreText();
    attempt.write("nat", probeChain, rules);
    await iptables.restore(attempt.toString(), signal);
    const removal = new RestoreText();
    removal.delete("nat", probeChain);
    await iptables.restore(removal.toString(), signal);
  }
}

function withoutRemovals(members: ReadonlyMap<string, Iterable<string>>): ReadonlyMap<string, SetChanges> {
  return new Map([...members].map(([name, add]) => [name, { add, remove: [] }]));
}
