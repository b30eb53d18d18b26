import { addAbortListener } from "node:events";
import type { Supervisor } from "../config/supervisor.ts";
import type { Clock } from "../lib/clock.ts";
import { hasCode, messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { untilAborted } from "../lib/loop.ts";
import { createNotifier, type Notifier } from "../lib/sd-notify.ts";
import type { HealthCheck } from "../server/health.ts";
import { runWatchdog } from "../server/watchdog.ts";

export interface SupervisionOptions {
  supervisor: Supervisor;
  /** All must pass for a sign of life. */
  checks: readonly HealthCheck[];
  /** Settles when the roles have started, or could not. */
  started: Promise<unknown>;
  /** Aborts when the agent is told to end, long before the last of it has. */
  stop: AbortSignal;
  clock: Clock;
  log: Logger;
  /** Replaced by tests. */
  notifier?: Notifier;
}

// A start waits for the runtime and the API server as long as they take. The supervisor should not: it would end an
// agent that does all it can (systemd after 90 s), and hold up who waits for the unit (`kubeadm join`). What can only be
// repaired by people, such as a bad file, has ended the process by then.
const readyMsMax = 10_000;

/**
 * Tells the supervisor that the agent is ready, then that it is alive, then that it ends. Runs until `signal` aborts; does
 * nothing if there is no supervisor. Never rejects.
 */
export async function runSupervision(options: SupervisionOptions, signal: AbortSignal): Promise<void> {
  const { supervisor, checks, started, stop, clock, log } = options;
  const { notifySocket, watchdogMs } = supervisor;
  if (notifySocket === undefined) return await untilAborted(signal);
  const notifier = options.notifier ?? createNotifier({ socket: notifySocket });

  if (!(await hasBegun(started, clock, signal))) return await untilAborted(signal); // what failed ends the process
  await tell(notifier, "READY=1", log);
  let ending: Promise<void> | undefined;
  using _onStop = addAbortListener(stop, () => {
    ending = tell(notifier, "STOPPING=1", log);
  });
  if (watchdogMs === undefined) await untilAborted(signal);
  else await runWatchdog({ checks, notifier, watchdogMs, clock, log }, signal);
  await ending;
}

/** True when the roles have started or are just waiting for others; false when they failed or `signal` aborted. */
async function hasBegun(started: Promise<unknown>, clock: Clock, signal: AbortSignal): Promise<boolean> {
  const known = new AbortController();
  const patience = clock.sleep(readyMsMax, AbortSignal.any([signal, known.signal]));
  const yes = () => true;
  const no = () => false;
  try {
    return await Promise.race([started.then(yes, no), patience.then(yes, no)]);
  } finally {
    known.abort();
  }
}

async function tell(notifier: Notifier, what: string, log: Logger): Promise<void> {
  try {
    await notifier.notify(what);
  } catch (err) {
    const advice = hasCode(err, "NotFound")
      ? "the unit wants to be notified, for which systemd-notify is needed: install it, or set Type=exec in the unit"
      : "the supervisor could not be notified";
    log.error({ notice: what, err: messageOf(err) }, advice);
  }
}
