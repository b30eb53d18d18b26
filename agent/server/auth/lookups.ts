import type { Clock } from "../../lib/clock.ts";
import { AgentError } from "../../lib/errors.ts";

/** A bounded map of answers, each good for a while. What was not used for longest makes room. */
export class ExpiringCache<V> {
  readonly #entries = new Map<string, { value: V; untilMs: number }>();
  readonly #clock: Clock;
  readonly #entriesMax: number;

  constructor(clock: Clock, entriesMax: number) {
    this.#clock = clock;
    this.#entriesMax = entriesMax;
  }

  get size(): number {
    return this.#entries.size;
  }

  get(key: string): V | undefined {
    const found = this.#entries.get(key);
    if (found === undefined) return undefined;
    this.#entries.delete(key);
    if (this.#clock.monotonic() >= found.untilMs) return undefined;
    this.#entries.set(key, found); // to the end: the beginning goes first
    return found.value;
  }

  /** @param ttlMs nothing is kept unless it is positive */
  set(key: string, value: V, ttlMs: number): void {
    this.#entries.delete(key);
    if (ttlMs <= 0) return;
    this.#entries.set(key, { value, untilMs: this.#clock.monotonic() + ttlMs });
    for (const oldest of this.#entries.keys()) {
      if (this.#entries.size <= this.#entriesMax) break;
      this.#entries.delete(oldest);
    }
  }
}

// Calls that wait for the API server at the same time; its client paces what is sent. Strangers can cause a lookup for
// each token that they make up, so there has to be an end to it.
export const lookupsMax = 256;
// Of those, one address gets so many; more of its own wait for these. A flood from one pod leaves room for everybody else.
export const lookupsPerSourceMax = 16;
// Whoever asks waits no longer, whatever becomes of the lookup (the reference's limit of a shared token lookup).
export const lookupTimeoutMs = 30_000;

export interface SharedLookupsOptions {
  /** For messages: `token reviews`. */
  readonly what: string;
  readonly clock: Clock;
  /** Ends all lookups. */
  readonly stop: AbortSignal;
}

/** What one address has asked. */
interface Source {
  running: number;
  waiting: (() => void)[];
}

/** Lookups that are under way, so that many who ask the same at the same time cause one call. */
export class SharedLookups<T> {
  readonly #running = new Map<string, Promise<T>>();
  readonly #sources = new Map<string, Source>();
  readonly #options: SharedLookupsOptions;

  constructor(options: SharedLookupsOptions) {
    this.#options = options;
  }

  /** Number of lookups under way. */
  get size(): number {
    return this.#running.size;
  }

  /**
   * The answer of the lookup that runs under this key, or of a new one. Its signal belongs to none of those who ask: it
   * aborts after the time limit, and when the agent stops. Rejects with what `lookup` rejects with, DeadlineExceeded, or
   * TooManyRequests.
   *
   * @param source the address that asks: no one gets more than its share
   */
  async get(key: string, source: string, lookup: (signal: AbortSignal) => Promise<T>): Promise<T> {
    let running = this.#running.get(key);
    if (running === undefined) {
      const own = this.#sources.get(source) ?? { running: 0, waiting: [] };
      if (this.#running.size >= lookupsMax || own.waiting.length >= lookupsMax) {
        throw new AgentError("TooManyRequests", `too many ${this.#options.what} are under way already`);
      }
      this.#sources.set(source, own);
      if (own.running >= lookupsPerSourceMax) {
        await this.#turn(own);
        return await this.get(key, source, lookup);
      }
      own.running += 1;
      running = this.#limited(lookup).finally(() => {
        this.#running.delete(key);
        own.running -= 1;
        own.waiting.shift()?.();
        if (own.running === 0 && own.waiting.length === 0) this.#sources.delete(source);
      });
      this.#running.set(key, running);
    }
    return running;
  }

  /** Resolves when a lookup of the source has ended, first come, first served. Rejects after the time limit. */
  async #turn(own: Source): Promise<void> {
    const { what, clock, stop } = this.#options;
    const turn = Promise.withResolvers<void>();
    own.waiting.push(turn.resolve);
    const giveUp = () => {
      own.waiting = own.waiting.filter((waiting) => waiting !== turn.resolve);
      turn.reject(new AgentError("DeadlineExceeded", `${what}: too many of one address, none began in time`));
    };
    const timer = clock.after(lookupTimeoutMs, giveUp);
    stop.addEventListener("abort", giveUp, { once: true });
    try {
      await turn.promise;
    } finally {
      timer.cancel();
      stop.removeEventListener("abort", giveUp);
    }
  }

  async #limited(lookup: (signal: AbortSignal) => Promise<T>): Promise<T> {
    const { what, clock, stop } = this.#options;
    const deadline = new AbortController();
    const timer = clock.after(lookupTimeoutMs, () => deadline.abort());
    try {
      return await lookup(AbortSignal.any([deadline.signal, stop]));
    } catch (err) {
      if (!deadline.signal.aborted) throw err;
      throw new AgentError("DeadlineExceeded", `${what}: no answer within ${lookupTimeoutMs} ms`, { cause: err });
    } finally {
      timer.cancel();
    }
  }
}
