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
  const units = await journalUnits(journalctl, signal);
  const isUnit = (service: string) => units.has(`${service}.service`) || units.has(service);
  const known = services.filter(isUnit);
  const others = services.filter((service) => !isUnit(service));
  if (known.length > 0) {
    const result = await execStream(journalctl, journalArguments(known, options), { write, signal });
    // What it has to say about a bad end it has written itself.
    if (result.failure === "spawn") await write(text(`journal of ${known.join(", ")} not read: ${result.message}`));
  }
  if (others.length > 0 && Object.keys(options).length > 0) {
    const list = others.join(", ");
    await write(text(`the journal does not know ${list}, and options do not apply to log files: try without options`));
    return;
  }
  for (const service of others) await writeServiceFile(rootDir, service, write, signal);
}

/** Takes pieces of a body, compresses them, and sends them on at the client's pace. Dispose it. */
export class GzipBody {
  readonly #gzip = createGzip({ level: constants.Z_BEST_SPEED });
  readonly #sent: Promise<void>;

  constructor(write: Write) {
    this.#gzip.on("error", () => {}); // whoever writes or ends hears of it
    this.#sent = this.#send(write);
    this.#sent.catch(() => this.#gzip.destroy());
  }

  async write(chunk: Buffer): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.#gzip.write(chunk, (err) => {
      if (err) reject(err);
      else resolve();
    });
    // A stream that is destroyed while it is full forgets the callback.
    await Promise.race([promise, this.#sent]);
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

// Asked for each query: units come and go, and people ask seldom.
async function journalUnits(journalctl: string, signal: AbortSignal): Promise<ReadonlySet<string>> {
  const { stdout } = await exec(journalctl, ["--field=_SYSTEMD_UNIT"], { timeoutMs: unitsTimeoutMs, signal });
  return new Set(stdout.split("\n"));
}

// Part of the limit of the whole query; a journal that takes longer to say its units is not usable.
const unitsTimeoutMs = 10_000;

async function writeServiceFile(rootDir: string, service: string, write: Write, signal: AbortSignal): Promise<void> {
  // The name holds no slash; these two would name a directory outside or the root itself.
  const names = service === "." || service === ".." ? [] : [service, `${service}.log`, join(service, `${service}.log`)];
  for (const name of names) {
    await using file = await openFile(join(rootDir, name)).catch(() => undefined);
    if (file === undefined) continue;
    await readFile(file.handle, 0, Number.POSITIVE_INFINITY, write, signal);
    return;
  }
  await write(
    text(`no log of ${service}: the journal does not know it, and there is no file ${service}.log in ${rootDir}`),
  );
}

function text(line: string): Buffer {
  return Buffer.from(`\n${line}\n`);
}
