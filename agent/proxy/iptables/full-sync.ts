import { Pacer } from "../pacer.ts";
import { Applier } from "./apply.ts";
import {
  canaryChain,
  canaryRule,
  canaryTables,
  type Jump,
  jumps,
  renderBase,
  renderEntrances,
  sharedJumps,
  type Table,
} from "./fixed.ts";
import { Guard } from "./guard.ts";
import { isJump } from "./own.ts";
import type { Iptables } from "./port.ts";
import type { RefusedServices } from "./refused.ts";
import type { SetMember } from "./render.ts";
import { fixedContext, type IptablesSyncRequest, isLargeCluster } from "./request.ts";
import { sharedSetNames } from "./set-names.ts";
import type { Sets } from "./sets.ts";
import type { PresentChains } from "./stale.ts";
import { RuleState } from "./state.ts";
import { natFirst } from "./text.ts";

export interface FullSyncDeps {
  readonly iptables: Iptables;
  readonly sets: Sets;
  readonly refused: RefusedServices;
}

export interface FullSyncOptions {
  /** Whether packets find their service by sets. */
  readonly hasSets: boolean;
  /** Takes what writes: when the sync fails, it knows for which services. */
  readonly appliers: Applier[];
  readonly signal: AbortSignal;
}

/** What a full sync has made, and what it found. */
export interface FullSync {
  readonly state: RuleState;
  readonly present: PresentChains;
  readonly applier: Applier;
  readonly guard: Guard;
  /** The chains by which packets come in, as text: it differs when they do. */
  readonly entrances: string;
  /** How many rules each chain has that no service has a part in. */
  readonly fixedRules: Readonly<Record<Table, Map<string, number>>>;
}

/**
 * Writes everything, whatever the kernel has, and takes nothing away yet.
 *
 * Rejects with SetsUnusable if it was asked for sets and cannot have them.
 */
export async function syncFull(
  deps: FullSyncDeps,
  request: IptablesSyncRequest,
  { hasSets, appliers, signal }: FullSyncOptions,
): Promise<FullSync> {
  const { iptables, sets } = deps;
  // Asked before anything is written: a clean machine answers at once.
  const present: PresentChains = {
    nat: await iptables.readChains("nat", signal),
    filter: await iptables.readChains("filter", signal),
  };
  const isLarge = isLargeCluster(request);
  const { hasClientSets } = sets;
  const state = new RuleState({ ...request.render, isLarge, hasSets, hasClientSets });
  // Sets are filled when everything is known, before anything new leads here; but what leads here already depends on them at once.
  const early = new EarlyMembers();
  const applier = new Applier(iptables, signal, present, async () => await sets.extend(early.take(), signal));
  appliers.push(applier);
  const context = fixedContext(request, hasSets);
  const base = renderBase(context);
  for (const table of ["filter", "nat"] as const) await applier.writeAll(table, base[table]);

  // What the services' chains lead to is there first, and is no part of what a refused service is looked for in.
  await applier.flush();
  const pacer = new Pacer();
  const parts = { state, present, applier, early, pacer };
  await writeServices(deps, request, parts, signal);
  if (hasSets) await sets.fill(state.takeAllMembers(), signal);
  const chains = await state.takeDispatchChanges(pacer);
  const entrances = renderEntrances(context);
  await applier.changeOrder(natFirst);
  for (const table of ["nat", "filter"] as const) {
    await applier.writeAll(table, chains[table].writes);
    await applier.writeAll(table, entrances[table]);
  }
  for (const table of canaryTables) applier.text.write(table, canaryChain, [canaryRule]);
  await applier.flush();

  const wantedJumps = base.filter.has("KUBE-FIREWALL") ? [...jumps, ...sharedJumps] : jumps;
  await ensureJumps(wantedJumps, iptables, applier, signal);
  const guard = new Guard(wantedJumps);
  const fixedRules = { nat: new Map<string, number>(), filter: new Map<string, number>() };
  for (const table of ["filter", "nat"] as const) {
    guard.note(table, base[table]);
    guard.note(table, entrances[table]);
    guard.noteRoots(table, chains[table].writes);
    for (const [chain, rules] of [...base[table], ...entrances[table]]) fixedRules[table].set(chain, rules.length);
    fixedRules[table].set(canaryChain, 1);
  }
  return { state, present, applier, guard, entrances: entrancesText(entrances), fixedRules };
}

/** Of the chains by which packets come in; differs when they do. */
export function entrancesText(entrances: ReturnType<typeof renderEntrances>): string {
  return JSON.stringify([...entrances.nat, ...entrances.filter]);
}

/** Members of sets that what is written next depends on, by set. */
class EarlyMembers {
  #bySet = new Map<string, string[]>();

  add({ set, member }: SetMember): void {
    const members = this.#bySet.get(set);
    if (members === undefined) this.#bySet.set(set, [member]);
    else members.push(member);
  }

  take(): Map<string, string[]> {
    const taken = this.#bySet;
    this.#bySet = new Map();
    return taken;
  }
}

/** Writes the chains of every service; nothing leads to new ones yet. */
async function writeServices(
  { sets, refused }: FullSyncDeps,
  request: IptablesSyncRequest,
  {
    state,
    present,
    applier,
    early,
    pacer,
  }: Pick<FullSync, "state" | "present" | "applier"> & {
    early: EarlyMembers;
    pacer: Pacer;
  },
  signal: AbortSignal,
): Promise<void> {
  const isShared = new Set<string>(Object.values(sharedSetNames(request.render.family)));
  for (const key of request.keys) {
    const last = refused.lastRules(key, present.nat);
    if (last !== undefined) {
      state.adopt(key, last);
      continue;
    }
    const rendered = state.render(request.describe(key));
    const { writes, addSets } = state.stage(key, rendered);
    await sets.createClientSets(addSets, signal);
    // Its own sets must be there; it may be anybody's members that packets meet its chains for.
    for (const one of rendered.members) if (!isShared.has(one.set)) early.add(one);
    await applier.writeService({ key, writes }, () => rendered.members.forEach((one) => early.add(one)));
    await pacer.breathe();
  }
  await applier.flush();
}

/** Inserts the jumps that are missing at the head of their chains. Those that are there stay where they are. */
async function ensureJumps(
  wanted: readonly Jump[],
  iptables: Iptables,
  applier: Applier,
  signal: AbortSignal,
): Promise<void> {
  const present = new Map<string, readonly string[]>();
  for (const jump of wanted) {
    const place = `${jump.table} ${jump.from}`;
    let rules = present.get(place);
    if (rules === undefined) {
      rules = (await iptables.listRules(jump.table, jump.from, signal)) ?? [];
      present.set(place, rules);
    }
    if (rules.some((rule) => isJump(rule, jump))) continue;
    applier.text.raw(jump.table, `-I ${jump.from} ${jumpArguments(jump)}`);
  }
  await applier.flush();
}

function jumpArguments({ match, comment, to }: Jump): string {
  return [match, comment === "" ? "" : `-m comment --comment "${comment}"`, `-j ${to}`].filter(Boolean).join(" ");
}
