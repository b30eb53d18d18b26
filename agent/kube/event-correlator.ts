import type { ObjectReference } from "./types.ts";

/** What a recorder is asked to say, with the time it was said. */
export interface Occurrence {
  about: ObjectReference;
  type: "Normal" | "Warning";
  reason: string;
  message: string;
  /** What was tried. */
  action?: string | undefined;
  /** Unix ms. */
  atMs: number;
}

/** What to send for an occurrence. `count` above 1 means: the event `name` exists already, patch it. */
export interface CorrelatedEvent {
  name: string;
  message: string;
  count: number;
  firstAtMs: number;
  lastAtMs: number;
}

export interface CorrelatorLimits {
  /** Different messages of one reason about one object that are sent one by one. */
  similarMax: number;
  similarWindowMs: number;
  /** Events about one object at once, and one more every `spamRefillMs`. */
  spamBurst: number;
  spamRefillMs: number;
  /** Entries of each memory; the least recently used goes first. */
  cacheEntries: number;
}

// client-go's EventCorrelator defaults.
export const correlatorLimits: CorrelatorLimits = {
  similarMax: 10,
  similarWindowMs: 600_000,
  spamBurst: 25,
  spamRefillMs: 300_000,
  cacheEntries: 4096,
};

const combinedPrefix = "(combined from similar events): ";

/**
 * Decides which occurrences are new events, which raise an event's count, which are lumped together, and which are
 * dropped as spam. Keeps bounded memory, does no I/O, reads no clock.
 */
export class EventCorrelator {
  readonly #limits: CorrelatorLimits;
  readonly #nameOf: (occurrence: Occurrence) => string;
  readonly #similar: LeastRecentlyUsed<{ messages: Set<string>; lastAtMs: number }>;
  readonly #seen: LeastRecentlyUsed<CorrelatedEvent>;
  readonly #buckets: LeastRecentlyUsed<{ tokens: number; filledAtMs: number }>;

  /** @param nameOf makes a name that no other event has */
  constructor(nameOf: (occurrence: Occurrence) => string, limits: CorrelatorLimits = correlatorLimits) {
    this.#limits = limits;
    this.#nameOf = nameOf;
    this.#similar = new LeastRecentlyUsed(limits.cacheEntries);
    this.#seen = new LeastRecentlyUsed(limits.cacheEntries);
    this.#buckets = new LeastRecentlyUsed(limits.cacheEntries);
  }

  /** @returns undefined if the occurrence is dropped: too many events about this object */
  correlate(occurrence: Occurrence): CorrelatedEvent | undefined {
    const { about, message, atMs } = occurrence;
    const isCombined = this.#isTooSimilar(occurrence);
    const eventKey = isCombined
      ? similarKey(occurrence)
      : JSON.stringify([similarKey(occurrence), about.fieldPath ?? "", message]);
    const before = this.#seen.get(eventKey);
    const event: CorrelatedEvent = {
      name: before?.name ?? this.#nameOf(occurrence),
      message: isCombined ? combinedPrefix + message : message,
      count: (before?.count ?? 0) + 1,
      firstAtMs: before?.firstAtMs ?? atMs,
      lastAtMs: atMs,
    };
    this.#seen.set(eventKey, event);
    return this.#takeToken(occurrence) ? event : undefined;
  }

  #isTooSimilar(occurrence: Occurrence): boolean {
    const { similarMax, similarWindowMs } = this.#limits;
    const key = similarKey(occurrence);
    let record = this.#similar.get(key);
    if (record === undefined || occurrence.atMs - record.lastAtMs > similarWindowMs) {
      record = { messages: new Set(), lastAtMs: 0 };
      this.#similar.set(key, record);
    }
    record.lastAtMs = occurrence.atMs;
    if (record.messages.has(occurrence.message)) return false;
    if (record.messages.size >= similarMax) return true;
    record.messages.add(occurrence.message);
    return false;
  }

  #takeToken({ about, atMs }: Occurrence): boolean {
    const { spamBurst, spamRefillMs } = this.#limits;
    const key = objectKey(about);
    const bucket = this.#buckets.get(key) ?? { tokens: spamBurst, filledAtMs: atMs };
    const refill = Math.max(0, atMs - bucket.filledAtMs) / spamRefillMs;
    const tokens = Math.min(spamBurst, bucket.tokens + refill);
    const mayGo = tokens >= 1;
    this.#buckets.set(key, { tokens: mayGo ? tokens - 1 : tokens, filledAtMs: atMs });
    return mayGo;
  }
}

function objectKey({ kind, namespace, name, uid, apiVersion }: ObjectReference): string {
  return JSON.stringify([kind ?? "", namespace ?? "", name ?? "", uid ?? "", apiVersion ?? ""]);
}

function similarKey({ about, type, reason }: Occurrence): string {
  return JSON.stringify([objectKey(about), type, reason]);
}

class LeastRecentlyUsed<V> {
  readonly #entries = new Map<string, V>();
  readonly #max: number;

  constructor(max: number) {
    this.#max = max;
  }

  get(key: string): V | undefined {
    const value = this.#entries.get(key);
    if (value === undefined) return undefined;
    this.#entries.delete(key); // a Map lists keys by insertion: the last used moves to the end
    this.#entries.set(key, value);
    return value;
  }

  set(key: string, value: V): void {
    this.#entries.delete(key);
    this.#entries.set(key, value);
    const oldest = this.#entries.keys().next();
    if (this.#entries.size > this.#max && oldest.done !== true) this.#entries.delete(oldest.value);
  }
}
