import type { Clock } from "../lib/clock.ts";
import { AgentError, isAbort, messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";

/**
 * The long-lived parts of the agent. They are stopped in the reverse order of their start, one after the other, so that
 * what a part needs outlives it. A part that ends although nobody asked it to makes `failed` reject.
 */
export class RunningParts {
  readonly #log: Logger;
  readonly #stack = new AsyncDisposableStack();
  readonly #alive = new Set<string>();
  readonly #failure = Promise.withResolvers<never>();

  constructor(log: Logger) {
    this.#log = log;
    this.#failure.promise.catch(() => {}); // nobody may be listening any more
  }

  /** Rejects with the first failure of a part; never resolves. */
  get failed(): Promise<never> {
    return this.#failure.promise;
  }

  /** Starts a loop that runs until its signal aborts. Throws once `stop` was called, as `defer` does. */
  start(name: string, run: (signal: AbortSignal) => Promise<void>): void {
    if (this.#stack.disposed) throw new AgentError("Canceled", `${name} is not started: the agent stops`);
    const stop = new AbortController();
    const ended = this.#watch(name, run(stop.signal), stop.signal);
    this.#alive.add(name);
    this.#stack.defer(async () => {
      stop.abort();
      await ended;
      this.#alive.delete(name);
    });
  }

  /** Something to be closed when everything started after it has stopped. */
  defer(name: string, close: () => void | PromiseLike<void>): void {
    if (this.#stack.disposed) throw new AgentError("Canceled", `${name} is too late: the agent stops`);
    this.#alive.add(name);
    this.#stack.defer(async () => {
      try {
        await close();
      } catch (err) {
        this.#log.warn({ part: name, err: messageOf(err) }, "a part did not close cleanly");
      }
      this.#alive.delete(name);
    });
  }

  /**
   * Stops everything, but waits no longer than `deadlineMs`. Call it once.
   *
   * @returns names of the parts that are still there, the one that holds up the others last
   */
  async stop(deadlineMs: number, clock: Clock): Promise<string[]> {
    const done = new AbortController();
    const stopped = this.#stack.disposeAsync().finally(() => done.abort());
    await Promise.race([stopped, clock.sleep(deadlineMs, done.signal).catch(() => {})]);
    return [...this.#alive];
  }

  async #watch(name: string, run: Promise<void>, signal: AbortSignal): Promise<void> {
    try {
      await run;
      if (!signal.aborted) this.#failure.reject(new Error(`${name} ended although nobody stopped it`));
    } catch (err) {
      if (!signal.aborted) this.#failure.reject(new Error(`${name}: ${messageOf(err)}`, { cause: err }));
      else if (!isAbort(err)) this.#log.warn({ part: name, err: messageOf(err) }, "a part failed while stopping");
    }
  }
}
