import type { Clock } from "../../../agent/lib/clock.ts";

interface Pending {
  atMs: number;
  fire: () => void;
}

/** Time that moves only by `advance`. Starts at 2026-01-01T00:00:00Z. */
export class FakeClock implements Clock {
  #nowMs = Date.UTC(2026, 0, 1);
  #pending = new Set<Pending>();

  now = (): number => this.#nowMs;
  monotonic = (): number => this.#nowMs;

  after = (ms: number, fn: () => void) => {
    const entry = { atMs: this.#nowMs + ms, fire: fn };
    this.#pending.add(entry);
    return { cancel: () => void this.#pending.delete(entry) };
  };

  sleep = async (ms: number, signal?: AbortSignal): Promise<void> => {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const timer = this.after(ms, resolve);
    const onAbort = () => {
      timer.cancel();
      reject(signal?.reason);
    };
    if (signal?.aborted === true) onAbort();
    signal?.addEventListener("abort", onAbort, { once: true });
    await promise.finally(() => signal?.removeEventListener("abort", onAbort));
  };

  /** Timers and sleeps that wait. */
  get waiting(): number {
    return this.#pending.size;
  }

  /** Moves time on, firing what is due in order, and lets what it woke run. */
  async advance(ms: number): Promise<void> {
    const endMs = this.#nowMs + ms;
    for (;;) {
      const due = [...this.#pending].filter((p) => p.atMs <= endMs).sort((a, b) => a.atMs - b.atMs)[0];
      if (due === undefined) break;
      this.#pending.delete(due);
      this.#nowMs = Math.max(this.#nowMs, due.atMs);
      due.fire();
      await settle();
    }
    this.#nowMs = endMs;
    await settle();
  }
}

/** Tells what runs by this clock to stop, and waits for its end. Throws if timers were left behind. */
export async function stopped(running: Promise<unknown>, stop: AbortController, clock: FakeClock): Promise<void> {
  stop.abort();
  await clock.advance(0);
  await running;
  if (clock.waiting > 0) throw new Error(`${clock.waiting} timers were left behind`);
}

/** Lets everything run that does not wait for time or for the outside. */
export async function settle(): Promise<void> {
  for (let i = 0; i < 5; i += 1) await new Promise((resolve) => void setImmediate(resolve));
}
