import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { AgentError } from "../../../../agent/lib/errors.ts";
import { silentLogger } from "../../../../agent/lib/log.ts";
import {
  collectDelayMs,
  collectResyncMs,
  collectRetry,
  NetworkCollection,
} from "../../../../agent/runtime/docker/network-collection.ts";
import { FakeClock, settle } from "../../kube/fake-clock.ts";

let clock: FakeClock;
let stop: AbortController;
let ended: Promise<void>;
let collection: NetworkCollection;
/** What ends the collections, in their order; those that are not in it any more have ended. */
let passes: { resolve(): void; reject(err: unknown): void }[];
let count: number;

beforeEach(async () => {
  clock = new FakeClock();
  stop = new AbortController();
  passes = [];
  count = 0;
  const collect = async () => {
    count += 1;
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    passes.push({ resolve, reject });
    await promise;
  };
  collection = new NetworkCollection({
    network: { collect },
    listSandboxIDs: async () => [],
    clock,
    log: silentLogger,
  });
  ended = collection.run(stop.signal);
  await settle();
});
afterEach(async () => {
  stop.abort();
  for (const pass of passes) pass.resolve();
  await ended;
});

async function endPass(err?: unknown): Promise<void> {
  const pass = passes.shift();
  if (err === undefined) pass?.resolve();
  else pass?.reject(err);
  await settle();
}

describe("NetworkCollection", () => {
  test("at start, after a moment", async () => {
    expect(count).toBe(0);
    await clock.advance(collectDelayMs);
    expect(count).toBe(1);
  });

  test("however many vanish while one runs: one more, after it", async () => {
    await clock.advance(collectDelayMs);
    for (let i = 0; i < 5; i += 1) {
      collection.wake();
      await clock.advance(2 * collectDelayMs);
    }
    expect(count).toBe(1);
    await endPass();
    await clock.advance(collectDelayMs);
    expect(count).toBe(2);
    await endPass();
    await clock.advance(10 * collectDelayMs);
    expect(count).toBe(2);
  });

  test("now and then, though nothing happens", async () => {
    await clock.advance(collectDelayMs);
    await endPass();
    await clock.advance(collectResyncMs + collectDelayMs);
    expect(count).toBe(2);
  });

  test("again soon after a failure", async () => {
    await clock.advance(collectDelayMs);
    await endPass(new AgentError("Internal", "busy"));
    await clock.advance(2 * collectRetry.baseMs + collectDelayMs);
    expect(count).toBe(2);
  });
});
