import type { Duplex } from "node:stream";
import type { Clock } from "../../../lib/clock.ts";
import { AgentError } from "../../../lib/errors.ts";
import { SpdyConnection } from "../../../lib/spdy/connection.ts";
import type { SpdyStream } from "../../../lib/spdy/stream.ts";
import { type CommandChannels, outcomeText, type SessionOutcome, type WantedStreams } from "./channels.ts";

// CRI's streaming server waits as long for the client to open its streams.
export const streamCreationTimeoutMs = 30_000;
// Once everything was said, the client has this long to take it and close.
export const closeTimeoutMs = 10_000;

// Terminals have sizes from this version on.
const sizesVersionMin = 3;

// Five are the most that a session has; some more, so that the one too many is refused by name.
const streamsMax = 16;

export interface SpdyCommandOptions {
  readonly wanted: WantedStreams;
  readonly version: number;
  readonly idleMs: number;
  readonly clock: Clock;
}

/**
 * Waits for the streams of a session on a connection that was just upgraded. The socket belongs to the session.
 *
 * Rejects with AgentError, the connection being over, if the client does not open all that it asked for in
 * {@link streamCreationTimeoutMs}.
 */
export async function acceptSpdyCommand(socket: Duplex, options: SpdyCommandOptions): Promise<CommandChannels> {
  const { wanted, version, idleMs, clock } = options;
  const expected = new Set(streamTypes(wanted, version));
  const streams = new Map<string, SpdyStream>();
  const complete = Promise.withResolvers<void>();
  const connection = new SpdyConnection(socket, {
    ...{ role: "server", clock, idleMs, streamsMax },
    onStream: (stream) => {
      const type = stream.header("streamtype") ?? "";
      if (!expected.has(type) || streams.has(type)) {
        stream.destroy();
        return;
      }
      streams.set(type, stream);
      // Its error is that of the connection, which ends the wait.
      stream.accept().then(
        () => void (streams.size === expected.size && complete.resolve()),
        () => {},
      );
    },
  });
  const late = clock.after(streamCreationTimeoutMs, () =>
    complete.reject(new AgentError("DeadlineExceeded", "the client did not open its streams in time")),
  );
  const lost = connection.closed.then(() => {
    throw new AgentError("Canceled", "the client has gone");
  });
  lost.catch(() => {});
  try {
    await Promise.race([complete.promise, lost]);
  } catch (err) {
    connection.destroy();
    throw err;
  } finally {
    late.cancel();
  }
  return new SpdyChannels(connection, streams, version, clock);
}

/** Types of the streams that a client opens for a session. */
export function streamTypes({ stdin, stdout, stderr, tty }: WantedStreams, version: number): string[] {
  return [
    "error",
    ...(stdin ? ["stdin"] : []),
    ...(stdout ? ["stdout"] : []),
    ...(stderr && !tty ? ["stderr"] : []),
    ...(tty && version >= sizesVersionMin ? ["resize"] : []),
  ];
}

class SpdyChannels implements CommandChannels {
  readonly stdin: SpdyStream | undefined;
  readonly sizes: SpdyStream | undefined;
  readonly gone: AbortSignal;
  readonly #connection: SpdyConnection;
  readonly #streams: ReadonlyMap<string, SpdyStream>;
  readonly #version: number;
  readonly #clock: Clock;

  constructor(connection: SpdyConnection, streams: ReadonlyMap<string, SpdyStream>, version: number, clock: Clock) {
    this.#connection = connection;
    this.#streams = streams;
    this.#version = version;
    this.#clock = clock;
    this.stdin = streams.get("stdin");
    this.sizes = streams.get("resize");
    const gone = new AbortController();
    this.gone = gone.signal;
    void connection.closed.then(() => gone.abort());
    // Nobody has anything to say on these, but what is not read would stop the whole connection.
    for (const type of ["error", "stdout", "stderr"]) streams.get(type)?.resume();
  }

  async write(stream: "stdout" | "stderr", chunk: Buffer): Promise<void> {
    await written(this.#streams.get(stream), chunk);
  }

  probe(): void {
    void this.#connection.ping();
  }

  async finish(outcome: SessionOutcome): Promise<void> {
    const connection = this.#connection;
    const late = this.#clock.after(closeTimeoutMs, () => connection.destroy());
    try {
      this.stdin?.resume();
      this.sizes?.resume();
      for (const type of ["stdout", "stderr"]) this.#streams.get(type)?.end();
      const error = this.#streams.get("error");
      const text = outcomeText(outcome, this.#version);
      if (text !== "") await written(error, Buffer.from(text));
      error?.end();
      connection.close();
      await connection.closed;
    } finally {
      late.cancel();
      connection.destroy();
    }
  }
}

/** Resolves once the socket has taken it, or never will: its memory may be given back only then. */
async function written(stream: SpdyStream | undefined, chunk: Buffer): Promise<void> {
  if (stream === undefined || stream.destroyed || stream.writableEnded) return;
  const { promise, resolve } = Promise.withResolvers<void>();
  stream.write(chunk, () => resolve());
  await promise;
}
