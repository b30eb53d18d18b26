import { setImmediate as turn } from "node:timers/promises";

// A third of the 25 ms that the event loop may stall at the 99th percentile; the rest is for others and for the collector.
const sliceMs = 8;

/** Cuts long work into slices, between which other events get their turn. */
export class Pacer {
  #sliceStartedAt = performance.now();

  /** Call between two units of work, each well below a slice; waits only if the slice is used up. */
  breathe(): Promise<void> | undefined {
    return performance.now() - this.#sliceStartedAt < sliceMs ? undefined : this.#rest();
  }

  async #rest(): Promise<void> {
    await turn();
    this.#sliceStartedAt = performance.now();
  }
}
