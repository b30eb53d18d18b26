import { AgentError } from "../agent/lib/errors.ts";

// Plugins take machine-wide locks of their own (iptables, address pools): more at a time only wait there.
export const operationsMax = 16;
// The rest is for taking down: set-ups that hang, all waiting for the same address pool, must not keep pods from ending.
export const setUpsMax = 12;
// A node has some hundred pods; this many operations waiting means that none of them ends.
export const waitingMax = 1_000;

/** An operation on one container; those of one key run one after the other. */
export interface Operation {
  key: string;
  kind: "set-up" | "take-down";
}

interface Waiting {
  /** `undefined`: it runs alone. */
  operation: Operation | undefined;
  start(): void;
}

/**
 * Decides which operations may run: one per container at a time, {@link operationsMax} in all, of which {@link setUpsMax} may be
 * set-ups, and garbage collection only while
 * nothing else runs, as the specification demands. Operations of pods go first: collection waits for a quiet moment.
 */
export class Gate {
  readonly #busy = new Map<string, Operation>();
  readonly #waiting: Waiting[] = [];
  #isAlone = false;

  /** Runs `work` when it is its turn. Rejects as `work` does, or with Canceled if `signal` aborts before it began. */
  async run<T>(operation: Operation, signal: AbortSignal | undefined, work: () => Promise<T>): Promise<T> {
    await this.#turn(operation, signal);
    try {
      return await work();
    } finally {
      this.#busy.delete(operation.key);
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

  async #turn(operation: Operation | undefined, signal: AbortSignal | undefined): Promise<void> {
    if (signal?.aborted === true) throw canceled();
    if (this.#waiting.length >= waitingMax) {
      throw new AgentError("TooManyRequests", `${waitingMax} operations on pod networks wait already`);
    }
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const entry: Waiting = { operation, start: resolve };
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
      const { operation } = entry;
      if (operation === undefined) this.#isAlone = true;
      else this.#busy.set(operation.key, operation);
      entry.start();
    }
  }

  #mayStart({ operation }: Waiting): boolean {
    if (operation === undefined) return this.#busy.size === 0;
    if (this.#busy.size >= operationsMax || this.#busy.has(operation.key)) return false;
    if (operation.kind === "take-down") return true;
    const setUps = this.#busy.values().filter(({ kind }) => kind === "set-up");
    return setUps.toArray().length < setUpsMax;
  }
}

function canceled(): AgentError {
  return new AgentError("Canceled", "the operation on the pod's network was canceled before it began");
}
