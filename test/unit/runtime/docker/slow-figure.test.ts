import { expect, test } from "vitest";
import { silentLogger } from "../../../../agent/lib/log.ts";
import {
  figurePeriodMs,
  figureRestFactor,
  figureTimeoutMs,
  firstFigureWaitMs,
  SlowFigure,
} from "../../../../agent/runtime/docker/slow-figure.ts";
import { FakeClock, settle } from "../../kube/fake-clock.ts";

/** Measurements that end when they are told to. */
function setUp() {
  const clock = new FakeClock();
  const measured: { signal: AbortSignal; end: (value: string) => void; fail: (err: Error) => void }[] = [];
  const measure = async (signal: AbortSignal) => {
    const { promise, resolve, reject } = Promise.withResolvers<string>();
    signal.addEventListener("abort", () => reject(signal.reason as Error), { once: true });
    measured.push({ signal, end: resolve, fail: reject });
    return await promise;
  };
  return { clock, measured, figure: new SlowFigure({ what: "space", measure, clock, log: silentLogger }) };
}

test("the first who asks waits a moment, and gets the figure if it is there by then", async () => {
  const { clock, measured, figure } = setUp();
  const slow = figure.latest();
  await clock.advance(firstFigureWaitMs);
  expect(await slow).toBeUndefined();
  const quick = figure.latest();
  measured[0]?.end("a");
  expect(await quick).toEqual({ atMs: clock.now(), value: "a" });
  expect(measured).toHaveLength(1);
  expect(clock.waiting).toBe(0);
});

test("an old figure is given at once while the next is measured, and nothing is measured unasked", async () => {
  const { clock, measured, figure } = setUp();
  const first = figure.latest();
  measured[0]?.end("a");
  await first;
  await clock.advance(figurePeriodMs - 1);
  expect((await figure.latest())?.value).toBe("a");
  expect(measured).toHaveLength(1);
  await clock.advance(1_000_000);
  expect(measured).toHaveLength(1);
  expect((await figure.latest())?.value).toBe("a");
  expect(measured).toHaveLength(2);
  measured[1]?.end("b");
  await settle();
  expect((await figure.latest())?.value).toBe("b");
});

test("a measurement that takes long is made seldom", async () => {
  const { clock, measured, figure } = setUp();
  void figure.latest();
  await clock.advance(60_000);
  measured[0]?.end("a");
  await settle();
  await clock.advance(60_000 * figureRestFactor - 1);
  await figure.latest();
  expect(measured).toHaveLength(1);
  await clock.advance(1);
  await figure.latest();
  expect(measured).toHaveLength(2);
  measured[1]?.end("b");
});

test("a failure leaves the last figure, and is tried again later", async () => {
  const { clock, measured, figure } = setUp();
  const first = figure.latest();
  measured[0]?.fail(new Error("disk on fire"));
  expect(await first).toBeUndefined();
  expect(await figure.latest()).toBeUndefined();
  expect(measured).toHaveLength(1);
  await clock.advance(figurePeriodMs);
  const second = figure.latest();
  measured[1]?.end("a");
  expect((await second)?.value).toBe("a");
});

test("a measurement that hangs is given up, and one under way ends with close", async () => {
  const { clock, measured, figure } = setUp();
  void figure.latest();
  await clock.advance(figureTimeoutMs);
  expect(measured[0]?.signal.aborted).toBe(true);
  await clock.advance(figureTimeoutMs * figureRestFactor);
  void figure.latest();
  expect(measured).toHaveLength(2);
  figure.close();
  expect(measured[1]?.signal.aborted).toBe(true);
  await settle();
  await figure.latest();
  expect(measured).toHaveLength(2);
});
