import type { Clock } from "../../lib/clock.ts";
import { hasCode, messageOf } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import type { ClientSets } from "./affinity.ts";
import type { Iptables, ServiceSet } from "./port.ts";
import { RestoreText } from "./text.ts";

// What keeps sets from being made or matched (no kernel module, too many of them) changes seldom.
const retryMs = 3_600_000;
/** Holds rules that only try what the kernel takes. Named like a service's chain, so that what is left of it is removed. */
const probeChain = "KUBE-SVC-PROBE";

interface SetsDeps {
  readonly iptables: Iptables;
  /** undefined: packets find their service by the dispatch tree alone. */
  readonly set: ServiceSet | undefined;
  /** undefined: new clients of services that remember clients pass a rule for each endpoint. */
  readonly clientSets: ClientSets | undefined;
  readonly clock: Clock;
  readonly log: Logger;
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

  /** The set that rules refer to since it was filled last; undefined: none. */
  get used(): ServiceSet | undefined {
    return this.#isUsed ? this.#deps.set : undefined;
  }

  /** Whether services may remember clients in sets now. */
  get hasClientSets(): boolean {
    const nowMs = this.#deps.clock.monotonic();
    return this.#deps.clientSets !== undefined && nowMs >= Math.max(this.#clientsOffUntilMs, this.#matchOffUntilMs);
  }

  /** Makes the set of services' addresses anew. Without it the tree alone decides; then it is tried again by a later call. */
  async fill(members: Iterable<string>, signal: AbortSignal): Promise<void> {
    const { set, clock } = this.#deps;
    this.#isUsed = false;
    if (set === undefined || clock.monotonic() < this.#matchOffUntilMs) return;
    try {
      await set.replace(members, signal);
    } catch (err) {
      if (hasCode(err, "Canceled")) throw err;
      this.#tell(set.name, err);
      return;
    }
    if (!this.#canMatch) {
      try {
        await this.#probe([`-m set --match-set ${set.name} dst,dst -j RETURN`], signal);
      } catch (err) {
        // A lock that somebody holds says nothing of sets: the sync fails, and the next one asks again.
        if (!hasCode(err, "Invalid")) throw err;
        this.#matchOffUntilMs = clock.monotonic() + retryMs;
        this.#tell(set.name, err);
        return;
      }
      this.#canMatch = true;
    }
    this.#isUsed = true;
    this.#trouble = undefined;
  }

  /** Once for each kind of trouble. */
  #tell(set: string, err: unknown): void {
    const trouble = messageOf(err);
    if (trouble !== this.#trouble) {
      this.#deps.log.warn({ set, err: trouble }, "service address set is unusable; going on without it");
    }
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
