import type { Element } from "./render.ts";

/** A change of one set or map, keys first to delete, then to add. */
export interface ElementChanges {
  /** Keys that are in the kernel and are to go; also those that get another value. */
  readonly deletes: readonly string[];
  readonly adds: readonly Element[];
}

/**
 * The elements of one set or map: who wants which, and what the kernel has. Of two services that claim the same key the first
 * one by name has it, until it goes.
 */
export class Elements {
  /** By key, who wants it; nearly always one. Of several the first by name comes first. */
  readonly #claims = new Map<string, Element | readonly Element[]>();
  /** By key that changed since the last `takeChanges`: the value that the kernel has, undefined for none. */
  readonly #before = new Map<string, string | undefined>();

  keys(): Iterable<string> {
    return this.#claims.keys();
  }

  /** Notes what a service wants; again with another value: that one. */
  put(element: Element): void {
    const { owner, key } = element;
    const present = this.#claims.get(key);
    if (present !== undefined && (!("owner" in present) || present.owner !== owner)) {
      this.#change(key, [...this.#others(owner, key), element]);
      return;
    }
    // Nobody else wants it, as nearly always.
    if (!this.#before.has(key)) this.#before.set(key, present?.value);
    this.#claims.set(key, element);
  }

  /** Notes that `owner` does not want it any more. */
  drop(owner: string, key: string): void {
    this.#change(key, this.#others(owner, key));
  }

  /** What differs from the kernel's elements, in parts of at most `keysMax`. They are taken for equal afterwards. */
  *takeChanges(keysMax: number): Generator<ElementChanges, void> {
    let deletes: string[] = [];
    let adds: Element[] = [];
    let count = 0;
    for (const [key, before] of this.#before) {
      this.#before.delete(key);
      const after = listOf(this.#claims.get(key))[0];
      if (before === after?.value) continue;
      if (before !== undefined) deletes.push(key);
      if (after !== undefined) adds.push(after);
      count += 1;
      if (count % keysMax !== 0) continue;
      yield { deletes, adds };
      deletes = [];
      adds = [];
    }
    if (deletes.length > 0 || adds.length > 0) yield { deletes, adds };
  }

  #others(owner: string, key: string): readonly Element[] {
    return listOf(this.#claims.get(key)).filter((claim) => claim.owner !== owner);
  }

  #change(key: string, claims: readonly Element[]): void {
    if (!this.#before.has(key)) this.#before.set(key, listOf(this.#claims.get(key))[0]?.value);
    const [first] = claims;
    if (first === undefined) this.#claims.delete(key);
    // By name, so that it does not depend on the order of events.
    else this.#claims.set(key, claims.length === 1 ? first : claims.toSorted((a, b) => (a.owner < b.owner ? -1 : 1)));
  }
}

function listOf(claims: Element | readonly Element[] | undefined): readonly Element[] {
  if (claims === undefined) return [];
  return "owner" in claims ? [claims] : claims;
}
