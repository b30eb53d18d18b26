import { describe, expect, test } from "vitest";
import { readSupervisor } from "../../../agent/config/supervisor.ts";

const socket = "/run/systemd/notify";

describe("the supervisor's environment", () => {
  const cases: { name: string; env: Record<string, string>; want: ReturnType<typeof readSupervisor> }[] = [
    { name: "none", env: {}, want: { notifySocket: undefined, watchdogMs: undefined } },
    { name: "notices only", env: { NOTIFY_SOCKET: socket }, want: { notifySocket: socket, watchdogMs: undefined } },
    {
      name: "a watchdog for whoever runs",
      env: { NOTIFY_SOCKET: socket, WATCHDOG_USEC: "30000000" },
      want: { notifySocket: socket, watchdogMs: 30_000 },
    },
    {
      name: "a watchdog for this process",
      env: { NOTIFY_SOCKET: "@abstract", WATCHDOG_USEC: "1500000", WATCHDOG_PID: "42" },
      want: { notifySocket: "@abstract", watchdogMs: 1_500 },
    },
    {
      name: "a watchdog for another process, whose variables we inherited",
      env: { NOTIFY_SOCKET: socket, WATCHDOG_USEC: "1", WATCHDOG_PID: "41" },
      want: { notifySocket: socket, watchdogMs: undefined },
    },
    {
      name: "a watchdog that nobody can feed",
      env: { WATCHDOG_USEC: "30000000" },
      want: { notifySocket: undefined, watchdogMs: undefined },
    },
    { name: "empty words", env: { NOTIFY_SOCKET: "" }, want: { notifySocket: undefined, watchdogMs: undefined } },
  ];
  for (const { name, env, want } of cases) test(name, () => expect(readSupervisor(env, 42)).toEqual(want));

  const refused: [string, Record<string, string>, RegExp][] = [
    ["a second", { WATCHDOG_USEC: "1000000" }, /WATCHDOG_USEC is 1000000: the unit's WatchdogSec must be more than 1s/],
    ["nothing at all", { WATCHDOG_USEC: "0" }, /WATCHDOG_USEC must be a whole number above 0, not "0"/],
    ["no number", { WATCHDOG_USEC: "30s" }, /WATCHDOG_USEC must be a whole number above 0, not "30s"/],
    ["less than nothing", { WATCHDOG_USEC: "-5" }, /WATCHDOG_USEC must be a whole number above 0/],
    ["an odd owner", { WATCHDOG_USEC: "2000000", WATCHDOG_PID: "me" }, /WATCHDOG_PID must be a whole number/],
  ];
  for (const [name, env, want] of refused) {
    test(`refused: ${name}`, () => expect(() => readSupervisor({ NOTIFY_SOCKET: socket, ...env }, 42)).toThrow(want));
  }
});
