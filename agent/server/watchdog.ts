import { addAbortListener } from "node:events";
import type { Clock } from "../lib/clock.ts";
import { hasCode, messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { ignoreAbort } from "../lib/loop.ts";
import type { Notifier } from "../lib/sd-notify.ts";
import type { HealthCheck } from "./health.ts";

export interface WatchdogOptions {
  /** All must pass for a sign of life. */
  checks: readonly HealthCheck[];
  notifier: Notifier;
  /** After this long without a sign of life the supervisor ends the process. */
  watchdogMs: number;
  clock: Clock;
  log: Logger;
}

// Of the time that the supervisor gives, as sd_watchdog_enabled(3) advises: one sign may be late.
const signsPerTimeout = 2;
// The reference's: a sign of life is sent twice at most, with this rest in between.
const sendAttempts = 2;
const sendRetryMs = 1_000;

/**
 * Shows the supervisor signs of life while every check passes, until `signal` aborts. A round with a check that fails, or
 * does not answer, shows none: if that goes on, the supervisor starts the agent anew. Never rejects.
 */
export async function runWatchdog(options: WatchdogOptions, signal: AbortSignal): Promise<void> {
  const { checks, notifier, watchdogMs, clock, log } = options;
  const intervalMs = watchdogMs / signsPerTimeout;
  let reported = "";
  while (!signal.aborted) {
    const beganAtMs = clock.monotonic();
    const problems = await failing(checks, { timeoutMs: intervalMs, clock, signal });
    if (signal.aborted) return;
    const text = problems.join("; ");
    if (text !== reported && text !== "") {
      log.error({ problems, watchdogMs }, "unhealthy: the supervisor gets no sign of life and may restart the agent");
    } else if (text !== reported) {
      log.info("healthy again");
    }
    reported = text;
    if (problems.length === 0) await send({ notifier, clock, log }, signal);
    // Counted from the round's begin, so that slow checks do not add up to a missed deadline.
    const restMs = Math.max(0, beganAtMs + intervalMs - clock.monotonic());
    await clock.sleep(restMs, signal).catch(ignoreAbort);
  }
}

/** What is wrong, one text a check that fails or has not answered in time. Never rejects. */
async function failing(
  checks: readonly HealthCheck[],
  { timeoutMs, clock, signal }: { timeoutMs: number; clock: Clock; signal: AbortSignal },
): Promise<string[]> {
  const late = Promise.withResolvers<never>();
  const giveUp = () => late.reject(new Error("no answer"));
  const timer = clock.after(timeoutMs, giveUp);
  using _link = addAbortListener(signal, giveUp);
  try {
    const answers = await Promise.all(
      checks.map((one) =>
        Promise.race([Promise.try(() => one.check()), late.promise]).then(
          () => [],
          (err: unknown) => [`${one.name}: ${messageOf(err)}`],
        ),
      ),
    );
    return answers.flat();
  } finally {
    timer.cancel();
    late.promise.catch(() => {}); // with no check at all nobody else listens
  }
}

async function send(
  { notifier, clock, log }: { notifier: Notifier; clock: Clock; log: Logger },
  signal: AbortSignal,
): Promise<void> {
  for (let attempt = 1; !signal.aborted; attempt += 1) {
    try {
      await notifier.notify("WATCHDOG=1");
      return;
    } catch (err) {
      const isLast = attempt >= sendAttempts || hasCode(err, "NotFound");
      if (isLast) {
        log.error({ err: messageOf(err) }, "the supervisor could not be told that the agent is alive");
        return;
      }
      await clock.sleep(sendRetryMs, signal).catch(ignoreAbort);
    }
  }
}
