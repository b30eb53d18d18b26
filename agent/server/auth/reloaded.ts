import { once } from "node:events";
import { readFile } from "node:fs/promises";
import type { Clock } from "../../lib/clock.ts";
import { AgentError, messageOf } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import { watchFiles } from "../../lib/watch-file.ts";

/** Something that is read from files, and read again when they change. */
export interface Reloaded<T> {
  current(): T;
  /** Calls `listener` after the value changed. @returns ends it */
  subscribe(listener: () => void): () => void;
  /** Follows the files until `signal` aborts; then resolves. Never rejects. Call it once. */
  run(signal: AbortSignal): Promise<void>;
}

export interface ReloadedOptions<T> {
  /** For messages: `clientCAFile`. */
  readonly what: string;
  readonly files: readonly string[];
  /** Makes the value of the files' contents; throws when they cannot be used, without showing them. */
  read(contents: readonly Buffer[]): T;
  /** False: what was read at start stays. */
  readonly reload: boolean;
  readonly clock: Clock;
  readonly log: Logger;
}

/**
 * Reads the files for the first time: rejects with AgentError Invalid when they cannot be used. From then on content that
 * cannot be used is a warning, and the last good value stays.
 */
export async function loadReloaded<T>(options: ReloadedOptions<T>): Promise<Reloaded<T>> {
  const { what, files, read, reload, clock, log } = options;
  const listeners = new Set<() => void>();
  const load = async () => Promise.all(files.map((file) => readFile(file)));
  let contents: readonly Buffer[];
  let value: T;
  try {
    contents = await load();
    value = read(contents);
  } catch (err) {
    const message = `${what}: ${files.join(" and ")} cannot be used: ${messageOf(err)}`;
    throw new AgentError("Invalid", message, { cause: err });
  }
  let reported = "";
  const look = async () => {
    try {
      const now = await load();
      if (now.every((content, i) => contents[i]?.equals(content))) {
        reported = "";
        return;
      }
      value = read(now);
      contents = now;
    } catch (err) {
      const message = messageOf(err);
      if (message !== reported) {
        log.warn({ what, files, err: message }, "changed files cannot be used, keeping the old ones");
      }
      reported = message;
      return;
    }
    reported = "";
    log.info({ what, files }, "read changed files");
    for (const listener of listeners) listener();
  };
  return {
    current: () => value,
    subscribe: (listener) => {
      listeners.add(listener);
      return () => void listeners.delete(listener);
    },
    run: async (signal) => {
      if (reload) await watchFiles({ files, onChange: look, clock, log }, signal);
      else if (!signal.aborted) await once(signal, "abort");
    },
  };
}
