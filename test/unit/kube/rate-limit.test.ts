import { expect, test } from "vitest";
import { RateLimiter } from "../../../agent/kube/rate-limit.ts";
import { FakeClock, settle } from "./fake-clock.ts";

test("a burst goes at once, the rest at the rate, in order", async () => {
  const clock = new FakeClock();
  const limiter = new RateLimiter({ qps: 2, burst: 3, clock });
  const done: number[] = [];
  const all = Array.from({ length: 6 }, async (_, i) => limiter.acquire().then(() => done.push(i)));
  await settle();
  expect(done).toEqual([0, 1, 2]);
  await clock.advance(500);
  expect(done).toEqual([0, 1, 2, 3]);
  await clock.advance(1_000);
  expect(done).toEqual([0, 1, 2, 3, 4, 5]);
  await Promise.all(all);
});

test("tokens do not pile up beyond the burst", async () => {
  const clock = new FakeClock();
  const limiter = new RateLimiter({ qps: 1, burst: 2, clock });
  await clock.advance(60_000);
  expect([limiter.tryAcquire(), limiter.tryAcquire(), limiter.tryAcquire()]).toEqual([true, true, false]);
});

test("who gives up gives its turn back", async () => {
  const clock = new FakeClock();
  const limiter = new RateLimiter({ qps: 1, burst: 1, clock });
  await limiter.acquire();
  const stop = new AbortController();
  const waiting = expect(limiter.acquire(stop.signal)).rejects.toThrow(/abort/i);
  stop.abort();
  await waiting;
  await clock.advance(1_000);
  expect(limiter.tryAcquire()).toBe(true);
});

test.each([
  { qps: -1, burst: 0, goes: 1_000 },
  { qps: 0, burst: 0, goes: 10 },
  { qps: 50, burst: 100, goes: 100 },
])("qps $qps, burst $burst: $goes of 1000 go at once", ({ qps, burst, goes }) => {
  const limiter = new RateLimiter({ qps, burst, clock: new FakeClock() });
  expect(Array.from({ length: 1_000 }, () => limiter.tryAcquire()).filter(Boolean)).toHaveLength(goes);
});
