import { describe, expect, test } from "vitest";
import {
  ExpiringCache,
  lookupsMax,
  lookupsPerSourceMax,
  lookupTimeoutMs,
  SharedLookups,
} from "../../../../agent/server/auth/lookups.ts";
import { FakeClock, settle } from "../../kube/fake-clock.ts";

describe("ExpiringCache", () => {
  test("forgets what is too old", async () => {
    const clock = new FakeClock();
    const cache = new ExpiringCache<string>(clock, 10);
    cache.set("a", "A", 1000);
    await clock.advance(999);
    expect(cache.get("a")).toBe("A");
    await clock.advance(1);
    expect(cache.get("a")).toBeUndefined();
    expect(cache.size).toBe(0);
  });

  test("keeps nothing without a time to live, and drops what was there before", () => {
    const cache = new ExpiringCache<string>(new FakeClock(), 10);
    cache.set("a", "A", 1000);
    cache.set("a", "B", 0);
    expect(cache.get("a")).toBeUndefined();
  });

  test("is bounded: what was not used for longest goes first", () => {
    const cache = new ExpiringCache<number>(new FakeClock(), 3);
    for (const [i, key] of ["a", "b", "c"].entries()) cache.set(key, i, 1000);
    cache.get("a");
    cache.set("d", 3, 1000);
    expect(["a", "b", "c", "d"].map((key) => cache.get(key))).toEqual([0, undefined, 2, 3]);
    expect(cache.size).toBe(3);
  });
});

describe("SharedLookups", () => {
  const setUp = () => {
    const clock = new FakeClock();
    const stop = new AbortController();
    return { clock, stop, lookups: new SharedLookups<string>({ what: "reviews", clock, stop: stop.signal }) };
  };
  const untilAborted = async (signal: AbortSignal) =>
    new Promise<string>((_, reject) => {
      signal.addEventListener("abort", () => reject(new Error("aborted")));
    });

  test("make one call for many who ask the same, and another for those who ask later", async () => {
    const { lookups } = setUp();
    let calls = 0;
    const answer = Promise.withResolvers<string>();
    const lookup = async () => {
      calls += 1;
      return answer.promise;
    };
    const all = [
      lookups.get("k", "10.0.0.1", lookup),
      lookups.get("k", "10.0.0.1", lookup),
      lookups.get("other", "10.0.0.1", lookup),
    ];
    answer.resolve("x");
    expect(await Promise.all(all)).toEqual(["x", "x", "x"]);
    expect(calls).toBe(2);
    expect(lookups.size).toBe(0);
    await lookups.get("k", "10.0.0.1", lookup);
    expect(calls).toBe(3);
  });

  test("end after their time, with a message that says so", async () => {
    const { clock, lookups } = setUp();
    const failed = expect(lookups.get("k", "10.0.0.1", untilAborted)).rejects.toThrow(
      `reviews: no answer within ${lookupTimeoutMs} ms`,
    );
    await clock.advance(lookupTimeoutMs - 1);
    expect(lookups.size).toBe(1);
    await clock.advance(1);
    await failed;
    expect(lookups.size).toBe(0);
    expect(clock.waiting).toBe(0);
  });

  test("end when the agent stops", async () => {
    const { clock, stop, lookups } = setUp();
    const failed = expect(lookups.get("k", "10.0.0.1", untilAborted)).rejects.toThrow("aborted");
    stop.abort();
    await failed;
    expect(clock.waiting).toBe(0);
  });

  test("of one address are few: more of it wait, and others do not notice", async () => {
    const { lookups } = setUp();
    const gates = Array.from({ length: lookupsPerSourceMax }, () => Promise.withResolvers<string>());
    const flood = gates.map(({ promise }, i) => lookups.get(`k${i}`, "10.0.0.1", async () => await promise));
    let hasBegun = false;
    const late = lookups.get("late", "10.0.0.1", async () => {
      hasBegun = true;
      return await Promise.resolve("late");
    });
    await settle();
    expect(hasBegun).toBe(false);
    expect(await lookups.get("good", "10.0.0.2", async () => await Promise.resolve("fine"))).toBe("fine");
    gates[3]?.resolve("x");
    expect(await late).toBe("late");
    for (const { resolve } of gates) resolve("x");
    await Promise.all(flood);
    await settle();
    expect(lookups.size).toBe(0);
  });

  test("that never got their turn end after their time", async () => {
    const { clock, lookups, stop } = setUp();
    const flood = Array.from({ length: lookupsPerSourceMax }, (_, i) =>
      lookups.get(`k${i}`, "10.0.0.1", async () => await new Promise<string>(() => {})),
    );
    const settled = Promise.allSettled(flood);
    const failed = expect(lookups.get("late", "10.0.0.1", untilAborted)).rejects.toThrow("none began in time");
    await clock.advance(lookupTimeoutMs);
    await failed;
    stop.abort();
    void settled;
  });

  test("are bounded: more are refused, and there is room again afterwards", async () => {
    const { lookups, stop } = setUp();
    const running = Array.from({ length: lookupsMax }, (_, i) => lookups.get(`k${i}`, `10.0.0.${i}`, untilAborted));
    const settled = Promise.allSettled(running);
    await expect(lookups.get("more", "10.0.0.1", async () => "x")).rejects.toMatchObject({ code: "TooManyRequests" });
    stop.abort();
    await settled;
    await settle();
    expect(await lookups.get("more", "10.0.0.1", async () => "x")).toBe("x");
  });
});
