import type { Family } from "../ip.ts";
import type { ServiceDescription } from "../model.ts";
import { type ElementChanges, Elements } from "./elements.ts";
import { countChain, sharedSets } from "./fixed.ts";
import { type RenderContext, type RenderedService, renderService } from "./render.ts";

// A part of this size is taken and written within a millisecond or two.
const keysPerPartMax = 1_000;

/** What a service that was rendered anew changes beside elements. */
export interface ChainChanges {
  /** Chains to be written with these rules, those that others go to first. */
  readonly writes: Map<string, readonly string[]>;
  /** Chains that nobody wants any more. */
  readonly drops: Set<string>;
  /** Seconds by name. */
  readonly newAffinitySets: Map<string, number>;
  readonly dropAffinitySets: Set<string>;
  /** Shared chains and maps that are needed for the first time. */
  readonly newCounts: Set<number>;
}

/** No change at all; to be filled by `RuleState.stage`. */
export function noChanges(): ChainChanges {
  return {
    writes: new Map(),
    drops: new Set(),
    newAffinitySets: new Map(),
    dropAffinitySets: new Set(),
    newCounts: new Set(),
  };
}

/**
 * What the services of one family put into the table, as it was last applied. A service that changed is rendered anew and compared
 * with what it had: a change costs what the service weighs, however many others there are.
 */
export class RuleState {
  readonly #context: RenderContext;
  readonly #rendered = new Map<string, RenderedService>();
  readonly #elements = new Map<string, Elements>();
  readonly #counts = new Set<number>();

  constructor(context: RenderContext) {
    this.#context = context;
    for (const name of Object.keys(sharedSets(context.family))) this.#elements.set(name, new Elements());
  }

  get family(): Family {
    return this.#context.family;
  }

  /** What a service has, once all that was staged is applied. */
  rendered(key: string): RenderedService | undefined {
    return this.#rendered.get(key);
  }

  /**
   * Takes a service as it is now, without ports if it is gone; adds what that changes to `changes`.
   * @param last rules to stage in the place of the service's own
   */
  stage(service: ServiceDescription, changes: ChainChanges, last?: RenderedService): void {
    const { key } = service;
    const before = this.#rendered.get(key);
    const after = last ?? renderService(service, this.#context);
    if (before !== undefined) this.#dropElements(key, before, after);
    for (const element of after.elements) {
      let elements = this.#elements.get(element.set);
      if (elements === undefined) this.#elements.set(element.set, (elements = new Elements()));
      elements.put(element);
    }
    // A set's timeout cannot be changed: it is made anew, and whatever refers to it as well.
    const isRemade = [...after.affinitySets].some(
      ([name, seconds]) => (before?.affinitySets.get(name) ?? seconds) !== seconds,
    );
    for (const [chain, rules] of after.chains) {
      changes.drops.delete(chain);
      const isSame = before?.chains.get(chain)?.join("\n") === rules.join("\n");
      if (!isSame || isRemade) changes.writes.set(chain, rules);
    }
    for (const chain of before?.chains.keys() ?? []) if (!after.chains.has(chain)) changes.drops.add(chain);
    for (const [name, seconds] of after.affinitySets) {
      const had = before?.affinitySets.get(name);
      if (had !== undefined && had !== seconds) changes.dropAffinitySets.add(name);
      if (had !== seconds) changes.newAffinitySets.set(name, seconds);
    }
    for (const name of before?.affinitySets.keys() ?? []) {
      if (!after.affinitySets.has(name)) changes.dropAffinitySets.add(name);
    }
    for (const count of after.counts) {
      if (this.#counts.has(count)) continue;
      this.#counts.add(count);
      changes.newCounts.add(count);
    }
    if (service.ports.length === 0) this.#rendered.delete(key);
    else this.#rendered.set(key, after);
  }

  #dropElements(owner: string, before: RenderedService, after: RenderedService): void {
    const wanted = new Set(after.elements.map(({ set, key }) => `${set} ${key}`));
    for (const { set, key } of before.elements) {
      if (!wanted.has(`${set} ${key}`)) this.#elements.get(set)?.drop(owner, key);
    }
  }

  /** What differs from the kernel's elements, by set and in small parts. Taken for applied afterwards. */
  *takeElementChanges(): Generator<readonly [set: string, changes: ElementChanges], void> {
    for (const [set, elements] of this.#elements) {
      for (const changes of elements.takeChanges(keysPerPartMax)) yield [set, changes];
    }
  }

  /** Chains that belong to services. */
  chains(): Set<string> {
    const chains = new Set<string>();
    for (const { chains: own } of this.#rendered.values()) for (const chain of own.keys()) chains.add(chain);
    for (const count of this.#counts) chains.add(countChain(count));
    return chains;
  }

  /** Seconds by the name of a set that remembers clients. */
  affinitySets(): Map<string, number> {
    const sets = new Map<string, number>();
    for (const { affinitySets } of this.#rendered.values()) for (const [name, s] of affinitySets) sets.set(name, s);
    return sets;
  }

  /** Names and keys of all elements; for checks. */
  *elementKeys(): Generator<readonly [set: string, key: string], void> {
    for (const [set, elements] of this.#elements) for (const key of elements.keys()) yield [set, key];
  }
}
