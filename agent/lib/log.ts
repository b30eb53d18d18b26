import { type DestinationStream, destination, type Logger as PinoLogger, pino } from "pino";

/**
 * Structured log: `log.info({ pod: "ns/name" }, "constant message")`. One JSON line per event on stderr.
 * Never pass it secrets: tokens, passwords, secret data or whole objects that hold them.
 */
export type Logger = PinoLogger;

export type LogLevel = "trace" | "debug" | "info" | "warn" | "error" | "silent";

export interface LogOptions {
  level: LogLevel;
  /** Where lines go; stderr when absent. */
  stream?: DestinationStream;
}

/** Makes the root logger. Writes are synchronous: the lines before a crash are the ones that matter. */
export function createLogger(options: LogOptions): Logger {
  const family = new Family();
  const root = pino(
    {
      level: options.level,
      base: null,
      onChild: (child) => family.add(child),
      timestamp: () => `,"time":"${new Date().toISOString()}"`,
      formatters: { level: (label) => ({ level: label }) },
    },
    options.stream ?? destination({ fd: 2, sync: true }),
  );
  families.set(root, family);
  return root;
}

/** Changes how much a root logger says, and all loggers that were made of it. */
export function setLogLevel(root: Logger, level: LogLevel): void {
  root.level = level;
  for (const child of families.get(root)?.members() ?? []) child.level = level;
}

// A child of pino's keeps the level that its parent had when it was made.
const families = new WeakMap<Logger, Family>();

// Below this many there is nothing to be gained by looking for those that are gone.
const pruneAtMin = 256;

class Family {
  readonly #children = new Set<WeakRef<Logger>>();
  #pruneAt = pruneAtMin;

  add(child: Logger): void {
    this.#children.add(new WeakRef(child));
    if (this.#children.size < this.#pruneAt) return;
    for (const ref of this.#children) if (ref.deref() === undefined) this.#children.delete(ref);
    this.#pruneAt = Math.max(pruneAtMin, this.#children.size * 2);
  }

  *members(): Generator<Logger, void, void> {
    for (const ref of this.#children) {
      const child = ref.deref();
      if (child !== undefined) yield child;
    }
  }
}

/** A logger that says nothing. */
export const silentLogger: Logger = pino({ level: "silent" });
