import { expect, test } from "vitest";
import { AgentError } from "../../../agent/lib/errors.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import type { HealthCheck } from "../../../agent/server/health.ts";
import { runWatchdog } from "../../../agent/server/watchdog.ts";
import { FakeClock, settle } from "../kube/fake-clock.ts";

const watchdogMs = 30_000;

/** A watchdog that runs; `signs` are the times of the signs of life, in ms since its begin. */
async function start(options: { check?: () => Promise<void>; notify?: () => Promise<void> }) {
  const { check = async () => {}, notify = async () => {} } = options;
  const clock = new FakeClock();
  const begin = clock.monotonic();
  const signs: number[] = [];
  const attempts: number[] = [];
  const stop = new AbortController();
  const checks: HealthCheck[] = [
    { name: "ping", check: async () => {} },
    { name: "other", check },
  ];
  const notifier = {
    notify: async (...words: readonly string[]) => {
      expect(words).toEqual(["WATCHDOG=1"]);
      attempts.push(clock.monotonic() - begin);
      await notify();
      signs.push(clock.monotonic() - begin);
    },
  };
  const running = runWatchdog({ checks, notifier, watchdogMs, clock, log: silentLogger }, stop.signal);
  const end = async () => {
    stop.abort();
    await running;
    expect(clock.waiting).toBe(0);
  };
  await settle();
  return { clock, signs, attempts, end };
}

test("a healthy agent shows a sign of life at once and each half of the time it has", async () => {
  const { clock, signs, end } = await start({});
  await clock.advance(60_000);
  expect(signs).toEqual([0, 15_000, 30_000, 45_000, 60_000]);
  await end();
});

test("no sign while a check fails, and one again when it passes", async () => {
  let isHealthy = true;
  const check = async () => {
    if (!isHealthy) throw new Error("broken");
  };
  const { clock, signs, end } = await start({ check });
  await clock.advance(15_000);
  isHealthy = false;
  await clock.advance(60_000);
  expect(signs).toEqual([0, 15_000]);
  isHealthy = true;
  await clock.advance(15_000);
  expect(signs).toEqual([0, 15_000, 90_000]);
  await end();
});

test("a check that never answers is one that fails", async () => {
  const { clock, signs, end } = await start({ check: () => new Promise(() => {}) });
  await clock.advance(120_000);
  expect(signs).toEqual([]);
  await end();
});

test("a check that throws at once harms no other round", async () => {
  let round = 0;
  const check = () => {
    round += 1;
    if (round === 1) throw new Error("not even a promise");
    return Promise.resolve();
  };
  const { clock, signs, end } = await start({ check });
  await clock.advance(15_000);
  expect(signs).toEqual([15_000]);
  await end();
});

test("slow checks do not move the next sign", async () => {
  const late = Promise.withResolvers<void>();
  const check = () => late.promise;
  const { clock, signs, end } = await start({ check });
  await clock.advance(10_000);
  late.resolve();
  await settle();
  await clock.advance(20_000);
  expect(signs).toEqual([10_000, 15_000, 30_000]);
  await end();
});

test("a sign that could not be sent is sent once more after a second", async () => {
  let failures = 1;
  const notify = async () => {
    if (failures-- > 0) throw new AgentError("Unavailable", "systemd-notify exited with 1");
  };
  const { clock, signs, attempts, end } = await start({ notify });
  await clock.advance(14_000);
  expect(attempts).toEqual([0, 1_000]);
  expect(signs).toEqual([1_000]);
  await end();
});

test("after two attempts that failed the next round tries again", async () => {
  const { clock, signs, attempts, end } = await start({
    notify: () => Promise.reject(new AgentError("Unavailable", "systemd-notify exited with 1")),
  });
  await clock.advance(16_000);
  expect(attempts).toEqual([0, 1_000, 15_000, 16_000]);
  expect(signs).toEqual([]);
  await end();
});

test("without anything to send it with, it is not tried twice a round", async () => {
  const { clock, attempts, end } = await start({
    notify: () => Promise.reject(new AgentError("NotFound", "systemd-notify could not be started")),
  });
  await clock.advance(15_000);
  expect(attempts).toEqual([0, 15_000]);
  await end();
});
