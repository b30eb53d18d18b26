/** Runs `work` for each item, at most `width` at a time. Rejects with the first rejection, when those under way have ended. */
export async function forEachOf<T>(items: Iterable<T>, width: number, work: (item: T) => Promise<void>): Promise<void> {
  const rest = items[Symbol.iterator]();
  let isFailed = false;
  const lane = async () => {
    for (let next = rest.next(); next.done !== true && !isFailed; next = rest.next()) {
      try {
        await work(next.value);
      } catch (err) {
        isFailed = true;
        throw err;
      }
    }
  };
  const outcomes = await Promise.allSettled(Array.from({ length: width }, lane));
  for (const outcome of outcomes) if (outcome.status === "rejected") throw outcome.reason;
}
