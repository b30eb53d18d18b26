import { join } from "node:path";
import { constants, createGzip } from "node:zlib";
import { exec } from "../../lib/exec.ts";
import { execStream } from "../../lib/exec-stream.ts";
import { openFile, readFile } from "./files.ts";
import { journalArguments, type NodeLogOptions } from "./node-log-query.ts";

export interface JournalSource {
  /** Where services that the journal does not know may have files. */
  readonly rootDir: string;
  /** Name or path of journalctl. */
  readonly journalctl: string;
}

type Write = (chunk: Buffer) => Promise<void>;

/**
 * Writes the logs of services: those that the journal knows from there, the others from `<service>`, `<service>.log` or
 * `<service>/<service>.log` below the root. What fails stands in the text. Rejects if the client goes or `signal` aborts.
 */
export async function writeServiceLogs(
  services: readonly string[],
  options: NodeLogOptions,
  { rootDir, journalctl }: JournalSource,
  write: Write,
  signal: AbortSignal,
): Promise<void> {
  const answers = await Promise.all(
    services.map(async (service) => ({ service, whyNot: await whyNotInJournal(journalctl, service, signal) })),
  );
  signal.throwIfAborted();
  const known = answers.filter(({ whyNot }) => whyNot === undefined).map(({ service }) => service);
  const others = answers.filter(({ whyNot }) => whyNot !== undefined);
  if (known.length > 0) {
    const result = await execStream(journalctl, journalArguments(known, options), { write, signal });
    // What it has to say about a bad end it has written itself.
    if (result.failure === "spawn") await write(text(`journal of ${known.join(", ")} not read: ${result.message}`));
  }
  for (const { service, whyNot } of others) {
    if (Object.keys(options).length > 0) {
      await write(text(`no log of ${service}: ${whyNot}, and options do not apply to log files: try without options`));
    } else if (!(await writeServiceFile(rootDir, service, write, signal))) {
      await write(text(`no log of ${service}: ${whyNot}, and there is no file ${service}.log in ${rootDir}`));
    }
  }
}

/** Takes pieces of a body, compresses them, and sends them on at the client's pace. Dispose it. */
export class GzipBody {
  readonly #gzip = createGzip({ level: constants.Z_BEST_SPEED });
  readonly #sent: Promise<void>;
  /** Ends the write that is under way. */
  #fail: ((err: unknown) => void) | undefined;

  constructor(write: Write) {
    this.#gzip.on("error", () => {}); // whoever writes or ends hears of it
    this.#sent = this.#send(write);
    this.#sent.catch((err: unknown) => {
      this.#gzip.destroy();
      this.#fail?.(err);
    });
  }

  /** Takes a piece, one at a time. Rejects when nothing can be sent any more. */
  async write(chunk: Buffer): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.#gzip.write(chunk, (err) => {
      if (err) reject(err);
      else resolve();
    });
    // A stream that is destroyed while it is full forgets the callback. (A race with the whole body's promise would leave
    // something at it for each piece.)
    this.#fail = reject;
    await promise;
  }

  /** Resolves when everything was sent. */
  async end(): Promise<void> {
    this.#gzip.end();
    await this.#sent;
  }

  [Symbol.dispose](): void {
    this.#gzip.destroy();
  }

  async #send(write: Write): Promise<void> {
    for await (const chunk of this.#gzip as AsyncIterable<Buffer>) await write(chunk);
  }
}

// Part of the limit of the whole query; a journal that takes longer to find one entry is not usable.
const findTimeoutMs = 10_000;

/**
 * Asks the journal for any one entry of a service: a list of all units that it has ever seen may be very long.
 *
 * @returns undefined if there is one, else why there is none
 */
async function whyNotInJournal(journalctl: string, service: string, signal: AbortSignal): Promise<string | undefined> {
  const output = ["--quiet", "--no-pager", "--lines=1", "--output=export", "--output-fields=_SYSTEMD_UNIT"];
  const names = [`_SYSTEMD_UNIT=${service}.service`, `_SYSTEMD_UNIT=${service}`];
  const found = await exec(journalctl, [...output, ...names], { timeoutMs: findTimeoutMs, signal });
  if (found.stdout.trim() !== "") return undefined;
  // Some versions end with 1 and say nothing if there is no entry.
  const isAnswer = found.failure === undefined || (found.code === 1 && found.stderr.trim() === "");
  return isAnswer ? "the journal does not know it" : `the journal could not be asked (${found.message})`;
}

/** @returns false if there is no file of the service */
async function writeServiceFile(rootDir: string, service: string, write: Write, signal: AbortSignal): Promise<boolean> {
  // The name holds no slash; these two would name a directory outside or the root itself.
  const names = service === "." || service === ".." ? [] : [service, `${service}.log`, join(service, `${service}.log`)];
  for (const name of names) {
    await using file = await openFile(join(rootDir, name)).catch(() => undefined);
    if (file === undefined) continue;
    await readFile(file.handle, 0, Number.POSITIVE_INFINITY, write, signal);
    return true;
  }
  return false;
}

function text(line: string): Buffer {
  return Buffer.from(`\n${line}\n`);
}
