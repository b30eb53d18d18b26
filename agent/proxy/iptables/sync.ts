import { type Clock, systemClock } from "../../lib/clock.ts";
import type { Logger } from "../../lib/log.ts";
import { type AgentError, hasCode } from "../../lib/errors.ts";
import type { BackendFigures } from "../backend.ts";
import type { ServiceDescription } from "../model.ts";
import { Pacer } from "../pacer.ts";
import type { ClientSets } from "./affinity.ts";
import { Applier, type ApplyResult } from "./apply.ts";
import { renderEntrances, type Table } from "./fixed.ts";
import { entrancesText, type FullSync, type FullSyncDeps, syncFull } from "./full-sync.ts";
import type { Guard } from "./guard.ts";
import { isolate, type Refusal, serviceOfRefusedLine } from "./isolate.ts";
import { type Ipset, type Iptables, RefusedLine } from "./port.ts";
import { type RefusedDeps, RefusedServices } from "./refused.ts";
import type { RenderedService } from "./render.ts";
import { fixedContext, type IptablesSyncRequest, isLargeCluster } from "./request.ts";
import { Sets, SetsUnusable } from "./sets.ts";
import { findStale, StaleChains } from "./stale.ts";
import type { RuleState } from "./state.ts";
import { filterFirst, natFirst, RestoreText, type TableOrder } from "./text.ts";

export interface IptablesBackendDeps extends Omit<RefusedDeps, "clock"> {
  /** Default: the machine's. */
  readonly clock?: Clock;
  readonly iptables: Iptables;
  /** undefined: packets find their service by the dispatch tree alone. */
  readonly ipset: Ipset | undefined;
  /** undefined: new clients of services that remember clients pass a rule for each endpoint. */
  readonly clientSets?: ClientSets | undefined;
}

// Each round finds up to 16 services; what is still refused then is tried again at the next sync.
const isolationRoundsMax = 4;

/** What waits until nothing leads to it any more. */
interface Leftovers {
  readonly chains: Readonly<Record<Table, Set<string>>>;
  readonly clientSets: string[];
}

/**
 * Keeps one family's iptables rules equal to the services. Work for a change grows with the change. One sync at a
 * time; the caller serialises. Order inside a sync, so that no packet meets half a service:
 *
 *     sets: additions ─▶ chains of services ─▶ trees, leaves first ─▶ entrances ─▶ jumps (full) ─▶ removals ─▶ sets: removals
 *
 * What is neither translated nor refused leaves the node for nowhere. So services that get endpoints change in the nat table
 * first, and those that lose them in the filter table. A full sync does not know who loses, and takes the nat table first.
 *
 * A failed sync rejects, and the next one must be full: `needsFull` says so.
 */
export class IptablesBackend {
  readonly #iptables: Iptables;
  readonly #sets: Sets;
  readonly #fullSyncDeps: FullSyncDeps;
  readonly #stale: StaleChains;
  readonly #log: Logger;
  readonly #refused: RefusedServices;
  #state: RuleState | undefined;
  #guard: Guard | undefined;
  #entrances = "";
  /** Rules of each chain that no service has a part in. */
  #fixedRules: FullSync["fixedRules"] = { nat: new Map(), filter: new Map() };
  #written: ApplyResult | undefined;

  constructor(deps: IptablesBackendDeps) {
    this.#iptables = deps.iptables;
    this.#log = deps.log;
    const clock = deps.clock ?? systemClock;
    this.#sets = new Sets({ ...deps, clientSets: deps.clientSets, clock });
    this.#stale = new StaleChains({ ...deps, clock });
    this.#refused = new RefusedServices({ ...deps, clock });
    this.#fullSyncDeps = { iptables: this.#iptables, sets: this.#sets, refused: this.#refused };
  }

  get needsFull(): boolean {
    return this.#state === undefined;
  }

  /** Rules that are ours, and those that the last sync wrote. Nothing while it is not known what the kernel has. */
  figures(): BackendFigures {
    const owned = this.#state?.ruleCounts();
    const written = this.#written;
    if (owned === undefined || written === undefined) return {};
    const fixed = (table: Table) => this.#fixedRules[table].values().reduce((total, count) => total + count, 0);
    return {
      rules: {
        nat: { owned: owned.nat + fixed("nat"), written: written.natRules },
        filter: { owned: owned.filter + fixed("filter"), written: written.filterRules },
      },
    };
  }

  /**
   * Rejects with an `AgentError`; see {@link Iptables}. Services that the kernel refuses keep what they had, are told of, and tried again
   * later; only if it is not they that are refused does the sync fail.
   */
  async sync(request: IptablesSyncRequest, signal: AbortSignal): Promise<ApplyResult> {
    let current = this.#refused.request(request);
    const before = this.#state; // an attempt that fails leaves none
    for (let round = 1; ; round++) {
      const appliers: Applier[] = [];
      try {
        const result = await this.#attempt(current, appliers, signal);
        this.#refused.settle(current);
        this.#written = result;
        return result;
      } catch (err) {
        const refusals = round > isolationRoundsMax ? [] : await this.#findRefused(err, appliers.at(-1), signal);
        if (refusals.length === 0) throw err;
        this.#refused.add(refusals, (key) => before?.lastApplied(key));
        current = this.#refused.request({
          ...request,
          isFull: true,
          keys: [...new Set([...current.keys, ...(before?.keys() ?? [])])].sort(),
        });
      }
    }
  }

  /**
   * Looks whether the rules are still there. Cheap: one process for the rules, one for the sets, however many services there are.
   *
   * @returns what is missing, or undefined. Rejects if that could not be found out.
   */
  async findDamage(signal: AbortSignal): Promise<string | undefined> {
    const guard = this.#guard;
    if (guard === undefined) return undefined;
    const listed = await this.#iptables.listMany(guard.chains(), signal);
    if ("missing" in listed) {
      const [table, chain] = listed.missing.split(" ");
      return `chain ${chain} of table ${table} is gone`;
    }
    const damage = guard.findDamage(listed);
    const state = this.#state;
    if (damage !== undefined || state === undefined) return damage;
    return await this.#sets.findDamage(state.memberCounts(), signal);
  }

  async #attempt(request: IptablesSyncRequest, appliers: Applier[], signal: AbortSignal): Promise<ApplyResult> {
    const state = request.isFull ? undefined : this.#state;
    this.#state = undefined; // until all of it worked
    if (state !== undefined) {
      const applier = new Applier(this.#iptables, signal, {}, async () => await this.#addMembers(state, signal));
      appliers.push(applier);
      await this.#syncChanges(state, request, applier, signal);
      state.settle();
      this.#state = state;
      await this.#stale.removeHeld(applier.undeleted, signal);
      return applier.result();
    }
    const { family } = request.render;
    const canUseSets = await this.#sets.prepare(family, signal);
    let full: FullSync;
    try {
      full = await syncFull(this.#fullSyncDeps, request, { hasSets: canUseSets, appliers, signal });
    } catch (err) {
      if (!(err instanceof SetsUnusable)) throw err;
      full = await syncFull(this.#fullSyncDeps, request, { hasSets: false, appliers, signal });
    }
    const { state: made, present, applier } = full;
    this.#guard = full.guard;
    this.#entrances = full.entrances;
    this.#fixedRules = full.fixedRules;
    made.settle();
    this.#state = made;
    // Services are programmed. What is left over is in nobody's way, and is no reason to do it all again.
    await this.#stale.remove(this.#stale.due(await findStale(made, present)), signal);
    await this.#sets.removeStaleClientSets(made.clientSets(), signal);
    await this.#sets.removeStale(made.memberCounts(), family, signal);
    return applier.result();
  }

  /** Rules may depend on members that were added since the last text. */
  async #addMembers(state: RuleState, signal: AbortSignal): Promise<void> {
    const { members, fresh } = state.takeAddedMembers();
    await this.#sets.add(members, fresh, (name) => state.membersOf(name), signal);
  }

  /** Which services a failed attempt failed for; empty: for none in particular. */
  async #findRefused(err: unknown, applier: Applier | undefined, signal: AbortSignal): Promise<Refusal[]> {
    if (!hasCode(err, "Invalid") || applier === undefined) return [];
    logRefusedLine(err, this.#log);
    const refusals = await isolate(applier.failedServices, async (services) => {
      const text = new RestoreText();
      for (const { writes } of services) for (const [chain, rules] of writes) text.write("nat", chain, rules);
      await this.#iptables.restore(text.toString(), signal);
    });
    if (refusals.length > 0) return refusals;
    const key = serviceOfRefusedLine(err);
    return key === undefined ? [] : [{ key, error: err, isDispatch: true }];
  }

  async #syncChanges(
    state: RuleState,
    request: IptablesSyncRequest,
    applier: Applier,
    signal: AbortSignal,
  ): Promise<void> {
    const left: Leftovers = { chains: { nat: new Set(), filter: new Set() }, clientSets: [] };
    const pacer = new Pacer();
    const losing: ServiceDescription[] = [];
    state.setLarge(isLargeCluster(request));
    await applier.changeOrder(natFirst);
    for (const key of request.keys) {
      const service = request.describe(key);
      const rendered = state.render(service);
      // One that has ports of both kinds comes later, too; the two take turns within milliseconds.
      if (state.refusesMore(key, rendered)) losing.push(service);
      else await this.#stage(state, key, rendered, applier, left, signal);
      await pacer.breathe();
    }
    await this.#writeDispatch(state, natFirst, applier, left, pacer);
    if (losing.length > 0) {
      await applier.changeOrder(filterFirst);
      for (const service of losing) {
        await this.#stage(state, service.key, state.render(service), applier, left, signal);
        await pacer.breathe();
      }
      await this.#writeDispatch(state, filterFirst, applier, left, pacer);
    }
    const entrances = renderEntrances(fixedContext(request, state.context.hasSets));
    const text = entrancesText(entrances);
    if (text !== this.#entrances) {
      for (const table of ["nat", "filter"] as const) {
        await applier.writeAll(table, entrances[table]);
        this.#guard?.note(table, entrances[table]);
        for (const [chain, rules] of entrances[table]) this.#fixedRules[table].set(chain, rules.length);
      }
      this.#entrances = text;
    }
    for (const table of ["nat", "filter"] as const) await applier.deleteAll(table, [...left.chains[table]]);
    await applier.flush();
    await this.#addMembers(state, signal); // those that no rule was written for
    await this.#sets.destroyClientSets(left.clientSets, signal);
    const { members, gone } = state.takeRemovedMembers();
    await this.#sets.remove(members, gone, signal);
  }

  /** Writes the chains of one service; nothing leads to new ones yet. */
  async #stage(
    state: RuleState,
    key: string,
    rendered: RenderedService,
    applier: Applier,
    left: Leftovers,
    signal: AbortSignal,
  ): Promise<void> {
    const { writes, deletes, addSets, removeSets } = state.stage(key, rendered);
    await this.#sets.createClientSets(addSets, signal);
    await applier.writeService({ key, writes });
    for (const [chain] of writes) this.#stale.keep("nat", chain);
    for (const chain of deletes) left.chains.nat.add(chain);
    left.clientSets.push(...removeSets);
  }

  /** Leads packets to the services that were staged. */
  async #writeDispatch(
    state: RuleState,
    order: TableOrder,
    applier: Applier,
    left: Leftovers,
    pacer: Pacer,
  ): Promise<void> {
    const chains = await state.takeDispatchChanges(pacer);
    for (const table of order) {
      if (table === "mangle") continue;
      const { writes, deletes } = chains[table];
      await applier.writeAll(table, writes);
      this.#guard?.noteRoots(table, writes);
      for (const chain of deletes) left.chains[table].add(chain);
      for (const chain of writes.keys()) {
        left.chains[table].delete(chain);
        this.#stale.keep(table, chain);
      }
    }
  }
}

/** A text that was refused, for people: what the tool said is in the error, the place is here. */
function logRefusedLine(err: AgentError, log: Logger): void {
  if (err.cause instanceof RefusedLine) {
    log.error({ line: err.cause.number, around: err.cause.around }, "rules were refused");
  }
}
