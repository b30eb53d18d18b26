import type { LogOptions } from "../lib/log.ts";

/** The log level for a verbosity (`-v`): Kubernetes' own conventions call 4 debug and 6 and more tracing. */
export function logLevelOf(verbosity: number): LogOptions["level"] {
  return verbosity >= 6 ? "trace" : verbosity >= 4 ? "debug" : "info";
}
