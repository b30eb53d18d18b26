import { abortable } from "../lib/abortable.ts";

/** Lets one piece of work at a time go on for each key, in the order of asking. */
export class KeyedLock {
  readonly #tails = new Map<string, Promise<void>>();

  /**
   * Runs `work` when all that was asked for before under this key has ended. Rejects with the signal's reason if that
   * aborts before its turn; later it is for `work` to look at the signal.
   */
  async run<T>(key: string, work: () => Promise<T>, signal?: AbortSignal): Promise<T> {
    const before = this.#tails.get(key) ?? Promise.resolve();
    const { promise, resolve } = Promise.withResolvers<void>();
    const tail = before.then(async () => await promise);
    this.#tails.set(key, tail);
    try {
      await (signal === undefined ? before : abortable(before, signal));
      return await work();
    } finally {
      resolve();
      // Whoever gave up waiting leaves its place behind: the key goes when the one before has gone, too.
      void tail.then(() => {
        if (this.#tails.get(key) === tail) this.#tails.delete(key);
      });
    }
  }

  /** How many keys are in use, for tests. */
  get size(): number {
    return this.#tails.size;
  }
}
