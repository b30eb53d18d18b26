/** Work on one thing in turn; work on different things goes on at once. */
export interface KeyedLock {
  /** Runs `work` after everything that was given earlier for `key` has ended, however it ended. */
  run<T>(key: string, work: () => Promise<T>): Promise<T>;
}

/** Makes a {@link KeyedLock}; keys that nobody uses are forgotten. */
export function createKeyedLock(): KeyedLock {
  const lasts = new Map<string, Promise<unknown>>();
  return {
    async run(key, work) {
      const before = lasts.get(key);
      const mine = before === undefined ? work() : before.then(work, work);
      lasts.set(key, mine);
      try {
        return await mine;
      } finally {
        if (lasts.get(key) === mine) lasts.delete(key);
      }
    },
  };
}
