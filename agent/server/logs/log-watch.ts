import { addAbortListener } from "node:events";
import { type FSWatcher, watch } from "node:fs";
import { basename, dirname } from "node:path";
import type { Clock } from "../../lib/clock.ts";
import { messageOf } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import { ignoreAbort } from "../../lib/loop.ts";

// As the reference: after that many failures the file is looked at by the clock alone.
const watchAttemptsMax = 5;

/**
 * Wakes a reader of one log file. It watches the directory, as the file itself is replaced when it is rotated. A wake only
 * says "look again"; without a working watch the reader's own clock does.
 */
export class LogWatch {
  readonly #path: string;
  readonly #base: string;
  readonly #clock: Clock;
  readonly #log: Logger;
  #watcher: FSWatcher | undefined;
  #failures = 0;
  #isWoken = false;
  #isReplaced = false;
  #rest: AbortController | undefined;

  constructor(path: string, clock: Clock, log: Logger) {
    this.#path = path;
    this.#base = basename(path);
    this.#clock = clock;
    this.#log = log;
  }

  /** Begins to watch, unless it does or failed too often. Never throws. */
  arm(): void {
    if (this.#watcher !== undefined || this.#failures >= watchAttemptsMax) return;
    try {
      const watcher = watch(dirname(this.#path), { persistent: false });
      this.#watcher = watcher;
      watcher.on("change", (event, name) => this.#onEvent(event, name));
      watcher.on("error", (err) => this.#onFailure(err));
    } catch (err) {
      this.#onFailure(err);
    }
  }

  /** Whether the name may belong to another file since the last call. */
  takeReplaced(): boolean {
    const was = this.#isReplaced;
    this.#isReplaced = false;
    return was;
  }

  /** Resolves at the next event, at once if there was one since the last call, else after `ms`; rejects when aborted. */
  async wait(ms: number, signal: AbortSignal): Promise<"event" | "time"> {
    if (!this.#isWoken) {
      const rest = new AbortController();
      this.#rest = rest;
      const link = addAbortListener(signal, () => rest.abort());
      await this.#clock.sleep(ms, rest.signal).catch(ignoreAbort);
      link[Symbol.dispose]();
      this.#rest = undefined;
      signal.throwIfAborted();
    }
    const was = this.#isWoken;
    this.#isWoken = false;
    return was ? "event" : "time";
  }

  /** Ends the wait, as an event does. */
  wake(): void {
    this.#isWoken = true;
    this.#rest?.abort();
  }

  close(): void {
    this.#watcher?.close();
    this.#watcher = undefined;
  }

  #onEvent(event: string, name: string | Buffer | null): void {
    if (name !== null && String(name) !== this.#base) return;
    if (event === "rename") this.#isReplaced = true;
    this.wake();
  }

  #onFailure(err: unknown): void {
    this.#failures += 1;
    this.close();
    this.#log.debug(
      { path: this.#path, attempt: this.#failures, err: messageOf(err) },
      "directory of a log not watched",
    );
  }
}
