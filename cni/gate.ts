import { AgentError } from "../agent/lib/errors.ts";

// Plugins take machine-wide locks of their own (iptables, address pools): more at a time only wait there.
export const operationsMax = 16;
// A node has some hundred pods; this many operations waiting means that none of them ends.
export const waitingMax = 1_000;

interface Waiting {
  /** Operations of one key run one after the other; without a key it runs alone. */
  key: string | undefined;
  start(): void;
}

/**
 * Decides which operations may run: one per container at a time, {@link operationsMax} in all, and garbage collection only while
 * nothing else runs, as the specification demands. Operations of pods go first: collection waits for a quiet moment.
 */
export class Gate {
  readonly #busy = new Set<string>();
  readonly #waiting: Waiting[] = [];
  #isAlone = false;

  /** Runs `work` when it is its turn. Rejects as `work` does, or with Canceled if `signal` aborts before it began. */
  async run<T>(key: string, signal: AbortSignal | undefined, work: () => Promise<T>): Promise<T> {
    await this.#turn(key, signal);
    try {
      return await work();
    } finally {
      this.#busy.delete(key);
      this.#startNext();
    }
  }

  /** As {@link run}, with nothing else at the same time. */
  async runAlone<T>(signal: AbortSignal | undefined, work: () => Promise<T>): Promise<T> {
    await this.#turn(undefined, signal);
    try {
      return await work();
    } finally {
      this.#isAlone = false;
      this.#startNext();
    }
  }

  async #turn(key: string | undefined, signal: AbortSignal | undefined): Promise<void> {
    if (signal?.aborted === true) throw canceled();
    if (this.#waiting.length >= waitingMax) {
      throw new AgentError("TooManyRequests", `${waitingMax} operations on pod networks wait already`);
    }
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const entry: Waiting = { key, start: resolve };
    const onAbort = () => {
      const at = this.#waiting.indexOf(entry);
      if (at < 0) return; // it began
      this.#waiting.splice(at, 1);
      reject(canceled());
    };
    this.#waiting.push(entry);
    signal?.addEventListener("abort", onAbort, { once: true });
    this.#startNext();
    await promise.finally(() => signal?.removeEventListener("abort", onAbort));
  }

  #startNext(): void {
    for (let i = 0; i < this.#waiting.length && !this.#isAlone; ) {
      const entry = this.#waiting[i];
      if (entry === undefined || !this.#mayStart(entry)) {
        i += 1;
        continue;
      }
      this.#waiting.splice(i, 1);
      if (entry.key === undefined) this.#isAlone = true;
      else this.#busy.add(entry.key);
      entry.start();
    }
  }

  #mayStart({ key }: Waiting): boolean {
    if (key === undefined) return this.#busy.size === 0;
    return this.#busy.size < operationsMax && !this.#busy.has(key);
  }
}

function canceled(): AgentError {
  return new AgentError("Canceled", "the operation on the pod's network was canceled before it began");
}
