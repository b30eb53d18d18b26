import { setTimeout as sleep } from "node:timers/promises";
import { expect } from "vitest";
import type { ErrorCode } from "../../../agent/lib/errors.ts";
import type { Runtime, RuntimeEvent } from "../../../agent/runtime/port.ts";

/** Collects events; `until` waits for one that has come or will. */
export function followEvents(runtime: Runtime) {
  const stop = new AbortController();
  const seen: RuntimeEvent[] = [];
  const waiting = new Set<() => void>();
  const done = runtime.events((event) => {
    seen.push(event);
    for (const wake of waiting) wake();
  }, stop.signal);
  return {
    seen,
    until: async (matches: (event: RuntimeEvent, index: number) => boolean): Promise<RuntimeEvent> => {
      const deadline = performance.now() + 10_000;
      for (;;) {
        const found = seen.find(matches);
        if (found !== undefined) return found;
        const leftMs = deadline - performance.now();
        if (leftMs <= 0) throw new Error(`no such event among ${JSON.stringify(seen)}`);
        const { promise, resolve } = Promise.withResolvers<void>();
        const timer = setTimeout(resolve, leftMs);
        waiting.add(resolve);
        await promise;
        waiting.delete(resolve);
        clearTimeout(timer);
      }
    },
    [Symbol.asyncDispose]: async () => {
      stop.abort();
      await done;
    },
  };
}

/** Tries until it passes; the last failure is thrown after 10 s. */
export async function eventually<T>(attempt: () => Promise<T>, withinMs = 10_000): Promise<T> {
  const deadline = performance.now() + withinMs;
  for (;;) {
    try {
      return await attempt();
    } catch (err) {
      if (performance.now() > deadline) throw err;
    }
    await sleep(20);
  }
}

export async function expectCode(call: Promise<unknown>, code: ErrorCode): Promise<void> {
  const outcome = await call.then(
    () => "success",
    (err: unknown) => err,
  );
  expect(outcome).toMatchObject({ code });
}
