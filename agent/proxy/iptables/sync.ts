import { type Clock, systemClock } from "../../lib/clock.ts";
import type { Logger } from "../../lib/log.ts";
import { type AgentError, hasCode, messageOf } from "../../lib/errors.ts";
import type { BackendFigures, SyncRequest } from "../backend.ts";
import { Pacer } from "../pacer.ts";
import type { ClientSets } from "./affinity.ts";
import { Applier, type ApplyResult } from "./apply.ts";
import {
  canaryChain,
  canaryRule,
  canaryTables,
  type FixedContext,
  type Jump,
  jumps,
  renderBase,
  renderEntrances,
  sharedJumps,
  type Table,
} from "./fixed.ts";
import { Guard } from "./guard.ts";
import { isolate, type Refusal, serviceOfRefusedLine } from "./isolate.ts";
import { isJump, isServiceChain } from "./own.ts";
import { type Iptables, RefusedLine, type ServiceSet } from "./port.ts";
import { type RefusedDeps, RefusedServices } from "./refused.ts";
import { RestoreText } from "./text.ts";
import type { RenderContext } from "./render.ts";
import { RuleState } from "./state.ts";

/** More endpoints than this: no comments in endpoint chains. The reference's "large cluster" threshold. */
export const endpointsWithCommentsMax = 1_000;

/** A sync, and what decides the rules beyond the services. */
export interface IptablesSyncRequest extends SyncRequest {
  /** Without the set's name, which the backend knows. */
  readonly fixed: Omit<FixedContext, "setName">;
  readonly render: Omit<RenderContext, "withEndpointComments" | "hasClientSets">;
}

export interface IptablesBackendDeps extends Omit<RefusedDeps, "clock"> {
  /** Default: the machine's. */
  readonly clock?: Clock;
  readonly iptables: Iptables;
  /** undefined: packets find their service by the dispatch tree alone. */
  readonly set: ServiceSet | undefined;
  /** undefined: new clients of services that remember clients pass a rule for each endpoint. */
  readonly clientSets?: ClientSets | undefined;
}

// What keeps sets from being made (no kernel module, too many of them) changes seldom.
const clientSetsRetryMs = 3_600_000;
// Each round finds up to 16 services; what is still refused then is tried again at the next sync.
const isolationRoundsMax = 4;

/** `chainPrint` by chain, by table. */
type PresentChains = Readonly<Record<Table, ReadonlyMap<string, number>>>;
const noChains: ReadonlyMap<string, number> = new Map();

/**
 * Keeps one family's iptables rules equal to the services. Work for a change grows with the change. One sync at a
 * time; the caller serialises. Order inside a sync, so that no packet meets half a service:
 *
 *     chains of services ─▶ set (full) ─▶ trees, leaves first ─▶ entrances ─▶ jumps (full) ─▶ set (changes) ─▶ removals
 *
 * A failed sync rejects, and the next one must be full: `needsFull` says so.
 */
export class IptablesBackend {
  readonly #iptables: Iptables;
  readonly #set: ServiceSet | undefined;
  readonly #log: Logger;
  readonly #refused: RefusedServices;
  #state: RuleState | undefined;
  #guard: Guard | undefined;
  #entrances = "";
  /** Rules of each chain that no service has a part in. */
  readonly #fixedRules: Readonly<Record<Table, Map<string, number>>> = { nat: new Map(), filter: new Map() };
  #written: ApplyResult | undefined;
  /** Whether the rules in the kernel refer to the set. */
  #isSetUsed = false;
  #setTrouble: string | undefined;
  readonly #clientSets: ClientSets | undefined;
  /** Sets of clients could not be made; until then it is not tried again. */
  #clientSetsOffUntilMs = 0;
  readonly #clock: Clock;

  constructor(deps: IptablesBackendDeps) {
    this.#iptables = deps.iptables;
    this.#set = deps.set;
    this.#log = deps.log;
    this.#clock = deps.clock ?? systemClock;
    this.#clientSets = deps.clientSets;
    this.#refused = new RefusedServices({ ...deps, clock: this.#clock });
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
   * Rejects with an `AgentError`; see {@link Iptables}. Services that the kernel refuses are left out, told of, and tried again
   * later; only if it is not they that are refused does the sync fail.
   */
  async sync(request: IptablesSyncRequest, signal: AbortSignal): Promise<ApplyResult> {
    let current = this.#refused.request(request);
    for (let round = 1; ; round++) {
      const keys = current.isFull ? [] : [...(this.#state?.keys() ?? [])];
      const appliers: Applier[] = [];
      try {
        const result = await this.#attempt(current, appliers, signal);
        this.#refused.settle(current);
        this.#written = result;
        return result;
      } catch (err) {
        const refusals = round > isolationRoundsMax ? [] : await this.#findRefused(err, appliers.at(-1), signal);
        if (refusals.length === 0) throw err;
        this.#refused.add(refusals);
        current = this.#refused.request({
          ...request,
          isFull: true,
          keys: [...new Set([...current.keys, ...keys])].sort(),
        });
      }
    }
  }

  /**
   * Looks whether the rules are still there. Cheap: one process for the rules, one for the set, however many services there are.
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
    if (damage !== undefined || this.#set === undefined || !this.#isSetUsed || state === undefined) return damage;
    const count = await this.#set.count(signal);
    return count === state.memberCount
      ? undefined
      : `set ${this.#set.name} has ${count ?? 0} of ${state.memberCount} members`;
  }

  async #attempt(request: IptablesSyncRequest, appliers: Applier[], signal: AbortSignal): Promise<ApplyResult> {
    const state = request.isFull ? undefined : this.#state;
    this.#state = undefined; // until all of it worked
    // Asked before anything is written: a clean machine answers at once.
    const present = state === undefined ? await this.#readChains(signal) : { nat: noChains, filter: noChains };
    const applier = new Applier(this.#iptables, signal, present);
    appliers.push(applier);
    this.#state =
      state === undefined
        ? await this.#syncFull(request, applier, present, signal)
        : await this.#syncChanges(state, request, applier, signal);
    return applier.result();
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
    return key === undefined ? [] : [{ key, error: err }];
  }

  async #readChains(signal: AbortSignal): Promise<PresentChains> {
    return {
      nat: await this.#iptables.readChains("nat", signal),
      filter: await this.#iptables.readChains("filter", signal),
    };
  }

  async #syncFull(
    request: IptablesSyncRequest,
    applier: Applier,
    present: PresentChains,
    signal: AbortSignal,
  ): Promise<RuleState> {
    const withEndpointComments = request.endpointCount() <= endpointsWithCommentsMax;
    const hasClientSets = this.#clientSets !== undefined && this.#clock.monotonic() >= this.#clientSetsOffUntilMs;
    const state = new RuleState({ ...request.render, withEndpointComments, hasClientSets });
    const base = renderBase({ ...request.fixed, setName: undefined });
    for (const table of ["filter", "nat"] as const) await applier.writeAll(table, base[table]);

    // What the services' chains lead to is there first, and is no part of what a refused service is looked for in.
    await applier.flush();
    const pacer = new Pacer();
    for (const key of request.keys) {
      const { writes, addSets } = state.stage(request.describe(key));
      await this.#createClientSets(addSets, signal);
      await applier.writeService({ key, writes });
      await pacer.breathe();
    }
    await applier.flush();
    await this.#fillSet(state, signal);
    const { chains } = await state.takeDispatchChanges(pacer);
    // Chains of the filter table first: they only refuse what the nat table does not translate.
    for (const table of ["filter", "nat"] as const) await applier.writeAll(table, chains[table].writes);
    const entrances = renderEntrances(this.#fixed(request));
    for (const table of ["filter", "nat"] as const) await applier.writeAll(table, entrances[table]);
    this.#entrances = JSON.stringify([...entrances.nat, ...entrances.filter]);
    for (const table of canaryTables) applier.text.write(table, canaryChain, [canaryRule]);
    await applier.flush();

    const wantedJumps = base.filter.has("KUBE-FIREWALL") ? [...jumps, ...sharedJumps] : jumps;
    await this.#ensureJumps(wantedJumps, applier, signal);
    const guard = new Guard(wantedJumps);
    for (const table of ["filter", "nat"] as const) {
      guard.note(table, base[table]);
      guard.note(table, entrances[table]);
      for (const [chain, rules] of [...base[table], ...entrances[table]]) {
        this.#fixedRules[table].set(chain, rules.length);
      }
      this.#fixedRules[table].set(canaryChain, 1);
      guard.noteRoots(table, chains[table].writes);
    }
    this.#guard = guard;
    const wanted = { nat: new Set(chains.nat.writes.keys()), filter: new Set(chains.filter.writes.keys()) };
    for (const chain of state.serviceChains()) {
      wanted.nat.add(chain);
      await pacer.breathe();
    }
    for (const table of ["nat", "filter"] as const) {
      const stale: string[] = [];
      for (const chain of present[table].keys()) {
        if (isServiceChain(table, chain) && !wanted[table].has(chain)) stale.push(chain);
        await pacer.breathe();
      }
      await applier.deleteAll(table, stale);
    }
    await applier.flush();
    await this.#removeStaleClientSets(state, signal);
    return state;
  }

  async #syncChanges(
    state: RuleState,
    request: IptablesSyncRequest,
    applier: Applier,
    signal: AbortSignal,
  ): Promise<RuleState> {
    const deletes: Record<Table, string[]> = { nat: [], filter: [] };
    const staleSets: string[] = [];
    const pacer = new Pacer();
    for (const key of request.keys) {
      const changes = state.stage(request.describe(key));
      await this.#createClientSets(changes.addSets, signal);
      await applier.writeService({ key, writes: changes.writes });
      staleSets.push(...changes.removeSets);
      deletes.nat.push(...changes.deletes);
      await pacer.breathe();
    }
    const dispatch = await state.takeDispatchChanges(pacer);
    for (const table of ["filter", "nat"] as const) {
      await applier.writeAll(table, dispatch.chains[table].writes);
      this.#guard?.noteRoots(table, dispatch.chains[table].writes);
      deletes[table].push(...dispatch.chains[table].deletes);
    }
    const entrances = renderEntrances(this.#fixed(request));
    const entrancesText = JSON.stringify([...entrances.nat, ...entrances.filter]);
    if (entrancesText !== this.#entrances) {
      for (const table of ["filter", "nat"] as const) {
        await applier.writeAll(table, entrances[table]);
        this.#guard?.note(table, entrances[table]);
        for (const [chain, rules] of entrances[table]) this.#fixedRules[table].set(chain, rules.length);
      }
      this.#entrances = entrancesText;
    }
    for (const table of ["nat", "filter"] as const) await applier.deleteAll(table, deletes[table]);
    await applier.flush();
    if (staleSets.length > 0) await this.#clientSets?.destroy(staleSets, signal);
    if (this.#isSetUsed) await this.#set?.change(dispatch.addMembers, dispatch.removeMembers, signal);
    return state;
  }

  /** A failure fails the sync; the next one goes without them, and so does every one for an hour. */
  async #createClientSets(names: readonly string[], signal: AbortSignal): Promise<void> {
    if (names.length === 0) return;
    try {
      await this.#clientSets?.create(names, signal);
    } catch (err) {
      if (!hasCode(err, "Canceled")) this.#clientSetsOffUntilMs = this.#clock.monotonic() + clientSetsRetryMs;
      throw err;
    }
  }

  async #removeStaleClientSets(state: RuleState, signal: AbortSignal): Promise<void> {
    if (this.#clientSets === undefined) return;
    const wanted = new Set(state.clientSets());
    const stale = (await this.#clientSets.list(signal)).filter((name) => !wanted.has(name));
    await this.#clientSets.destroy(stale, signal);
  }

  /** Tries the set anew at every full sync; without it the tree alone decides. */
  async #fillSet(state: RuleState, signal: AbortSignal): Promise<void> {
    this.#isSetUsed = false;
    if (this.#set === undefined) return;
    try {
      await this.#set.replace(state.members(), signal);
      this.#isSetUsed = true;
      this.#setTrouble = undefined;
    } catch (err) {
      if (hasCode(err, "Canceled")) throw err;
      const trouble = messageOf(err);
      if (trouble !== this.#setTrouble) {
        this.#log.warn({ set: this.#set.name, err: trouble }, "service address set is unusable; going on without it");
      }
      this.#setTrouble = trouble;
    }
  }

  #fixed(request: IptablesSyncRequest): FixedContext {
    return { ...request.fixed, setName: this.#isSetUsed ? this.#set?.name : undefined };
  }

  /** Inserts the jumps that are missing at the head of their chains. Those that are there stay where they are. */
  async #ensureJumps(wanted: readonly Jump[], applier: Applier, signal: AbortSignal): Promise<void> {
    const present = new Map<string, readonly string[]>();
    for (const jump of wanted) {
      const place = `${jump.table} ${jump.from}`;
      let rules = present.get(place);
      if (rules === undefined) {
        rules = (await this.#iptables.listRules(jump.table, jump.from, signal)) ?? [];
        present.set(place, rules);
      }
      if (rules.some((rule) => isJump(rule, jump))) continue;
      applier.text.raw(jump.table, `-I ${jump.from} ${jumpArguments(jump)}`);
    }
    await applier.flush();
  }
}

/** A text that was refused, for people: what the tool said is in the error, the place is here. */
function logRefusedLine(err: AgentError, log: Logger): void {
  if (err.cause instanceof RefusedLine) {
    log.error({ line: err.cause.number, around: err.cause.around }, "rules were refused");
  }
}

function jumpArguments({ match, comment, to }: Jump): string {
  return [match, comment === "" ? "" : `-m comment --comment "${comment}"`, `-j ${to}`].filter(Boolean).join(" ");
}
