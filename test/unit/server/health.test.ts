import { describe, expect, test } from "vitest";
import type { RuntimeList } from "../../../agent/runtime/port.ts";
import { createAgentHealth, createSyncLoopHealth, tickOnList } from "../../../agent/server/health.ts";
import { FakeClock, settle } from "../kube/fake-clock.ts";

const minuteMs = 60_000;

function healthOf(clock: FakeClock, more: { flush?: (cb?: (err?: Error) => void) => void; device?: string } = {}) {
  const stop = new AbortController();
  const { flush = (cb) => cb?.(), device } = more;
  const health = createAgentHealth({
    clock,
    log: { flush },
    syncFrequencyMs: minuteMs,
    devicePluginProblem: () => device,
    signal: stop.signal,
  });
  const failing = async () => {
    const answers = await Promise.allSettled(health.checks.map((one) => one.check()));
    return health.checks.flatMap(({ name }, i) => (answers[i]?.status === "rejected" ? [name] : []));
  };
  return { health, failing, stop };
}

describe("the agent's health", () => {
  test("has the reference's checks, and all pass at first", async () => {
    const { health, failing } = healthOf(new FakeClock());
    expect(health.checks.map(({ name }) => name)).toEqual(["ping", "log", "syncloop", "device-plugin"]);
    expect(await failing()).toEqual([]);
  });

  test("says that pods are not looked at once that took 5 minutes, and recovers", async () => {
    const clock = new FakeClock();
    const { health, failing } = healthOf(clock);
    health.syncLoop.tick();
    await clock.advance(5 * minuteMs);
    expect(await failing()).toEqual([]);
    await clock.advance(1);
    expect(await failing()).toEqual(["syncloop"]);
    const check = health.checks.find(({ name }) => name === "syncloop")?.check();
    await expect(check).rejects.toThrow("pods have not been looked at for 300 s, more than 300 s");
    health.syncLoop.tick();
    expect(await failing()).toEqual([]);
  });

  test("says that the log cannot be flushed after two minutes of trying", async () => {
    const clock = new FakeClock();
    let isBroken = false;
    const { failing } = healthOf(clock, { flush: (cb) => cb?.(isBroken ? new Error("EIO") : undefined) });
    expect(await failing()).toEqual([]);
    isBroken = true;
    await clock.advance(2 * minuteMs - 1);
    expect(await failing()).toEqual([]);
    await clock.advance(1);
    expect(await failing()).toEqual(["log"]);
    isBroken = false;
    await clock.advance(minuteMs);
    expect(await failing()).toEqual([]);
  });

  test("does not flush before anybody asks, and stops when told", async () => {
    const clock = new FakeClock();
    let flushed = 0;
    const { failing, stop } = healthOf(clock, {
      flush: (cb) => {
        flushed += 1;
        cb?.();
      },
    });
    await clock.advance(10 * minuteMs);
    expect(flushed).toBe(0);
    await failing();
    await failing();
    await clock.advance(minuteMs);
    expect(flushed).toBe(2);
    stop.abort();
    await settle();
    expect(clock.waiting).toBe(0);
  });

  test("names a device manager that cannot take registrations", async () => {
    expect(await healthOf(new FakeClock(), { device: "the socket is gone" }).failing()).toEqual(["device-plugin"]);
  });
});

describe("the sync loop", () => {
  test("gets twice the sync frequency when that is longer than 5 minutes", () => {
    const clock = new FakeClock();
    const loop = createSyncLoopHealth(clock, 10 * minuteMs);
    loop.tick();
    expect(loop.problem(clock.monotonic() + 20 * minuteMs)).toBeUndefined();
    expect(loop.problem(clock.monotonic() + 20 * minuteMs + 1)).toMatch(/^pods have not been looked at for 1200 s/);
  });

  test("is never overdue before it has begun", () => {
    expect(createSyncLoopHealth(new FakeClock(), 0).problem(1e12)).toBeUndefined();
  });

  test("turns unhealthy when the runtime's lists fail or hang for 5 minutes, and healthy with the next good one", async () => {
    const clock = new FakeClock();
    const loop = createSyncLoopHealth(clock, minuteMs);
    let answer: () => Promise<RuntimeList> = async () => await Promise.resolve({ sandboxes: [], containers: [] });
    const runtime = tickOnList({ list: async (_podUID?: string) => await answer() }, loop);
    await runtime.list();
    answer = async () => await Promise.reject(new Error("away"));
    await clock.advance(5 * minuteMs);
    await expect(runtime.list()).rejects.toThrow("away");
    expect(loop.problem(clock.monotonic())).toBeUndefined();
    answer = async () => await new Promise(() => {});
    void runtime.list();
    await clock.advance(10_000);
    expect(loop.problem(clock.monotonic())).toBeDefined();
    answer = async () => await Promise.resolve({ sandboxes: [], containers: [] });
    await runtime.list("one-pod");
    expect(loop.problem(clock.monotonic())).toBeDefined();
    await runtime.list();
    expect(loop.problem(clock.monotonic())).toBeUndefined();
  });
});
