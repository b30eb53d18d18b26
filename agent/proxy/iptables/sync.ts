import type { Logger } from "../../lib/log.ts";
import { hasCode, messageOf } from "../../lib/errors.ts";
import type { SyncRequest } from "../backend.ts";
import { Pacer } from "../pacer.ts";
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
import { isJump, isServiceChain } from "./own.ts";
import type { Iptables, ServiceSet } from "./port.ts";
import type { RenderContext } from "./render.ts";
import { RuleState } from "./state.ts";

/** More endpoints than this: no comments in endpoint chains. The reference's "large cluster" threshold. */
export const endpointsWithCommentsMax = 1_000;

/** A sync, and what decides the rules beyond the services. */
export interface IptablesSyncRequest extends SyncRequest {
  /** Without the set's name, which the backend knows. */
  readonly fixed: Omit<FixedContext, "setName">;
  readonly render: Omit<RenderContext, "withEndpointComments">;
}

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
  #state: RuleState | undefined;
  #entrances = "";
  /** Whether the rules in the kernel refer to the set. */
  #isSetUsed = false;
  #setTrouble: string | undefined;

  constructor(deps: { iptables: Iptables; set: ServiceSet | undefined; log: Logger }) {
    this.#iptables = deps.iptables;
    this.#set = deps.set;
    this.#log = deps.log;
  }

  get needsFull(): boolean {
    return this.#state === undefined;
  }

  /** Rejects with an `AgentError`; see {@link Iptables}. */
  async sync(request: IptablesSyncRequest, signal: AbortSignal): Promise<ApplyResult> {
    const state = request.isFull ? undefined : this.#state;
    this.#state = undefined; // until all of it worked
    // Asked before anything is written: a clean machine answers at once.
    const present = state === undefined ? await this.#readChains(signal) : { nat: noChains, filter: noChains };
    const applier = new Applier(this.#iptables, signal, present);
    this.#state =
      state === undefined
        ? await this.#syncFull(request, applier, present, signal)
        : await this.#syncChanges(state, request, applier, signal);
    return applier.result();
  }

  /**
   * Looks whether the rules are still there. Cheap.
   *
   * @returns what is missing, or undefined. Rejects if that could not be found out.
   */
  async findDamage(signal: AbortSignal): Promise<string | undefined> {
    for (const table of canaryTables) {
      const rules = await this.#iptables.listRules(table, canaryChain, signal);
      if (rules === undefined) return `table ${table} was flushed`;
      if (rules.length === 0) return `the chains of table ${table} were flushed`;
    }
    const state = this.#state;
    if (this.#set === undefined || !this.#isSetUsed || state === undefined) return undefined;
    const count = await this.#set.count(signal);
    return count === state.memberCount
      ? undefined
      : `set ${this.#set.name} has ${count ?? 0} of ${state.memberCount} members`;
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
    const state = new RuleState({ ...request.render, withEndpointComments });
    const base = renderBase({ ...request.fixed, setName: undefined });
    for (const table of ["filter", "nat"] as const) await applier.writeAll(table, base[table]);

    const pacer = new Pacer();
    for (const key of request.keys) {
      for (const [chain, rules] of state.stage(request.describe(key)).writes) await applier.write("nat", chain, rules);
      await pacer.breathe();
    }
    await this.#fillSet(state, signal);
    const { chains } = await state.takeDispatchChanges(pacer);
    // Chains of the filter table first: they only refuse what the nat table does not translate.
    for (const table of ["filter", "nat"] as const) await applier.writeAll(table, chains[table].writes);
    const entrances = renderEntrances(this.#fixed(request));
    for (const table of ["filter", "nat"] as const) await applier.writeAll(table, entrances[table]);
    this.#entrances = JSON.stringify([...entrances.nat, ...entrances.filter]);
    for (const table of canaryTables) applier.text.write(table, canaryChain, [canaryRule]);
    await applier.flush();

    await this.#ensureJumps(base.filter.has("KUBE-FIREWALL") ? [...jumps, ...sharedJumps] : jumps, applier, signal);
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
    return state;
  }

  async #syncChanges(
    state: RuleState,
    request: IptablesSyncRequest,
    applier: Applier,
    signal: AbortSignal,
  ): Promise<RuleState> {
    const deletes: Record<Table, string[]> = { nat: [], filter: [] };
    const pacer = new Pacer();
    for (const key of request.keys) {
      const changes = state.stage(request.describe(key));
      for (const [chain, rules] of changes.writes) await applier.write("nat", chain, rules);
      deletes.nat.push(...changes.deletes);
      await pacer.breathe();
    }
    const dispatch = await state.takeDispatchChanges(pacer);
    for (const table of ["filter", "nat"] as const) {
      await applier.writeAll(table, dispatch.chains[table].writes);
      deletes[table].push(...dispatch.chains[table].deletes);
    }
    const entrances = renderEntrances(this.#fixed(request));
    const entrancesText = JSON.stringify([...entrances.nat, ...entrances.filter]);
    if (entrancesText !== this.#entrances) {
      for (const table of ["filter", "nat"] as const) await applier.writeAll(table, entrances[table]);
      this.#entrances = entrancesText;
    }
    for (const table of ["nat", "filter"] as const) await applier.deleteAll(table, deletes[table]);
    await applier.flush();
    if (this.#isSetUsed) await this.#set?.change(dispatch.addMembers, dispatch.removeMembers, signal);
    return state;
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

function jumpArguments({ match, comment, to }: Jump): string {
  return [match, comment === "" ? "" : `-m comment --comment "${comment}"`, `-j ${to}`].filter(Boolean).join(" ");
}
