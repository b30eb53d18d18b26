import { backoffMs } from "../../lib/backoff.ts";
import type { Clock } from "../../lib/clock.ts";
import { hasCode, messageOf } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import { Pacer } from "../pacer.ts";
import { Applier } from "./apply.ts";
import type { Table } from "./fixed.ts";
import { isolate } from "./isolate.ts";
import { isServiceChain } from "./own.ts";
import type { Iptables } from "./port.ts";
import type { RuleState } from "./state.ts";
import { type AnyTable, RestoreText } from "./text.ts";

// What holds a chain is somebody's rule, which is there for long. The first wait is for a tool that was held up.
const retryBaseMs = 30_000;
const retryMaxMs = 3_600_000;

/** `chainPrint` by chain, by table. */
export type PresentChains = Readonly<Record<Table, ReadonlyMap<string, number>>>;

/** A chain that could not be deleted, and why. */
export interface UndeletedChain {
  readonly table: AnyTable;
  readonly chain: string;
  readonly reason: string;
}

/** Chains to delete, by table. */
type ChainNames = Readonly<Partial<Record<AnyTable, readonly string[]>>>;

/**
 * Deletes chains, which may lead to each other, with all that is in them. One that something else refers to keeps its name, empty;
 * the others go. Rejects with errors other than Invalid; any part of the work may be done then.
 *
 * @returns those that are still there
 */
export async function deleteChains(
  iptables: Iptables,
  chains: ChainNames,
  signal: AbortSignal,
): Promise<UndeletedChain[]> {
  const tables = Object.entries(chains) as [AnyTable, readonly string[]][];
  let applier = new Applier(iptables, signal);
  for (const [table, names] of tables) await applier.deleteAll(table, names);
  await applier.flush();
  if (applier.undeleted.length === 0) return [];
  applier = new Applier(iptables, signal);
  // Empty, none of them holds another: what cannot be deleted now is held by somebody else's rule.
  for (const [table, names] of tables) for (const chain of names) await applier.write(table, chain, []);
  await applier.flush();
  const left: UndeletedChain[] = [];
  for (const [table, names] of tables) left.push(...(await deleteEmpty(iptables, table, names, signal)));
  return left;
}

/** One table at a time: a text is all or nothing for each table only. */
async function deleteEmpty(
  iptables: Iptables,
  table: AnyTable,
  names: readonly string[],
  signal: AbortSignal,
): Promise<UndeletedChain[]> {
  const isGone = new Set<string>();
  const wanted = names.map((chain) => ({ key: chain }));
  const refusals = await isolate(wanted, async (some) => {
    const text = new RestoreText();
    for (const { key } of some) text.deleteEmpty(table, key);
    await iptables.restore(text.toString(), signal);
    for (const { key } of some) isGone.add(key);
  });
  const reasons = new Map(refusals.map(({ key, error }) => [key, error.message]));
  return names
    .filter((chain) => !isGone.has(chain))
    .map((chain) => ({ table, chain, reason: reasons.get(chain) ?? "too many like it" }));
}

interface StaleDeps {
  readonly iptables: Iptables;
  readonly clock: Clock;
  readonly log: Logger;
}

/**
 * Chains that no service needs any more and that could not be deleted. They are in nobody's way: nothing of ours leads to them. They
 * are tried again less and less often.
 */
export class StaleChains {
  readonly #deps: StaleDeps;
  /** By `table chain`. */
  #stuck = new Map<string, { table: Table; chain: string }>();
  #failures = 0;
  #retryAtMs = 0;

  constructor(deps: StaleDeps) {
    this.#deps = deps;
  }

  /** Of what a full sync found stale, that which it should try to delete now. The rest was tried, and waits. */
  due(found: Readonly<Record<Table, readonly string[]>>): Record<Table, string[]> {
    const places = (["nat", "filter"] as const).flatMap((table) =>
      found[table].map((chain) => ({ place: `${table} ${chain}`, table, chain })),
    );
    this.#stuck = new Map(places.filter(({ place }) => this.#stuck.has(place)).map((one) => [one.place, one]));
    const due: Record<Table, string[]> = { nat: [], filter: [] };
    for (const { place, table, chain } of places) if (!this.#stuck.has(place)) due[table].push(chain);
    return due;
  }

  /** The chain has rules again. */
  keep(table: Table, chain: string): void {
    if (this.#stuck.size > 0) this.#stuck.delete(`${table} ${chain}`);
  }

  /** Takes over chains that could not be deleted together with others: each is tried once by itself. */
  async removeHeld(
    held: readonly { readonly table: AnyTable; readonly chain: string }[],
    signal: AbortSignal,
  ): Promise<void> {
    const of = (table: Table) => held.filter((one) => one.table === table).map(({ chain }) => chain);
    await this.remove({ nat: of("nat"), filter: of("filter") }, signal);
  }

  /** Deletes these chains, and those before them whose time has come. Rejects only if it is canceled. */
  async remove(chains: Readonly<Record<Table, readonly string[]>>, signal: AbortSignal): Promise<void> {
    const { iptables, clock, log } = this.#deps;
    const isDue = this.#stuck.size > 0 && clock.monotonic() >= this.#retryAtMs;
    const before = isDue ? [...this.#stuck.values()] : [];
    const wanted: Record<Table, string[]> = { nat: [...chains.nat], filter: [...chains.filter] };
    for (const { table, chain } of before) wanted[table].push(chain);
    if (wanted.nat.length + wanted.filter.length === 0) return;
    let left: readonly { table: Table; chain: string }[];
    let reason: string | undefined;
    try {
      const undeleted = await deleteChains(iptables, wanted, signal);
      reason = undeleted[0]?.reason;
      left = undeleted.filter((one): one is UndeletedChain & { table: Table } => one.table !== "mangle");
    } catch (err) {
      if (hasCode(err, "Canceled")) throw err;
      reason = messageOf(err);
      left = (["nat", "filter"] as const).flatMap((table) => wanted[table].map((chain) => ({ table, chain })));
    }
    for (const { table, chain } of before) this.#stuck.delete(`${table} ${chain}`);
    for (const { table, chain } of left) this.#stuck.set(`${table} ${chain}`, { table, chain });
    if (left.length === 0) {
      if (this.#stuck.size === 0) this.#failures = 0;
      return;
    }
    this.#failures += 1;
    const retryMs = backoffMs(this.#failures, { baseMs: retryBaseMs, maxMs: retryMaxMs });
    this.#retryAtMs = clock.monotonic() + retryMs;
    log.warn(
      { chains: left.length, first: left[0], err: reason, retryMs },
      "stale chains cannot be deleted; services are programmed, and it will be tried again",
    );
  }
}

/** Chains of services, as they were found, that nothing needs. */
export async function findStale(state: RuleState, present: PresentChains): Promise<Record<Table, string[]>> {
  const pacer = new Pacer();
  const wanted = { nat: new Set(state.dispatchChains("nat")), filter: new Set(state.dispatchChains("filter")) };
  for (const chain of state.serviceChains()) {
    wanted.nat.add(chain);
    await pacer.breathe();
  }
  const stale: Record<Table, string[]> = { nat: [], filter: [] };
  for (const table of ["nat", "filter"] as const) {
    for (const chain of present[table].keys()) {
      if (isServiceChain(table, chain) && !wanted[table].has(chain)) stale[table].push(chain);
      await pacer.breathe();
    }
  }
  return stale;
}
