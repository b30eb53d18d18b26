import { expect, test } from "vitest";
import { Loop } from "../../../agent/lib/loop.ts";
import { FakeClock, settle } from "../kube/fake-clock.ts";

test("after failures, no wake ends the rest before its floor", async () => {
  const clock = new FakeClock();
  const beginMs = clock.now();
  const passes: number[] = [];
  let isFailing = true;
  const loop = new Loop({
    clock,
    pass: async () => {
      passes.push(clock.now() - beginMs);
      if (isFailing) throw new Error("no");
      return undefined;
    },
    onError: () => {},
    retryMs: () => 30_000,
    failureFloorMs: (failures) => failures * 2_000,
    resyncMs: 60_000,
    minIntervalMs: 100,
  });
  const stop = new AbortController();
  const done = loop.run(stop.signal);
  await settle();
  for (let n = 0; n < 8; n += 1) {
    loop.wake();
    await clock.advance(1_000);
  }
  expect(passes).toEqual([0, 2_000, 6_000]);
  // Without a wake it rests as long as it was told.
  await clock.advance(4_000);
  await clock.advance(0);
  expect(passes.at(-1)).toBe(12_000);
  await clock.advance(29_999);
  expect(passes).toHaveLength(4);
  isFailing = false;
  await clock.advance(1);
  expect(passes.at(-1)).toBe(42_000);
  await clock.advance(100);
  loop.wake();
  await settle();
  expect(passes.at(-1)).toBe(42_100);
  stop.abort();
  await done;
  expect(clock.waiting).toBe(0);
});
