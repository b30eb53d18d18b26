import { AgentError } from "./errors.ts";
import { exec } from "./exec.ts";

/** Tells the process's supervisor something, in the words of sd_notify(3): `READY=1`, `WATCHDOG=1`, `STOPPING=1`. */
export interface Notifier {
  /**
   * Resolves when the supervisor has taken the message. Rejects with Unavailable when it does not, and with NotFound when
   * this machine has nothing to send it with, which no repetition mends.
   */
  notify(...assignments: readonly string[]): Promise<void>;
}

export interface NotifierOptions {
  /** A path, or a name of the abstract name space that begins with `@`: what `NOTIFY_SOCKET` holds. */
  socket: string;
  /** Replaced by tests. */
  run?: typeof exec;
}

// systemd-notify itself waits up to 5 s for systemd to have read what it sent.
const sendTimeoutMs = 6_000;

/**
 * A notifier by way of `systemd-notify`, since Node.js has no datagram sockets of the unix kind.
 *
 * Sent so, a message counts as ours: systemd-notify writes the process ID of its parent into the message's credentials
 * (which the kernel allows to root), so that systemd takes it with `NotifyAccess=main`, too. `--pid` would do the same but
 * also tell systemd to replace the main process it knows, which is none of our business.
 */
export function createNotifier({ socket, run = exec }: NotifierOptions): Notifier {
  return {
    notify: async (...assignments) => {
      // An environment of its own: what it may be told by ours (MANAGERPID, SYSTEMD_…) is not meant for it.
      const env = { NOTIFY_SOCKET: socket };
      const { failure, message } = await run("systemd-notify", assignments, { timeoutMs: sendTimeoutMs, env });
      if (failure === "spawn") throw new AgentError("NotFound", message);
      if (failure !== undefined) throw new AgentError("Unavailable", message);
    },
  };
}
