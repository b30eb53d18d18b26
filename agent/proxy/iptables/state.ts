import type { ServiceDescription } from "../model.ts";
import type { Pacer } from "../pacer.ts";
import type { Table } from "./fixed.ts";
import { treeChains } from "./fixed.ts";
import { addressKeys, portKeys } from "./keys.ts";
import { fingerprint } from "./print.ts";
import { type RenderContext, type RenderedService, renderService, type SetMember, type TreeName } from "./render.ts";
import { sharedSetNames } from "./set-names.ts";
import { type ChainChanges, DispatchTree } from "./tree.ts";

/** The rules of a service as they were applied: enough to lead packets to them, not to write them again. */
export interface AppliedService {
  /** Fingerprint of the rules, by chain. */
  readonly chains: ReadonlyMap<string, number>;
  readonly entries: RenderedService["entries"];
  readonly members: readonly SetMember[];
  /** Rules in `chains`. */
  readonly ruleCount: number;
  readonly clientSets: readonly string[];
}

/** How one service differs from what was staged before. */
export interface ServiceChanges {
  /** nat chains to write. */
  readonly writes: readonly (readonly [chain: string, rules: readonly string[]])[];
  /** nat chains that must go. */
  readonly deletes: readonly string[];
  /** Sets of clients that the writes need. */
  readonly addSets: readonly string[];
  /** Sets of clients that nothing refers to once the deletes are done. */
  readonly removeSets: readonly string[];
}

/** How the trees differ from what was staged before. */
export type DispatchChanges = Readonly<Record<Table, ChainChanges>>;

/** Members by the name of the set. */
export type SetMembers = ReadonlyMap<string, ReadonlySet<string>>;

/** Trees of rules that refuse what has no endpoints. */
const refusingTrees: ReadonlySet<TreeName> = new Set(["noEndpoints", "noExternal", "noNodePort"]);
const treeNames = Object.keys(treeChains) as TreeName[];

/**
 * What the kernel holds once everything staged so far is applied. Staging a service says what to write for it and
 * notes it; so after a failed apply the state is wrong, and its owner throws it away and starts with a new one.
 */
export class RuleState {
  #context: RenderContext;
  readonly #services = new Map<string, AppliedService>();
  /** What services were before they were staged since the last {@link settle}. */
  readonly #before = new Map<string, AppliedService | undefined>();
  readonly #trees: Readonly<Record<TreeName, DispatchTree>>;
  /** By the name of the set, how many services want each member: two may, by mistake, claim one address. */
  readonly #sets = new Map<string, Map<string, number>>();
  #addMembers = new Map<string, Set<string>>();
  #removeMembers = new Map<string, Set<string>>();
  /** Sets that were not there when a member was added first. */
  #freshSets = new Set<string>();
  #changes = noChanges();
  #serviceRules = 0;
  /** Rules of each chain of the trees. */
  readonly #dispatchRules: Readonly<Record<Table, Map<string, number>>> = { nat: new Map(), filter: new Map() };

  constructor(context: RenderContext) {
    this.#context = context;
    // They are there also while they have no members.
    if (context.hasSets) {
      for (const name of Object.values(sharedSetNames(context.family))) this.#sets.set(name, new Map());
    }
    const makeTree = (name: TreeName) => {
      const { root, inner, keys } = treeChains[name];
      return new DispatchTree(root, inner, keys === "port" ? portKeys : addressKeys[context.family]);
    };
    this.#trees = Object.fromEntries(treeNames.map((name) => [name, makeTree(name)])) as Record<TreeName, DispatchTree>;
  }

  get context(): RenderContext {
    return this.#context;
  }

  get serviceCount(): number {
    return this.#services.size;
  }

  /** Services that have rules. */
  keys(): Iterable<string> {
    return this.#services.keys();
  }

  /** Numbers of members by the name of the set. */
  memberCounts(): Map<string, number> {
    return new Map([...this.#sets].map(([name, members]) => [name, members.size]));
  }

  /** Rules of services and of what leads to them. */
  ruleCounts(): Record<Table, number> {
    const sum = (counts: Map<string, number>) => counts.values().reduce((total, count) => total + count, 0);
    return { nat: this.#serviceRules + sum(this.#dispatchRules.nat), filter: sum(this.#dispatchRules.filter) };
  }

  /** All members of a set. */
  membersOf(set: string): Iterable<string> {
    return this.#sets.get(set)?.keys() ?? [];
  }

  /** All members of all sets. None of them counts as a change any more. */
  takeAllMembers(): Map<string, Iterable<string>> {
    this.#addMembers = new Map();
    this.#removeMembers = new Map();
    this.#freshSets = new Set();
    return new Map([...this.#sets].map(([name, members]) => [name, members.keys()]));
  }

  /** Members that were added since this was asked last, and the sets among them that are new. They are wanted before any rule. */
  takeAddedMembers(): { readonly members: SetMembers; readonly fresh: readonly string[] } {
    const members = this.#addMembers;
    const taken = { members, fresh: [...this.#freshSets].filter((name) => members.has(name)) };
    this.#addMembers = new Map();
    this.#freshSets = new Set();
    return taken;
  }

  /** Members that nothing wants since this was asked last, and sets that are gone. They stay until no rule needs them. */
  takeRemovedMembers(): { readonly members: SetMembers; readonly gone: readonly string[] } {
    const removed = this.#removeMembers;
    this.#removeMembers = new Map();
    const gone = [...removed.keys()].filter((name) => !this.#sets.has(name));
    for (const name of gone) removed.delete(name);
    return { members: removed, gone };
  }

  /** Chains of all services, for telling stale ones. */
  *serviceChains(): Iterable<string> {
    for (const { chains } of this.#services.values()) yield* chains.keys();
  }

  /** Chains of the trees. */
  dispatchChains(table: Table): Iterable<string> {
    return this.#dispatchRules[table].keys();
  }

  /** Sets of clients of all services. */
  *clientSets(): Iterable<string> {
    for (const { clientSets } of this.#services.values()) yield* clientSets;
  }

  render(service: ServiceDescription): RenderedService {
    return renderService(service, this.#context);
  }

  /** The cluster has so many endpoints now; what is rendered from here on depends on it, see {@link RenderContext.isLarge}. */
  setLarge(isLarge: boolean): void {
    if (isLarge !== this.#context.isLarge) this.#context = { ...this.#context, isLarge };
  }

  /**
   * Whether the service, once it is staged, is refused where it is not refused now. That it is refused in another way is no more: its
   * first endpoint, if it is on another node, makes it so, and opens the cluster IP.
   */
  refusesMore(name: string, next: RenderedService): boolean {
    const before = this.#services.get(name)?.entries ?? [];
    return next.entries.some(
      ({ tree, key }) => refusingTrees.has(tree) && !before.some((old) => old.tree === tree && old.key === key),
    );
  }

  /** Takes over a service whose chains are in the kernel. Nothing of it may be staged yet. */
  adopt(key: string, service: AppliedService): void {
    this.#stageEntries([], service.entries);
    this.#stageMembers([], service.members);
    this.#services.set(key, service);
    this.#serviceRules += service.ruleCount;
  }

  /** What the kernel has of a service if what was staged since the last {@link settle} is not applied. */
  lastApplied(key: string): AppliedService | undefined {
    return this.#before.has(key) ? this.#before.get(key) : this.#services.get(key);
  }

  /** All that was staged is applied. */
  settle(): void {
    this.#before.clear();
  }

  /** Notes a service. Its dispatch changes are kept for {@link takeDispatchChanges}. */
  stage(key: string, next: RenderedService): ServiceChanges {
    const old = this.#services.get(key);
    if (!this.#before.has(key)) this.#before.set(key, old);
    const writes: [string, readonly string[]][] = [];
    const fingerprints = new Map<string, number>();
    for (const [chain, rules] of next.chains) {
      const print = fingerprint(rules.join("\n"));
      fingerprints.set(chain, print);
      if (old?.chains.get(chain) !== print) writes.push([chain, rules]);
    }
    const deletes = [...(old?.chains.keys() ?? [])].filter((chain) => !next.chains.has(chain));
    this.#stageEntries(old?.entries ?? [], next.entries);
    this.#stageMembers(old?.members ?? [], next.members);
    const ruleCount = next.chains.values().reduce((total, rules) => total + rules.length, 0);
    if (next.entries.length === 0) this.#services.delete(key);
    else {
      const { entries, members, clientSets } = next;
      this.#services.set(key, { chains: fingerprints, entries, members, clientSets, ruleCount });
    }
    this.#serviceRules += (next.entries.length === 0 ? 0 : ruleCount) - (old?.ruleCount ?? 0);
    return {
      writes,
      deletes,
      addSets: next.clientSets.filter((name) => old?.clientSets.includes(name) !== true),
      removeSets: (old?.clientSets ?? []).filter((name) => !next.clientSets.includes(name)),
    };
  }

  /** What the staged services changed in the trees since this was asked last. */
  async takeDispatchChanges(pacer: Pacer): Promise<DispatchChanges> {
    for (const name of treeNames) {
      for (const _ of this.#trees[name].update(this.#changes[treeChains[name].table])) await pacer.breathe();
    }
    const changes = this.#changes;
    this.#changes = noChanges();
    for (const table of ["nat", "filter"] as const) {
      const { writes, deletes } = changes[table];
      for (const [chain, rules] of writes) this.#dispatchRules[table].set(chain, rules.length);
      for (const chain of deletes) this.#dispatchRules[table].delete(chain);
    }
    return changes;
  }

  #stageEntries(old: RenderedService["entries"], next: RenderedService["entries"]): void {
    const id = (entry: RenderedService["entries"][number]) => `${entry.tree} ${entry.rule}`;
    const kept = new Set(next.map(id));
    const before = new Set(old.map(id));
    for (const entry of old) {
      if (kept.has(id(entry))) continue;
      this.#trees[entry.tree].remove(entry, this.#changes[treeChains[entry.tree].table]);
    }
    for (const entry of next) if (!before.has(id(entry))) this.#trees[entry.tree].insert(entry);
  }

  #stageMembers(old: readonly SetMember[], next: readonly SetMember[]): void {
    for (const { set, member } of next) {
      let members = this.#sets.get(set);
      if (members === undefined) {
        this.#sets.set(set, (members = new Map<string, number>()));
        this.#freshSets.add(set);
      }
      const count = members.get(member) ?? 0;
      members.set(member, count + 1);
      if (count === 0 && !take(this.#removeMembers, set, member)) put(this.#addMembers, set, member);
    }
    for (const { set, member } of old) {
      const members = this.#sets.get(set);
      const count = (members?.get(member) ?? 1) - 1;
      if (count > 0) {
        members?.set(member, count);
        continue;
      }
      members?.delete(member);
      if (members?.size === 0 && !this.#isShared(set)) this.#sets.delete(set);
      if (!take(this.#addMembers, set, member)) put(this.#removeMembers, set, member);
    }
  }

  #isShared(set: string): boolean {
    return Object.values(sharedSetNames(this.#context.family)).includes(set);
  }
}

function put(sets: Map<string, Set<string>>, set: string, member: string): void {
  const members = sets.get(set);
  if (members === undefined) sets.set(set, new Set([member]));
  else members.add(member);
}

/** @returns whether it was there */
function take(sets: Map<string, Set<string>>, set: string, member: string): boolean {
  const members = sets.get(set);
  if (members?.delete(member) !== true) return false;
  if (members.size === 0) sets.delete(set);
  return true;
}

function noChanges(): Record<Table, { writes: Map<string, readonly string[]>; deletes: Set<string> }> {
  const chains = () => ({ writes: new Map<string, readonly string[]>(), deletes: new Set<string>() });
  return { nat: chains(), filter: chains() };
}
