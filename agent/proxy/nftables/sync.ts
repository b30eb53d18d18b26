import type { Clock } from "../../lib/clock.ts";
import { hasCode, messageOf } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import type { SyncRequest } from "../backend.ts";
import { Pacer } from "../pacer.ts";
import { Culprits } from "./culprits.ts";
import type { Nft, TableContent } from "./exec.ts";
import { fillTable } from "./fill.ts";
import { baseChains, canarySet, countChain, type FixedContext, renderFixed, sharedSets } from "./fixed.ts";
import { HandleListing } from "./handles.ts";
import { isServiceObject } from "./names.ts";
import type { RenderContext, RenderedService } from "./render.ts";
import { type ChainChanges, noChanges, type RuleState } from "./state.ts";
import { TableText } from "./text.ts";
import { stageAll, type StageRequest, writeChanges, writeElements } from "./write.ts";

/** A sync, and what decides the rules beyond the services. */
export interface NftablesSyncRequest extends SyncRequest {
  readonly fixed: FixedContext;
  readonly render: RenderContext;
}

/** A sync in which refused services have something else. */
type AcceptedRequest = NftablesSyncRequest & StageRequest;

interface NftablesRulesDeps {
  readonly nft: Nft;
  readonly clock: Clock;
  readonly log: Logger;
  /** Hears once of each service whose rules the kernel refuses, with the reason. Must not throw. */
  readonly onRefused?: (key: string, reason: string) => void;
}

/** Figures of one sync. */
export interface NftablesSyncResult extends Record<string, number> {
  transactions: number;
  bytes: number;
}

// Older kernels let go of what a deleted map element led to only some time after the transaction; kube-proxy waits as long.
const staleChainAgeMs = 1_000;
// Chains of services that one check looks at; the next check goes on with the ones behind.
const checkedChainsMax = 500;
// Elements that one check looks for; the next check goes on with the ones behind. 2 000 take the kernel 60 ms.
const checkedElementsMax = 2_000;

/**
 * Keeps one family's table equal to the services. A change is one transaction of what changed; a full sync is one transaction that
 * replaces all, but for the memory of session affinity. Into a table that did not exist everything goes in steps, and what
 * makes the kernel look at it goes last. One call at a time.
 */
export class NftablesRules {
  readonly #nft: Nft;
  readonly #clock: Clock;
  readonly #log: Logger;
  #state: RuleState | undefined;
  #cleanupFailures = 0;
  #fixed = "";
  #nodePortIPs: readonly string[] = [];
  /** Chains that were emptied, and when (monotonic ms). They are deleted at a later sync. */
  readonly #stale = new Map<string, number>();
  /** Handles of rules by chain, of those chains that were not written since; known some time after a full sync. */
  #handles: Map<string, readonly number[]> | undefined;
  readonly #listing: HandleListing;
  #uncheckedChains: Iterator<readonly [chain: string, handles: readonly number[]]> | undefined;
  /** Where the check of the elements goes on. */
  #unchecked: Iterator<readonly [set: string, key: string], void> | undefined;
  readonly #culprits: Culprits;

  /** Full syncs in a row that were refused, for reasons that say nothing of the table that is there. */
  #refusals = 0;

  constructor(deps: NftablesRulesDeps) {
    this.#nft = deps.nft;
    this.#listing = new HandleListing(deps.nft);
    this.#culprits = new Culprits(deps);
    this.#clock = deps.clock;
    this.#log = deps.log;
  }

  get needsFull(): boolean {
    return this.#state === undefined;
  }

  /** How often empty chains could not be deleted. */
  get cleanupFailures(): number {
    return this.#cleanupFailures;
  }

  /**
   * Rejects with an `AgentError`; see {@link Nft}. Then the next sync must be full. A service whose rules the kernel refuses
   * is told, keeps what it had until it changes or is tried again, and holds up nobody.
   */
  async sync(request: NftablesSyncRequest, signal: AbortSignal): Promise<NftablesSyncResult> {
    const describe = (key: string) => this.#culprits.withoutRefused(request.describe(key));
    const lastRules = (key: string) => this.#culprits.lastRules(key);
    const before = this.#state;
    if (request.isFull || before === undefined) {
      this.#state = undefined;
      const had = (key: string) => before?.rendered(key);
      const result = await this.#syncFull({ ...request, describe, lastRules }, had, signal);
      this.#culprits.settle(request);
      this.#refusals = 0;
      return result;
    }
    const keys = [...new Set([...request.keys, ...this.#culprits.due()])].sort();
    const accepted = { ...request, keys, describe, lastRules };
    const had = new Map(keys.map((key) => [key, before.rendered(key)]));
    this.#state = undefined; // until all of it worked
    try {
      const result = await this.#apply(await this.#changes(before, accepted), signal);
      this.#culprits.settle(accepted);
      return result;
    } catch (err) {
      // Only the services that changed are known here; the full sync, which follows, has them all.
      if (hasCode(err, "Invalid")) await this.#culprits.find(accepted, (key) => had.get(key), signal);
      throw err;
    }
  }

  /** @param had what the kernel has of a service */
  async #syncFull(
    request: AcceptedRequest,
    had: (key: string) => RenderedService | undefined,
    signal: AbortSignal,
  ): Promise<NftablesSyncResult> {
    const present = await this.#nft.read(signal);
    const attempt = async (how: TableContent | undefined | "replaced") =>
      how === undefined || (how !== "replaced" && isUnmet(how))
        ? await this.#fill(request, how !== undefined, signal)
        : await this.#apply(await this.#full(request, how), signal);
    try {
      return await attempt(present);
    } catch (err) {
      if (!hasCode(err, "Invalid")) throw err;
      const found = await this.#culprits.find(request, had, signal);
      if (found === 0 && present === undefined) throw err;
      let reason = err;
      try {
        if (found > 0) return await attempt(await this.#nft.read(signal));
      } catch (next) {
        if (!hasCode(next, "Invalid")) throw next;
        reason = next;
      }
      // Whom session affinity has sent where is forgotten with the table: only if the table is to blame, or nothing else helps.
      this.#refusals += 1;
      if (!isOfAnotherMake(reason.message) && this.#refusals < 2) throw reason;
      this.#log.warn(
        { err: reason.message },
        "the table that is there cannot be changed; replacing it as a whole, session affinity begins anew",
      );
      return await attempt("replaced");
    }
  }

  async #apply(texts: Texts, signal: AbortSignal): Promise<NftablesSyncResult> {
    let bytes = 0;
    for (const text of texts.transactions) {
      bytes += text.length;
      await this.#nft.apply(text, signal);
    }
    for (const chain of texts.emptied) this.#stale.set(chain, this.#clock.monotonic());
    this.#state = texts.state;
    await this.#deleteStale(new TableText(texts.state.family), signal);
    return { transactions: texts.transactions.length, bytes };
  }

  /**
   * Lets the kernel try whether what was written could be deleted: all rules that no change touches, and some of the elements. Rules are
   * looked at as soon as their handles are known, which the first look after a full sync asks for and does not wait for.
   * @returns what is missing, or undefined
   */
  async findDamage(signal: AbortSignal): Promise<string | undefined> {
    const state = this.#state;
    if (state === undefined) return undefined;
    const damage = this.#handles === undefined ? this.#takeHandles(state, signal) : undefined;
    if (damage !== undefined) return damage;
    const text = new TableText(state.family);
    const deleteRules = (chain: string, handles: readonly number[]) => {
      for (const handle of handles) text.deleteRule(chain, handle);
    };
    if (this.#handles !== undefined) {
      for (const chain of ownChains) deleteRules(chain, this.#handles.get(chain) ?? []);
      const chains = (this.#uncheckedChains ??= this.#handles.entries());
      for (let n = 0; n < checkedChainsMax; n += 1) {
        const next = chains.next();
        if (next.done === true) {
          this.#uncheckedChains = undefined;
          break;
        }
        if (!ownChains.has(next.value[0])) deleteRules(...next.value);
      }
    }
    text.deleteElement(canarySet, canaryOf(state.family));
    // It goes on over changes that are made between two checks.
    const unchecked = (this.#unchecked ??= state.elementKeys());
    for (let n = 0; n < checkedElementsMax; n += 1) {
      const next = unchecked.next();
      if (next.done === true) {
        this.#unchecked = undefined;
        break;
      }
      text.deleteElement(...next.value);
    }
    return await this.#nft.tryOut(text.toString(), signal);
  }

  /** Resolves when nothing is asked of the kernel any more; for the end. */
  async idle(): Promise<void> {
    await this.#listing.idle();
  }

  /** @returns what is missing in the kernel, or undefined: nothing, as far as is known */
  #takeHandles(state: RuleState, signal: AbortSignal): string | undefined {
    const listed = this.#listing.take(signal);
    if (listed === undefined) return undefined;
    if (listed === "absent") return "the table was deleted";
    const known = new Map<string, readonly number[]>();
    for (const chain of [...ownChains, ...state.chains()]) {
      const handles = listed.handles(chain);
      if (handles?.length === 0) return `chain ${chain} was emptied`;
      if (handles !== undefined) known.set(chain, handles);
    }
    this.#handles = known;
    this.#uncheckedChains = undefined;
    return undefined;
  }

  /** Begins with a full sync: what is known of the kernel's table is no longer true. @returns the chains of no service */
  #begin({ fixed: context }: AcceptedRequest): ReadonlyMap<string, readonly string[]> {
    this.#forgetHandles();
    this.#unchecked = undefined;
    this.#stale.clear();
    this.#nodePortIPs = context.nodePortIPs ?? [];
    const fixed = renderFixed(context);
    this.#fixed = JSON.stringify([...fixed]);
    return fixed;
  }

  #addOwnElements(text: TableText, family: RuleState["family"]): void {
    text.addElement(canarySet, canaryOf(family), "");
    for (const ip of this.#nodePortIPs) text.addElement("nodeport-ips", ip, "");
  }

  async #fill(request: AcceptedRequest, replaces: boolean, signal: AbortSignal): Promise<NftablesSyncResult> {
    const fixed = this.#begin(request);
    const addElements = (text: TableText) => this.#addOwnElements(text, request.render.family);
    const { state, ...figures } = await fillTable({ ...request, fixed, addElements, replaces }, this.#nft, signal);
    this.#state = state;
    return figures;
  }

  /** @param present what is in the table; "replaced": it is to be deleted first */
  async #full(request: AcceptedRequest, present: TableContent | "replaced"): Promise<Texts> {
    const { family } = request.render;
    const pacer = new Pacer();
    const fixed = this.#begin(request);
    const { state, changes } = await stageAll(request, pacer);

    const text = new TableText(family);
    text.addTable();
    if (present === "replaced") text.replaceTable();
    text.addSharedSets();
    const emptied = present === "replaced" ? [] : emptyTable(present, state, text);
    this.#addOwnElements(text, family);
    // What others lead to first; what the kernel comes in by last.
    for (const chain of fixed.keys()) if (!(chain in baseChains)) text.addChain(chain);
    writeChanges(changes, text);
    for (const [chain, rules] of fixed) if (!(chain in baseChains)) text.writeChain(chain, rules);
    await writeElements(state, text, pacer);
    for (const [name, hook] of Object.entries(baseChains)) {
      text.addChain(name, hook);
      text.writeChain(name, fixed.get(name) ?? []);
    }
    return { state, emptied, transactions: [text.toString()] };
  }

  async #changes(state: RuleState, request: AcceptedRequest): Promise<Texts> {
    const { family } = request.render;
    const changes = noChanges();
    const pacer = new Pacer();
    for (const key of request.keys) {
      const service = request.describe(key);
      state.stage(service, changes, request.lastRules(key));
      await pacer.breathe();
    }
    const text = new TableText(family);
    const fixed = renderFixed(request.fixed);
    const fixedText = JSON.stringify([...fixed]);
    if (fixedText !== this.#fixed) {
      for (const [chain, rules] of fixed) text.writeChain(chain, rules);
      this.#fixed = fixedText;
      this.#forgetHandles();
    }
    const nodePortIPs = request.fixed.nodePortIPs ?? [];
    for (const ip of this.#nodePortIPs) if (!nodePortIPs.includes(ip)) text.deleteElement("nodeport-ips", ip);
    for (const ip of nodePortIPs) if (!this.#nodePortIPs.includes(ip)) text.addElement("nodeport-ips", ip, "");
    this.#nodePortIPs = nodePortIPs;

    for (const chain of changes.writes.keys()) this.#stale.delete(chain);
    for (const count of changes.newCounts) this.#stale.delete(countChain(count));
    // Rules that are written get new handles, which nobody tells.
    const written = [...changes.writes.keys(), ...changes.drops, ...[...changes.newCounts].map(countChain)];
    for (const chain of written) this.#handles?.delete(chain);
    this.#listing.noteWritten(written);
    // A set whose seconds changed is emptied of its rules, then made anew.
    for (const name of changes.dropAffinitySets) {
      if (changes.newAffinitySets.has(name)) this.#remakeSet(name, changes, text);
    }
    writeChanges(changes, text);
    await writeElements(state, text, pacer);
    for (const chain of changes.drops) text.flushChain(chain);
    for (const name of changes.dropAffinitySets) if (!changes.newAffinitySets.has(name)) text.deleteSet("set", name);
    return { state, emptied: [...changes.drops], transactions: [text.toString()].filter((one) => one !== "") };
  }

  #forgetHandles(): void {
    this.#handles = undefined;
    this.#listing.forget();
  }

  /** All chains of the service are written again in the same transaction. */
  #remakeSet(name: string, changes: ChainChanges, text: TableText): void {
    for (const [chain, rules] of changes.writes) {
      if (rules.some((rule) => rule.includes(`@${name} `))) {
        text.addChain(chain);
        text.flushChain(chain);
      }
    }
    text.deleteSet("set", name);
  }

  async #deleteStale(text: TableText, signal: AbortSignal): Promise<void> {
    const nowMs = this.#clock.monotonic();
    const due = [...this.#stale].filter(([, sinceMs]) => nowMs - sinceMs >= staleChainAgeMs).map(([chain]) => chain);
    if (due.length === 0) return;
    for (const chain of due) text.deleteChain(chain);
    try {
      await this.#nft.apply(text.toString(), signal);
      for (const chain of due) this.#stale.delete(chain);
    } catch (err) {
      if (signal.aborted) throw err;
      this.#cleanupFailures += 1;
      // They are empty and nothing leads to them: in nobody's way until the next full sync.
      this.#log.warn(
        { chains: due.length, err: messageOf(err) },
        "empty chains of services that are gone could not be deleted yet",
      );
      for (const chain of due) this.#stale.set(chain, nowMs);
    }
  }
}

/** Nothing leads packets there: filling it was broken off. */
function isUnmet({ chains }: TableContent): boolean {
  return !chains.some((chain) => chain in baseChains);
}

/** Sets of another shape, base chains of another priority: some other program's idea of the same table. */
function isOfAnotherMake(refusal: string): boolean {
  return /File exists|Operation not supported|datatype mismatch/.test(refusal);
}

interface Texts {
  readonly state: RuleState;
  /** Chains that have no rules left and are to go. */
  readonly emptied: readonly string[];
  readonly transactions: readonly string[];
}

const fixedChains = [
  "services",
  "service-endpoints-check",
  "nodeport-endpoints-check",
  "firewall-check",
  "cluster-ips-check",
  "masquerading",
  "reject-chain",
] as const;

/** Chains that belong to no service. */
const ownChains: ReadonlySet<string> = new Set<string>([...Object.keys(baseChains), ...fixedChains]);

/** Empties what is there, but for the sets that remember clients; deletes sets that nobody wants. @returns chains to delete later */
function emptyTable(present: TableContent, state: RuleState, text: TableText): string[] {
  for (const chain of present.chains) text.flushChain(chain);
  const shared = sharedSets(state.family);
  const wantedSets = state.affinitySets();
  for (const kind of ["set", "map"] as const) {
    for (const name of kind === "set" ? present.sets.keys() : present.maps) {
      if (name in shared) text.flushSet(kind, name);
      // Another timeout: kernels before 6.5 keep the old one when the set is added again.
      else if (kind === "map" || !wantedSets.has(name) || wantedSets.get(name) !== present.sets.get(name)) {
        text.deleteSet(kind, name);
      }
    }
  }
  const wanted = state.chains();
  return present.chains.filter((chain) => isServiceObject(chain) && !wanted.has(chain));
}

function canaryOf(family: RuleState["family"]): string {
  return family === "IPv4" ? "0.0.0.1" : "::1";
}
