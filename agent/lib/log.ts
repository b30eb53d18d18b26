import { type DestinationStream, destination, type Logger as PinoLogger, pino } from "pino";

/**
 * Structured log: `log.info({ pod: "ns/name" }, "constant message")`. One JSON line per event on stderr.
 * Never pass it secrets: tokens, passwords, secret data or whole objects that hold them.
 */
export type Logger = PinoLogger;

export interface LogOptions {
  level: "trace" | "debug" | "info" | "warn" | "error" | "silent";
  /** Where lines go; stderr when absent. */
  stream?: DestinationStream;
}

/** Makes the root logger. Writes are synchronous: the lines before a crash are the ones that matter. */
export function createLogger(options: LogOptions): Logger {
  return pino(
    {
      level: options.level,
      base: null,
      timestamp: () => `,"time":"${new Date().toISOString()}"`,
      formatters: { level: (label) => ({ level: label }) },
    },
    options.stream ?? destination({ fd: 2, sync: true }),
  );
}

/** A logger that says nothing. */
export const silentLogger: Logger = pino({ level: "silent" });
