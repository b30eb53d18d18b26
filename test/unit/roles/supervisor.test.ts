import { expect, test } from "vitest";
import { AgentError } from "../../../agent/lib/errors.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { runSupervision } from "../../../agent/roles/supervisor.ts";
import { FakeClock, settle } from "../kube/fake-clock.ts";

function start(options: { watchdogMs?: number; notifySocket?: string | undefined; isMute?: boolean } = {}) {
  const { watchdogMs, isMute = false } = options;
  const notifySocket = "notifySocket" in options ? options.notifySocket : "/run/notify";
  const clock = new FakeClock();
  const told: string[] = [];
  const roles = Promise.withResolvers<void>();
  const stop = new AbortController();
  const part = new AbortController();
  const notifier = {
    notify: async (...words: readonly string[]) => {
      told.push(...words);
      if (isMute) throw new AgentError("NotFound", "systemd-notify could not be started");
    },
  };
  const running = runSupervision(
    {
      supervisor: { notifySocket, watchdogMs },
      checks: [],
      started: roles.promise,
      stop: stop.signal,
      clock,
      log: silentLogger,
      notifier,
    },
    part.signal,
  );
  const end = async () => {
    part.abort();
    await running;
    expect(clock.waiting).toBe(0);
  };
  return { clock, told, roles, stop, end };
}

test("ready when the roles have started, alive until the last part has ended, stopping when told to", async () => {
  const { clock, told, roles, stop, end } = start({ watchdogMs: 20_000 });
  await clock.advance(5_000);
  expect(told).toEqual([]);
  roles.resolve();
  await settle();
  expect(told).toEqual(["READY=1", "WATCHDOG=1"]);
  await clock.advance(10_000);
  expect(told).toEqual(["READY=1", "WATCHDOG=1", "WATCHDOG=1"]);
  stop.abort();
  await clock.advance(10_000);
  expect(told.slice(3)).toEqual(["STOPPING=1", "WATCHDOG=1"]);
  await end();
});

test("ready after 10 s, too, when the roles wait for a runtime or an API server", async () => {
  const { clock, told, end } = start();
  await clock.advance(9_999);
  expect(told).toEqual([]);
  await clock.advance(1);
  expect(told).toEqual(["READY=1"]);
  await end();
});

test("never ready when the roles could not start", async () => {
  const { clock, told, roles, end } = start({ watchdogMs: 20_000 });
  roles.reject(new Error("bad file"));
  await clock.advance(60_000);
  expect(told).toEqual([]);
  await end();
});

test("told to end before it was ready", async () => {
  const { told, end } = start({ watchdogMs: 20_000 });
  await end();
  expect(told).toEqual([]);
});

test("without a supervisor nothing is told", async () => {
  const { clock, told, roles, end } = start({ notifySocket: undefined });
  roles.resolve();
  await clock.advance(60_000);
  expect(told).toEqual([]);
  await end();
});

test("a machine without systemd-notify is no reason to end", async () => {
  const { clock, told, roles, end } = start({ isMute: true });
  roles.resolve();
  await clock.advance(60_000);
  expect(told).toEqual(["READY=1"]);
  await end();
});
