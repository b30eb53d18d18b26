import { constants } from "node:os";
import type { Logger } from "./lib/log.ts";

/**
 * The signal that aborts when the process is told to end. The second SIGTERM or SIGINT ends it at once: somebody has
 * lost patience with the first.
 */
export function untilTold(log: Logger): AbortSignal {
  const stop = new AbortController();
  const onSignal = (signal: "SIGTERM" | "SIGINT") => {
    if (stop.signal.aborted) {
      log.warn({ signal }, "told to end a second time: ending at once");
      process.exit(128 + constants.signals[signal]);
    }
    log.info({ signal }, "told to end: containers keep running, rules stay");
    stop.abort();
  };
  process.on("SIGTERM", onSignal);
  process.on("SIGINT", onSignal);
  return stop.signal;
}

/**
 * An error that nobody handles ends the process: its state can no longer be trusted, and the next start rebuilds it from
 * the API server and the runtime.
 */
export function endOnUnhandledErrors(log: Logger): void {
  const end = (kind: string) => (err: unknown) => {
    log.fatal({ err: err instanceof Error ? err.stack : String(err) }, kind);
    process.exit(1);
  };
  process.on("uncaughtException", end("uncaught exception"));
  process.on("unhandledRejection", end("unhandled rejection"));
}
