import type { KeySpace } from "./keys.ts";

/** One rule of a dispatch tree. */
export interface DispatchEntry {
  /** All bits of the key that the rule matches. */
  readonly key: string;
  /** Rule arguments, without `-A chain`. */
  readonly rule: string;
}

/** What an update of a tree changes. Chains are to be written in this order: those a rule points to come first. */
export interface ChainChanges {
  /** New content by chain: rule arguments, one rule each. */
  readonly writes: Map<string, readonly string[]>;
  readonly deletes: Set<string>;
}

interface TreeNode {
  readonly prefix: string;
  count: number;
  /** Entries, in rule order, while there are few; then `kids`. */
  bucket: DispatchEntry[] | undefined;
  kids: (TreeNode | undefined)[] | undefined;
  /** Depth of the chain that this node had at the last update; -1: it had none. */
  chainDepth: number;
  isDirty: boolean;
}

/**
 * Rules of a chain above which it is split. Small, because every packet for the chain visits all of them; not
 * smaller, because every split costs chains and up to `fanOut` visits.
 */
export const leafRulesMax = 8;
// Two bits a level: per bit of key, four-way splits visit the fewest rules on average (1.25; two-way 1.5, sixteen-way 2.1).
const bitsPerLevel = 2;
const fanOut = 1 << bitsPerLevel;
/**
 * Deepest chain below the root. nf_tables refuses more than 16 nested chains; base chain, KUBE-SERVICES and root are
 * above, FW, EXT, SVC, two groups of endpoints, SEP and MARK-MASQ below. Keys that would need more end in long leaves: slower,
 * never wrong.
 */
export const treeDepthMax = 6;

/**
 * Sends packets to one of many rules by the bits of their destination, as a tree of chains:
 *
 *     root ──10.96.0.0/18──▶ AT-0A600000-18 ──10.96.16.0/20──▶ AT-0A601000-20 ──▶ at most 8 rules
 *          ──10.96.64.0/18─▶ …
 *
 * Each inner chain has up to four `goto` rules with disjoint matches. Bits that all entries below share are skipped,
 * so the depth follows the number of entries (log4 of n/8), not the length of an address. With n entries spread
 * evenly, a packet visits at most 4·⌈log4(n/8)⌉ + 8 rules: 32 for 10 000 services, where a list would need 10 000.
 * No input can make it visit more than 4·6 rules before a leaf.
 *
 * The chains are a function of the set of entries alone, not of its history. Changing one entry rewrites the chain
 * that holds it, and its neighbours only if a chain splits or merges.
 */
export class DispatchTree {
  readonly #root: TreeNode = makeNode("");
  readonly #rootChain: string;
  readonly #innerPrefix: string;
  readonly #space: KeySpace;

  /** @param innerPrefix what the names of the chains below the root start with; with an id, at most 28 characters */
  constructor(rootChain: string, innerPrefix: string, space: KeySpace) {
    this.#rootChain = rootChain;
    this.#innerPrefix = innerPrefix;
    this.#space = space;
  }

  get size(): number {
    return this.#root.count;
  }

  insert(entry: DispatchEntry): void {
    let node = this.#root;
    while (true) {
      node.count += 1;
      node.isDirty = true;
      if (node.bucket !== undefined) {
        node.bucket.push(entry);
        node.bucket.sort(compareEntries);
        this.#splitIfFull(node);
        return;
      }
      node = this.#kid(node, entry.key);
    }
  }

  /** Removes one entry that equals `entry`; nothing if there is none. */
  remove(entry: DispatchEntry, changes: ChainChanges): void {
    const path: TreeNode[] = [];
    let node: TreeNode | undefined = this.#root;
    while (node?.kids !== undefined) {
      path.push(node);
      node = node.kids[kidIndex(node, entry.key)];
    }
    const at = node?.bucket?.findIndex((other) => compareEntries(other, entry) === 0) ?? -1;
    if (node === undefined || at < 0) return;
    node.bucket?.splice(at, 1);
    for (const touched of [...path, node]) {
      touched.count -= 1;
      touched.isDirty = true;
    }
    for (const parent of path) {
      if (parent.count <= leafRulesMax) {
        this.#merge(parent, changes);
        return;
      }
    }
    const parent = path.at(-1);
    if (node.count === 0 && parent?.kids !== undefined) {
      this.#retire(node, changes);
      parent.kids[kidIndex(parent, entry.key)] = undefined;
    }
  }

  /** Adds to `changes` all that changed since the last update. Yields between chains: the first update writes all. */
  *update(changes: ChainChanges): Generator<void, void> {
    yield* this.#update(this.#root, 0, changes);
  }

  *#update(head: TreeNode, depth: number, changes: ChainChanges): Generator<void, void> {
    if (!head.isDirty && head.chainDepth === depth) return;
    // Another depth alone changes a chain only at the limit, where it turns from a split into a long leaf or back.
    const isSame =
      !head.isDirty && head.chainDepth >= 0 && (head.chainDepth === treeDepthMax) === (depth === treeDepthMax);
    const rules: string[] = [];
    const inner = this.#skipShared(head, changes);
    if (inner !== head) this.#retire(inner, changes); // only the root speaks for a node below it
    if (inner.kids === undefined || depth === treeDepthMax) {
      for (const entry of entriesOf(inner)) rules.push(entry.rule);
      if (inner.kids !== undefined) for (const kid of inner.kids) this.#retireAll(kid, changes);
    } else {
      for (const kid of inner.kids) {
        if (kid === undefined) continue;
        // The kid's chain is named after, and entered by, all the bits its entries share.
        const target = this.#skipShared(kid, changes);
        yield* this.#update(target, depth + 1, changes);
        rules.push(`${this.#space.match(target.prefix)} -g ${this.#chain(target)}`.trimStart());
      }
    }
    head.chainDepth = depth;
    head.isDirty = false;
    if (isSame) return;
    const chain = this.#chain(head);
    changes.writes.set(chain, rules);
    changes.deletes.delete(chain);
    yield;
  }

  /** The first node on the way down where entries part, or the leaf. Nodes above it have no chain, but for the root. */
  #skipShared(node: TreeNode, changes: ChainChanges): TreeNode {
    let at = node;
    while (at.kids !== undefined) {
      const kids = at.kids.filter((kid) => kid !== undefined);
      const only = kids[0];
      if (kids.length !== 1 || only === undefined) return at;
      if (at !== this.#root) this.#retire(at, changes);
      at = only;
    }
    return at;
  }

  #splitIfFull(node: TreeNode): void {
    const { bucket } = node;
    if (bucket === undefined || bucket.length <= leafRulesMax || node.prefix.length >= this.#space.length) return;
    node.bucket = undefined;
    node.kids = Array.from({ length: fanOut }, () => undefined);
    for (const entry of bucket) {
      const kid = this.#kid(node, entry.key);
      kid.count += 1;
      kid.bucket?.push(entry);
    }
    for (const kid of node.kids) if (kid !== undefined) this.#splitIfFull(kid);
  }

  #merge(node: TreeNode, changes: ChainChanges): void {
    const entries = [...entriesOf(node)];
    for (const kid of node.kids ?? []) this.#retireAll(kid, changes);
    node.kids = undefined;
    node.bucket = entries.sort(compareEntries);
  }

  #kid(node: TreeNode, key: string): TreeNode {
    const index = kidIndex(node, key);
    const kids = (node.kids ??= Array.from({ length: fanOut }, () => undefined));
    return (kids[index] ??= makeNode(key.slice(0, node.prefix.length + bitsPerLevel)));
  }

  #retire(node: TreeNode, changes: ChainChanges): void {
    if (node.chainDepth < 0) return;
    node.chainDepth = -1;
    const chain = this.#chain(node);
    changes.writes.delete(chain);
    changes.deletes.add(chain);
  }

  #retireAll(node: TreeNode | undefined, changes: ChainChanges): void {
    if (node === undefined) return;
    this.#retire(node, changes);
    for (const kid of node.kids ?? []) this.#retireAll(kid, changes);
  }

  #chain(node: TreeNode): string {
    return node === this.#root ? this.#rootChain : `${this.#innerPrefix}${this.#space.id(node.prefix)}`;
  }
}

function makeNode(prefix: string): TreeNode {
  return { prefix, count: 0, bucket: [], kids: undefined, chainDepth: -1, isDirty: true };
}

function kidIndex(node: TreeNode, key: string): number {
  return Number.parseInt(key.slice(node.prefix.length, node.prefix.length + bitsPerLevel), 2);
}

function* entriesOf(node: TreeNode): Iterable<DispatchEntry> {
  if (node.bucket !== undefined) yield* node.bucket;
  for (const kid of node.kids ?? []) if (kid !== undefined) yield* entriesOf(kid);
}

function compareEntries(a: DispatchEntry, b: DispatchEntry): number {
  if (a.key !== b.key) return a.key < b.key ? -1 : 1;
  return a.rule < b.rule ? -1 : a.rule > b.rule ? 1 : 0;
}
