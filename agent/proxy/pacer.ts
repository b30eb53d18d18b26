import { setImmediate as turn } from "node:timers/promises";

// A third of the 25 ms that the event loop may stall at the 99th percentile; the rest is for others and for the collector.
const sliceMs = 8;

/** Cuts long work into slices, between which other events get their turn. */
export class Pacer {
  #sliceStartedAt = performance.now();

  /** Call between two units of work; waits only if the slice is used up. */
  async breathe(): Promise<void> {
    if (performance.now() - this.#sliceStartedAt < sliceMs) return;
    await turn();
    this.#sliceStartedAt = performance.now();
  }
}
