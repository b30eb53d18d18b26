import { describe, expect, test } from "vitest";
import type { Clock } from "../../../agent/lib/clock.ts";
import { stallMsMin, withDeadline } from "../../../agent/probes/deadline.ts";
import { FakeClock } from "../kube/fake-clock.ts";

/** Work that never ends by itself, and when it was told to. `stallMs`: how late timers fire. */
function setUp(timeoutMs: number | undefined, stallMs = 0) {
  const clock = new FakeClock();
  const beganMs = clock.now();
  let lostMs = 0;
  const stalled: Clock = {
    now: clock.now,
    sleep: clock.sleep,
    monotonic: () => clock.monotonic() + lostMs,
    after: (ms, fn) =>
      clock.after(ms, () => {
        lostMs += stallMs;
        fn();
      }),
  };
  const stop = new AbortController();
  const aborted: number[] = [];
  const end = Promise.withResolvers<string>();
  const result = withDeadline({ timeoutMs, signal: stop.signal, clock: stalled }, async (signal) => {
    signal.addEventListener("abort", () => aborted.push(clock.now() - beganMs));
    if (signal.aborted) aborted.push(0);
    return await end.promise;
  });
  return { clock, stop, aborted, end, result };
}

describe("work with a deadline", () => {
  const cases: { name: string; timeoutMs: number | undefined; stallMs?: number; want: number[] }[] = [
    { name: "is told at the deadline", timeoutMs: 1_000, want: [1_000] },
    { name: "is told by timers that are a little late", timeoutMs: 1_000, stallMs: stallMsMin - 1, want: [1_000] },
    { name: "gets back what a stall took", timeoutMs: 1_000, stallMs: 300, want: [1_300] },
    { name: "gets back the timeout at most", timeoutMs: 1_000, stallMs: 60_000, want: [2_000] },
    { name: "has no deadline without a timeout", timeoutMs: undefined, want: [] },
  ];
  test.each(cases)("$name", async ({ timeoutMs, stallMs, want }) => {
    const { clock, aborted, end, result } = setUp(timeoutMs, stallMs);
    await clock.advance(100_000);
    expect(aborted).toEqual(want);
    end.resolve("done");
    expect(await result).toBe("done");
  });

  test("is told when nobody wants it any more, and leaves nothing behind", async () => {
    const { clock, stop, aborted, end, result } = setUp(1_000);
    stop.abort();
    expect(aborted).toEqual([0]);
    end.reject(new Error("failed"));
    await expect(result).rejects.toThrow("failed");
    expect(clock.waiting).toBe(0);
  });
});
