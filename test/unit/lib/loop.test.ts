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

test("after quiet, as many passes as the burst follow at once; then the rest gives them back one by one", async () => {
  const clock = new FakeClock();
  const beginMs = clock.now();
  const passes: number[] = [];
  const loop = new Loop({
    clock,
    pass: async () => {
      passes.push(clock.now() - beginMs);
      return undefined;
    },
    onError: () => {},
    retryMs: () => 1_000,
    resyncMs: 600_000,
    minIntervalMs: 1_000,
    burst: 3,
  });
  const stop = new AbortController();
  const done = loop.run(stop.signal);
  const storm = async (wakes: number) => {
    for (let n = 0; n < wakes; n += 1) {
      loop.wake();
      await settle();
      await clock.advance(10);
    }
  };
  await settle();
  await storm(300);
  expect(passes.filter((atMs) => atMs < 500)).toHaveLength(3);
  expect(passes.slice(3)).toEqual([1_000, 2_000, 3_000]);
  await clock.advance(10_000);
  const before = passes.length;
  await storm(10);
  expect(passes).toHaveLength(before + 3);
  stop.abort();
  await done;
  expect(clock.waiting).toBe(0);
});
