import { ConfigError } from "./problems.ts";

/** What the supervisor that started this process (systemd, as a rule) wants to hear from it. */
export interface Supervisor {
  /** Where to send notices; undefined: nobody listens. */
  notifySocket: string | undefined;
  /** It ends the process after this long without a sign of life; undefined: it never does. */
  watchdogMs: number | undefined;
}

// A shorter one would be missed on any busy machine; the reference refuses it, too.
const watchdogMsMin = 1_000;

/**
 * Reads the variables of sd_notify(3) and sd_watchdog_enabled(3). They count only for the process that they name.
 *
 * @throws ConfigError when `WATCHDOG_USEC` or `WATCHDOG_PID` is no number, or the time is a second or less
 */
export function readSupervisor(env: NodeJS.ProcessEnv = process.env, pid: number = process.pid): Supervisor {
  const notifySocket = env["NOTIFY_SOCKET"] || undefined;
  return { notifySocket, watchdogMs: notifySocket === undefined ? undefined : watchdogOf(env, pid) };
}

function watchdogOf(env: NodeJS.ProcessEnv, pid: number): number | undefined {
  const text = env["WATCHDOG_USEC"] ?? "";
  if (text === "") return undefined;
  const microseconds = positiveInteger("WATCHDOG_USEC", text);
  const owner = env["WATCHDOG_PID"] ?? "";
  if (owner !== "" && positiveInteger("WATCHDOG_PID", owner) !== pid) return undefined;
  const ms = microseconds / 1_000;
  if (ms > watchdogMsMin) return ms;
  throw new ConfigError([`WATCHDOG_USEC is ${text}: the unit's WatchdogSec must be more than 1s`]);
}

function positiveInteger(name: string, text: string): number {
  const value = /^\d{1,15}$/.test(text) ? Number(text) : 0;
  if (value > 0) return value;
  throw new ConfigError([`${name} must be a whole number above 0, not ${JSON.stringify(text)}`]);
}
