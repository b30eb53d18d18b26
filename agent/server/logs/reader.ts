import { readlink, realpath } from "node:fs/promises";
import { basename, dirname, isAbsolute, join } from "node:path";
import type { Clock } from "../../lib/clock.ts";
import { errnoOf } from "../../lib/errno.ts";
import { AgentError, hasCode, messageOf } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import { identify, type LogFile, openActive, openRotated, plainName, rotatedFiles } from "./log-file.ts";
import { filesAfter } from "./log-row.ts";
import { LogWatch } from "./log-watch.ts";
import type { LogOptions } from "./options.ts";
import { RecordReader } from "./records.ts";
import { findTail } from "./tail.ts";

export interface LogReadDeps {
  readonly clock: Clock;
  readonly log: Logger;
  /**
   * Whether the container still runs; asked beside the reading, one question at a time, so that a runtime that takes its
   * time delays no line. A rejection ends the read.
   */
  isRunning(): Promise<boolean>;
  /** Takes the next piece of output; when it resolves, the piece's memory may be used again. */
  write(chunk: Buffer): Promise<void>;
}

// A new follower reads little by little; whoever has a lot to read gets a large buffer.
const bufferBytesMin = 16 * 1024;
const bufferBytesUsual = 256 * 1024;

/**
 * Longest line that is read; longer ones are skipped. Runtimes cut lines at 16 KiB (containerd's and CRI-O's default,
 * Docker's fixed piece, up to six times that in JSON), so only a file that no runtime wrote has them.
 */
export const lineBytesMax = 1024 * 1024;

// Backs the events of the directory, and finds out that a container has ended: the reference's 1 s.
const followPollMs = 1_000;

// The first line after quiet goes out at once. Behind it, a container that writes all the time is read this often at most.
const followIntervalMs = 50;

// The runtime opens the new file first and then writes what it still has to the old one: no more than a line or two.
const rotationSettleMs = 200;

// Between the rename and the runtime's new file there is none for a moment: so often and long we look for it.
const openAttemptsMax = 6;
const openRetryMs = 100;

/**
 * Reads a container's log as asked and hands it out piece by piece. Ends at the end of the file; following, when the
 * container has ended and all was read, or quietly when `signal` aborts.
 *
 * ```
 *   0.log.20260102-030405   drained to its end    then those that came after it     then the active file from its start
 *   ^ the open file was renamed to this          0.log.20260102-030407(.gz)        0.log
 *   id-json.log.3                                id-json.log.2(.gz) id-json.log.1  id-json.log
 * ```
 *
 * Rejects if there is no such file, or if it cannot be read.
 */
export async function readLog(
  path: string,
  options: LogOptions,
  deps: LogReadDeps,
  signal: AbortSignal,
): Promise<void> {
  try {
    // Docker's log is behind a link. Resolved once: a rotation replaces what the link points to, in its own directory.
    const real = await retryMissing(path, deps.clock, signal, async () => await realLog(path));
    const file = await retryMissing(real, deps.clock, signal, async () => await openActive(real));
    await using reader = new LogReader(real, file, options, deps, signal);
    if (options.tailLines !== undefined) {
      reader.seek(await findTail(file.handle, (await file.handle.stat()).size, options.tailLines, signal));
    }
    await (options.follow ? reader.follow() : reader.readToEnd());
  } catch (err) {
    if (!signal.aborted) throw err;
  }
}

class LogReader {
  readonly #path: string;
  readonly #options: LogOptions;
  readonly #deps: LogReadDeps;
  readonly #signal: AbortSignal;
  readonly #records: RecordReader;
  readonly #watch: LogWatch;
  #file: LogFile;
  /** Of the first byte that is not yet handed out. */
  #position = 0;
  /** Bytes of an unfinished line at the file's end. */
  #unfinished: Buffer = Buffer.alloc(0);
  #isSkipping = false;
  #bytesLeft: number;
  #bufferBytes: number;
  /** For the next read; nothing in it is needed. */
  #spare: Buffer | undefined;
  /** What the runtime said last: the container has ended, or why it cannot say. */
  #liveness: "running" | "ended" | { failure: unknown } = "running";
  #isAsking = false;

  constructor(path: string, file: LogFile, options: LogOptions, deps: LogReadDeps, signal: AbortSignal) {
    this.#path = path;
    this.#file = file;
    this.#options = options;
    this.#deps = deps;
    this.#signal = signal;
    this.#bytesLeft = options.limitBytes ?? Number.POSITIVE_INFINITY;
    this.#bufferBytes = options.follow || options.tailLines !== undefined ? bufferBytesMin : bufferBytesUsual;
    this.#records = new RecordReader({
      timestamps: options.timestamps,
      stream: options.stream,
      ...(options.since === undefined ? {} : { since: options.since }),
      ...(options.follow || options.tailLines === undefined ? {} : { linesMax: options.tailLines }),
    });
    this.#watch = new LogWatch(path, deps.clock, deps.log);
  }

  seek(position: number): void {
    this.#position = position;
  }

  async readToEnd(): Promise<void> {
    if (await this.#drain()) return;
    await this.#finishLine();
  }

  async follow(): Promise<void> {
    const { clock } = this.#deps;
    let mayBeReplaced = false;
    this.#watch.arm(); // before the first read: what is written during it wakes us
    for (;;) {
      const passAtMs = clock.monotonic();
      const from = this.#position;
      if (typeof this.#liveness === "object") throw this.#liveness.failure;
      const hasEnded = this.#liveness === "ended"; // what it wrote last was there before that: one more look
      if (await this.#drain()) return;
      const isNew = this.#position !== from;
      if (this.#watch.takeReplaced() || mayBeReplaced || hasEnded || this.#file.rotatedAs !== undefined) {
        mayBeReplaced = false;
        const found = await this.#findSuccessor();
        if (found === "done") return;
        if (found === "again") continue;
      }
      if (hasEnded) break;
      void this.#askWhetherRunning();
      const restMs = passAtMs + followIntervalMs - clock.monotonic();
      if (isNew && restMs > 0) await clock.sleep(restMs, this.#signal);
      this.#watch.arm();
      mayBeReplaced = (await this.#watch.wait(followPollMs, this.#signal)) === "time";
    }
    await this.#finishLine();
  }

  /** Asks unless a question is open; wakes when the container has ended. Never rejects. Nobody waits for it at the end. */
  async #askWhetherRunning(): Promise<void> {
    if (this.#isAsking) return;
    this.#isAsking = true;
    try {
      this.#liveness = (await this.#deps.isRunning()) ? "running" : "ended";
    } catch (failure) {
      this.#liveness = { failure };
    }
    this.#isAsking = false;
    if (this.#liveness !== "running") this.#watch.wake();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#watch.close();
    await this.#file.close();
    const { malformed } = this.#records;
    if (malformed > 0) this.#deps.log.warn({ path: this.#path, lines: malformed }, "malformed lines of a log skipped");
  }

  /** Hands out whole lines up to the file's end. @returns true once everything asked for was handed out */
  async #drain(): Promise<boolean> {
    let buffer = this.#spare ?? Buffer.allocUnsafeSlow(this.#bufferBytes);
    let kept = 0; // bytes of an unfinished line at the buffer's start
    for (;;) {
      if (this.#records.isDone) return true;
      const bytesRead = await this.#file.read(buffer, kept, this.#position + kept);
      this.#signal.throwIfAborted();
      const end = kept + bytesRead;
      const used = this.#records.read(buffer, this.#isSkipping ? this.#skipped(buffer, end) : 0, end);
      this.#position += used;
      if (await this.#send()) return true;
      if (end < buffer.length) {
        this.#unfinished = Buffer.from(buffer.subarray(used, end));
        break;
      }
      kept = end - used;
      if (kept >= lineBytesMax) {
        this.#startSkipping(kept);
        kept = 0;
      }
      buffer = nextBuffer(buffer, end - kept, kept);
    }
    if (this.#options.follow) {
      // Followers wait most of the time, and there may be many: each keeps no more than a small buffer.
      this.#bufferBytes = bufferBytesMin;
      this.#spare = buffer.length === bufferBytesMin ? buffer : undefined;
      this.#records.release(2 * bufferBytesMin);
    }
    return false;
  }

  async #send(): Promise<boolean> {
    let chunk = this.#records.take();
    if (chunk.length > this.#bytesLeft) chunk = chunk.subarray(0, this.#bytesLeft);
    this.#bytesLeft -= chunk.length;
    if (chunk.length > 0) await this.#deps.write(chunk);
    return this.#bytesLeft <= 0;
  }

  /** Hands out what stands behind the last whole line. @returns as {@link #drain} */
  async #finishLine(): Promise<boolean> {
    this.#records.readLast(this.#unfinished);
    this.#unfinished = Buffer.alloc(0);
    return await this.#send();
  }

  #startSkipping(bytes: number): void {
    this.#position += bytes;
    this.#isSkipping = true;
    this.#deps.log.warn({ path: this.#path, bytesMax: lineBytesMax }, "line of a log is too long, skipping it");
  }

  /** @returns where the line after the one that is skipped begins; `end` while it is not in sight */
  #skipped(buffer: Buffer, end: number): number {
    const found = buffer.subarray(0, end).indexOf(0x0a);
    if (found < 0) return end;
    this.#isSkipping = false;
    return found + 1;
  }

  /**
   * Goes on to the file that came after the open one, at whose end we are.
   * @returns "again" if there is something to read, "done" once everything asked for was handed out
   */
  async #findSuccessor(): Promise<"none" | "again" | "done"> {
    const present = await identify(this.#path);
    if (present !== undefined && this.#file.isAt(present)) {
      if (present.size >= this.#position) return "none";
      this.#startOver(); // truncated in place
      return "again";
    }
    if (present === undefined && (await filesAfter(this.#path, this.#file)).length === 0) return "none";
    if (this.#file.rotatedAs === undefined) {
      await this.#deps.clock.sleep(rotationSettleMs, this.#signal);
      if (await this.#drain()) return "done";
    }
    const next = await this.#openSuccessor();
    if (next === undefined) return "none"; // an unfinished line may still get its end
    if (await this.#finishLine()) {
      await next.close();
      return "done";
    }
    await this.#file.close();
    this.#file = next;
    this.#startOver();
    return "again";
  }

  async #openSuccessor(): Promise<LogFile | undefined> {
    for (;;) {
      const [rotated] = await filesAfter(this.#path, this.#file);
      const opening = rotated === undefined ? openActive(this.#path) : openRotated(dirname(this.#path), rotated);
      const next = await opening.catch((err: unknown) => {
        if (hasCode(err, "NotFound")) return undefined; // the next one is on its way, or this one was compressed
        throw err;
      });
      if (next === undefined) return undefined;
      // Another rotation may have come between list and open, and given the name to another file.
      const [stillNext] = await filesAfter(this.#path, this.#file);
      if (plainName(stillNext ?? "") === plainName(rotated ?? "")) return next;
      await next.close();
      this.#signal.throwIfAborted();
    }
  }

  #startOver(): void {
    this.#position = 0;
    this.#isSkipping = false;
    this.#unfinished = Buffer.alloc(0);
  }
}

/** Room for the next read behind what is kept of this one: more if the file is long, and if one line needs it. */
function nextBuffer(buffer: Buffer, keptAt: number, kept: number): Buffer {
  const usual = Math.max(buffer.length, Math.min(buffer.length * 4, bufferBytesUsual));
  const size = kept === buffer.length ? Math.min(Math.max(usual, buffer.length * 2), lineBytesMax) : usual;
  if (size === buffer.length) {
    buffer.copyWithin(0, keptAt, keptAt + kept);
    return buffer;
  }
  const next = Buffer.allocUnsafeSlow(size);
  buffer.copy(next, 0, keptAt, keptAt + kept);
  return next;
}

async function retryMissing<T>(path: string, clock: Clock, signal: AbortSignal, attempt: () => Promise<T>): Promise<T> {
  for (let left = openAttemptsMax; ; left -= 1) {
    try {
      return await attempt();
    } catch (err) {
      if (!hasCode(err, "NotFound") || left <= 1 || (await rotatedFiles(path)).length === 0) throw err;
    }
    await clock.sleep(openRetryMs, signal);
  }
}

/** Where the log is, behind links. Between Docker's rename and its new file, where it will be. */
async function realLog(path: string): Promise<string> {
  try {
    return await realpath(path);
  } catch (err) {
    const target = await readlink(path).catch(() => undefined);
    const dir = target === undefined ? undefined : await realpath(dirname(target)).catch(() => undefined);
    if (target !== undefined && dir !== undefined && isAbsolute(target)) return join(dir, basename(target));
    const isMissing = errnoOf(err) === "ENOENT";
    const why = isMissing ? "no such file or directory" : messageOf(err);
    throw new AgentError(isMissing ? "NotFound" : "Internal", `open ${path}: ${why}`, { cause: err });
  }
}
