/** What two services claim of the same key is decided by name, so that it does not depend on the order of events. */
interface Claim {
  readonly owner: string;
  readonly value: string;
}

/** A change of one set or map, keys first to delete, then to add. */
export interface ElementChanges {
  /** Keys that are in the kernel and are to go; also those that get another value. */
  readonly deletes: readonly string[];
  readonly adds: readonly (readonly [key: string, value: string])[];
}

/**
 * The elements of one set or map: who wants which, and what the kernel has. Of two services that claim the same key the first
 * one by name has it, until it goes.
 */
export class Elements {
  /** Nearly every key has one claim. */
  readonly #claims = new Map<string, Claim | readonly Claim[]>();
  /** By key that changed since the last `takeChanges`: the value that the kernel has, undefined for none. */
  readonly #before = new Map<string, string | undefined>();

  get size(): number {
    return this.#claims.size;
  }

  keys(): Iterable<string> {
    return this.#claims.keys();
  }

  /** Notes that `owner` wants the element; again with another value: that one. */
  put(owner: string, key: string, value: string): void {
    const others = this.#others(owner, key);
    this.#change(key, [...others, { owner, value }]);
  }

  /** Notes that `owner` does not want it any more. */
  drop(owner: string, key: string): void {
    this.#change(key, this.#others(owner, key));
  }

  /** What differs from the kernel's elements, in parts of at most `keysMax`. They are taken for equal afterwards. */
  *takeChanges(keysMax: number): Generator<ElementChanges, void> {
    let deletes: string[] = [];
    let adds: [string, string][] = [];
    let count = 0;
    for (const [key, before] of this.#before) {
      this.#before.delete(key);
      const after = this.#valueOf(key);
      if (before === after) continue;
      if (before !== undefined) deletes.push(key);
      if (after !== undefined) adds.push([key, after]);
      count += 1;
      if (count % keysMax !== 0) continue;
      yield { deletes, adds };
      deletes = [];
      adds = [];
    }
    if (deletes.length > 0 || adds.length > 0) yield { deletes, adds };
  }

  #others(owner: string, key: string): readonly Claim[] {
    return listOf(this.#claims.get(key)).filter((claim) => claim.owner !== owner);
  }

  #change(key: string, claims: readonly Claim[]): void {
    if (!this.#before.has(key)) this.#before.set(key, this.#valueOf(key));
    const [first, second] = claims;
    if (first === undefined) this.#claims.delete(key);
    else if (second === undefined) this.#claims.set(key, first);
    else {
      this.#claims.set(
        key,
        claims.toSorted((a, b) => (a.owner < b.owner ? -1 : 1)),
      );
    }
  }

  #valueOf(key: string): string | undefined {
    return listOf(this.#claims.get(key))[0]?.value;
  }
}

function listOf(claims: Claim | readonly Claim[] | undefined): readonly Claim[] {
  if (claims === undefined) return [];
  return "owner" in claims ? [claims] : claims;
}
