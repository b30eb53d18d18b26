import { forEachChunk } from "../../lib/chunks.ts";
import type { Clock, Timer } from "../../lib/clock.ts";
import { AgentError, messageOf } from "../../lib/errors.ts";
import { SpdyConnection } from "../../lib/spdy/connection.ts";
import type { SpdyStream } from "../../lib/spdy/stream.ts";
import type { MessagePiece, Peer } from "../../lib/websocket/connection.ts";
import type { Upgrade } from "../port.ts";
import { askRuntime } from "./dial.ts";
import { headerOf } from "./http-head.ts";
import { readBody } from "./refusal.ts";
import { remoteCommandProtocol, type WantedStreams } from "./request.ts";
import { internalError, statusOf } from "./status.ts";
import { acceptWebSocket } from "./websocket.ts";

/** Channels of a session: the first byte of each message. */
const channel = { stdin: 0, stdout: 1, stderr: 2, error: 3, resize: 4, close: 255 } as const;

// Preference order, as client-go's. Runtimes choose v4.
const streamProtocols = [5, 4, 3, 2].map((version) => `v${version}.channel.k8s.io`).concat("channel.k8s.io");

// No message either way for so long ends a session: the reference's and the runtimes' own limit.
export const sessionIdleMs = 4 * 60 * 60 * 1000;
// Keeps the runtime's idle timer from ending a session whose client is still there.
export const runtimePingIntervalMs = 5_000;
// The last words: the client gets the outcome within this time, or not at all.
export const statusTimeoutMs = 10_000;
// A Status is some hundred bytes.
const statusBytesMax = 1 << 20;

export interface RemoteCommand {
  readonly upgrade: Upgrade;
  /** The session's URL at the runtime. */
  readonly url: string;
  readonly wanted: WantedStreams;
  /** "executing command in container" or "attaching to container", for messages. */
  readonly what: string;
  readonly clock: Clock;
}

/**
 * Serves exec or attach to a WebSocket client of protocol v5, and speaks SPDY with the runtime, which knows no v5.
 *
 * ```
 *   client ══ WebSocket, channels 0-4 ══ here ══ SPDY: error, stdin, stdout, stderr, resize ══ runtime
 * ```
 *
 * The upgrade is complete before the runtime is asked, so what fails from then on is told by a Status on the error
 * channel. Rejects only before that, with HttpError.
 */
export async function serveRemoteCommand(command: RemoteCommand): Promise<void> {
  const session = new Session(command);
  await session.serve();
}

class Session {
  readonly #command: RemoteCommand;
  #stdin: SpdyStream | undefined;
  #resize: SpdyStream | undefined;
  /** Input that came before the runtime's streams were there. The client is paused once there is some. */
  #early: { number: number | undefined; data: Buffer }[] = [];
  /** Channels that the client closed before. */
  readonly #earlyEnds = new Set<number>();
  /** The channel of the message that is coming. */
  #channel: number | undefined;
  /** The channel that the message which is coming closes; undefined while it has not said. */
  #closing: number | undefined;
  #isReady = false;
  #peer: Peer | undefined;
  #activeAtMs: number;

  constructor(command: RemoteCommand) {
    this.#command = command;
    this.#activeAtMs = command.clock.monotonic();
  }

  async serve(): Promise<void> {
    const { upgrade, wanted, clock } = this.#command;
    const peer = acceptWebSocket(upgrade, remoteCommandProtocol, clock, (piece, from, done) => {
      this.#onPiece(piece, from, done);
    });
    this.#peer = peer;
    const gone = new AbortController();
    const lost = peer.lost.then(() => gone.abort());
    const idle = this.#watchIdle();
    try {
      const lowest = wanted.stdout ? channel.stdout : wanted.stderr ? channel.stderr : channel.error;
      await peer.send(Buffer.of(lowest)); // says that we are ready
      const status = await this.#talk(peer, gone.signal).catch((err: unknown) =>
        internalError(`error ${this.#command.what}: ${messageOf(err)}`),
      );
      const late = clock.after(statusTimeoutMs, () => peer.terminate());
      await peer.send(Buffer.of(channel.error), Buffer.from(status)).finally(() => late.cancel());
      await peer.close();
    } catch {
      await peer.close(1011); // nobody is left to be told, or one who breaks the protocol and has heard so
    } finally {
      idle.cancel();
      await Promise.all([lost, peer.closed]);
    }
  }

  /** The session with the runtime. @returns the Status that ends it */
  async #talk(peer: Peer, gone: AbortSignal): Promise<string> {
    const { url, wanted, what, clock } = this.#command;
    const answer = await askRuntime(url, spdyRequest, { clock, signal: gone });
    const { socket, head } = answer;
    const onGone = () => socket.destroy();
    gone.addEventListener("abort", onGone);
    try {
      const protocol = headerOf(head.rawHeaders, "x-stream-protocol-version") ?? "";
      if (head.status !== 101) {
        const body = await readBody(answer, clock);
        throw new AgentError("Unavailable", `unable to upgrade connection: ${body.toString().trim() || head.status}`);
      }
      if (!streamProtocols.includes(protocol)) {
        throw new AgentError("Unavailable", `the container runtime chose the unknown stream protocol "${protocol}"`);
      }
      const connection = new SpdyConnection(socket, { role: "client", clock });
      const pings = keepAlive(connection, clock);
      try {
        const hasResize = wanted.tty && !["channel.k8s.io", "v2.channel.k8s.io"].includes(protocol);
        const open = async (streamtype: string) => await connection.open({ streamtype: [streamtype] });
        const error = await open("error");
        const errorText = readText(error);
        this.#stdin = wanted.stdin ? await open("stdin") : undefined;
        const stdout = wanted.stdout ? await open("stdout") : undefined;
        const stderr = wanted.stderr ? await open("stderr") : undefined;
        this.#resize = hasResize ? await open("resize") : undefined;
        this.#begin();
        await Promise.all([this.#forward(stdout, channel.stdout, peer), this.#forward(stderr, channel.stderr, peer)]);
        const text = await errorText;
        return statusOf({ text, protocol, fault: error.fault }, what);
      } finally {
        pings.cancel();
        connection.destroy();
      }
    } finally {
      gone.removeEventListener("abort", onGone);
      socket.destroy();
    }
  }

  /** The runtime's streams are there: input may flow. */
  #begin(): void {
    const inputs = [this.#stdin, this.#resize].filter((stream) => stream !== undefined);
    const onRoom = () => {
      if (!inputs.some(({ writableNeedDrain }) => writableNeedDrain)) this.#peer?.resume();
    };
    for (const stream of inputs) {
      stream.resume(); // its other half is empty, but its end must be seen
      // The runtime may have no use for it any more, and there is no drain then.
      stream.on("drain", onRoom).on("finish", onRoom).on("close", onRoom);
    }
    this.#isReady = true;
    const early = this.#early;
    this.#early = [];
    this.#peer?.resume();
    for (const { number, data } of early) this.#input(number, data, () => {});
    for (const number of this.#earlyEnds) this.#end(number);
  }

  /** The first byte of a message is its channel, the rest is data, in as many pieces as it comes. */
  #onPiece({ payload, isFirst, isLast }: MessagePiece, peer: Peer, done: () => void): void {
    this.#activeAtMs = this.#command.clock.monotonic();
    if (isFirst) this.#channel = undefined;
    let data = payload;
    if (this.#channel === undefined && payload.length > 0) {
      this.#channel = payload[0];
      data = payload.subarray(1);
      this.#closing = undefined;
    }
    if (this.#channel === channel.close) this.#onClosePiece(data, isLast);
    else if (this.#isReady) {
      this.#input(this.#channel, data, done);
      return;
    } else if (data.length > 0 && !this.#earlyEnds.has(this.#channel ?? channel.error)) {
      this.#early.push({ number: this.#channel, data: Buffer.from(data) });
      peer.pause();
    }
    done();
  }

  #input(number: number | undefined, data: Buffer, done: () => void): void {
    const stream = number === channel.stdin ? this.#stdin : number === channel.resize ? this.#resize : undefined;
    if (stream === undefined || data.length === 0 || stream.writableEnded) done();
    else if (!stream.write(data, done)) this.#peer?.pause();
  }

  /** A message that closes one channel, and names it with a single byte. */
  #onClosePiece(data: Buffer, isLast: boolean): void {
    const isTooLong = data.length > (this.#closing === undefined ? 1 : 0);
    this.#closing ??= data[0];
    const which = this.#closing;
    if (isTooLong || (isLast && (which === undefined || which > channel.resize))) {
      this.#peer?.terminate();
      return;
    }
    if (!isLast || which === undefined) return;
    if (this.#isReady) this.#end(which);
    else this.#earlyEnds.add(which);
  }

  #end(number: number): void {
    if (number === channel.stdin) this.#stdin?.end();
    if (number === channel.resize) this.#resize?.end();
  }

  async #forward(stream: SpdyStream | undefined, number: number, peer: Peer): Promise<void> {
    if (stream === undefined) return;
    await forEachChunk(stream, async (chunk) => {
      this.#activeAtMs = this.#command.clock.monotonic();
      await peer.send(Buffer.of(number), chunk);
    });
  }

  #watchIdle(): Timer {
    const { clock } = this.#command;
    let timer: Timer;
    const watch = () => {
      const restMs = this.#activeAtMs + sessionIdleMs - clock.monotonic();
      if (restMs <= 0) this.#peer?.terminate();
      else timer = clock.after(restMs, watch);
    };
    timer = clock.after(sessionIdleMs, watch);
    return { cancel: () => timer.cancel() };
  }
}

function spdyRequest(path: string, host: string): string {
  const lines = [`Host: ${host}`, "Connection: Upgrade", "Upgrade: SPDY/3.1", "Content-Length: 0"];
  const offers = streamProtocols.map((protocol) => `X-Stream-Protocol-Version: ${protocol}`);
  return `POST ${path} HTTP/1.1\r\n${[...lines, ...offers].join("\r\n")}\r\n\r\n`;
}

function keepAlive(connection: SpdyConnection, clock: Clock): Timer {
  let timer: Timer;
  const next = () => {
    timer = clock.after(runtimePingIntervalMs, () => {
      void connection.ping(); // the answer is of no use here: that of a dead one shows by itself
      next();
    });
  };
  next();
  return { cancel: () => timer.cancel() };
}

/** Everything that the error stream says; what is too long is cut. */
async function readText(stream: SpdyStream): Promise<string> {
  const { promise, resolve } = Promise.withResolvers<void>();
  const chunks: Buffer[] = [];
  let bytes = 0;
  stream.on("data", (chunk: Buffer) => {
    if (bytes < statusBytesMax) chunks.push(chunk);
    bytes += chunk.length;
  });
  stream.on("end", resolve).on("close", resolve);
  await promise;
  return Buffer.concat(chunks).toString();
}
