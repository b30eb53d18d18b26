import type { Duplex } from "node:stream";
import type { Clock, Timer } from "../clock.ts";
import {
  controlFrame,
  dataFrameHeader,
  type Frame,
  FrameParser,
  flagFin,
  frameType,
  resetStatus,
  SpdyError,
  words,
} from "./frame.ts";
import { HeaderDeflater, HeaderInflater, type Headers } from "./header-block.ts";
import { release } from "./release.ts";
import { SpdyStream } from "./stream.ts";

export interface SpdyOptions {
  /** Clients open odd streams, servers even ones. */
  role: "client" | "server";
  clock: Clock;
  /** Called for each stream that the peer opens: `accept` or `destroy` it. Without it all are refused. */
  onStream?: (stream: SpdyStream) => void;
  /** Streams that may be open at a time; the peer's beyond that are refused. */
  streamsMax?: number;
  /** The connection ends when no frame came or went for so long. Default: never. */
  idleMs?: number;
}

// A port-forward holds two streams for each of its TCP connections.
const streamsMaxDefault = 2000;
// moby/spdystream and client-go wait as long for SYN_REPLY.
export const replyTimeoutMs = 30_000;
// A writer's chunk is cut, so that streams take turns.
const payloadBytesMax = 64 * 1024;

/**
 * One end of a SPDY/3.1 connection, as Kubernetes uses it: no flow control, no push, no settings.
 *
 * The socket belongs to the connection from here on. Backpressure goes both ways: a stream that is not read stops the
 * connection's reading, a socket that takes no more holds up the streams' writers.
 */
export class SpdyConnection {
  /** Settles once the connection is over: undefined after an orderly end of the peer or `close`, else the reason. */
  readonly closed: Promise<Error | undefined>;

  readonly #socket: Duplex;
  readonly #options: SpdyOptions;
  readonly #streams = new Map<number, SpdyStream>();
  readonly #replies = new Map<number, (outcome: Error | undefined) => void>();
  readonly #pings = new Map<number, () => void>();
  readonly #parser = new FrameParser();
  readonly #deflater = new HeaderDeflater();
  readonly #inflater = new HeaderInflater();
  readonly #settle: (reason: Error | undefined) => void;
  #nextStreamID: number;
  #nextPingID: number;
  #lastPeerStreamID = 0;
  /** Frames with headers leave one after another, as their compression is one stream. */
  #lastHeaders: Promise<void> = Promise.resolve();
  #isOver = false;
  #overBecause = new SpdyError("the connection is over");
  #isGoingAway = false;
  /** Frames of the last chunk wait. A paused socket may tell its end all the same, which is not to overtake them. */
  #isBusy = false;
  #hasEnded = false;
  #activeAtMs: number;
  #idleTimer: Timer | undefined;
  /** What the reader waits for: room in this stream. */
  #blocked: { stream: SpdyStream; go: () => void } | undefined;

  constructor(socket: Duplex, options: SpdyOptions) {
    this.#socket = socket;
    this.#options = options;
    this.#nextStreamID = options.role === "client" ? 1 : 2;
    this.#nextPingID = this.#nextStreamID;
    const { promise, resolve } = Promise.withResolvers<Error | undefined>();
    this.closed = promise;
    this.#settle = resolve;
    this.#activeAtMs = options.clock.monotonic();
    this.#watchIdle();
    socket.on("error", (err) => this.#end(err));
    socket.on("close", () => this.#end(new SpdyError("the connection closed")));
    socket.on("end", () => {
      this.#hasEnded = true;
      if (!this.#isBusy) this.#onEnd();
    });
    socket.on("data", (chunk: Buffer) => this.#onChunk(chunk));
    socket.resume(); // it may come paused
  }

  get streamCount(): number {
    return this.#streams.size;
  }

  /**
   * Opens a stream and waits for the peer's word.
   *
   * Rejects with SpdyError if the peer refuses it, does not answer in time, or if the connection is over.
   */
  async open(headers: Headers): Promise<SpdyStream> {
    if (this.#isGoingAway) throw new SpdyError("the peer takes no more streams");
    if (this.#streams.size >= (this.#options.streamsMax ?? streamsMaxDefault)) throw new SpdyError("too many streams");
    const { promise, resolve } = Promise.withResolvers<Error | undefined>();
    let stream: SpdyStream | undefined;
    const timer = this.#options.clock.after(replyTimeoutMs, () =>
      resolve(new SpdyError(`no answer within ${replyTimeoutMs / 1000} s`)),
    );
    try {
      await this.#sendHeaders(headers, () => {
        const streamID = this.#nextStreamID;
        this.#nextStreamID += 2;
        stream = this.#addStream(streamID, headers);
        this.#replies.set(streamID, resolve);
        return (block) => controlFrame(frameType.synStream, 0, words(streamID, 0), Buffer.alloc(2), block);
      });
      const refusal = await promise;
      if (refusal !== undefined || stream === undefined) throw refusal ?? this.#overBecause;
      return stream;
    } catch (err) {
      stream?.destroy();
      throw err;
    } finally {
      timer.cancel();
      if (stream !== undefined) this.#replies.delete(stream.streamID);
    }
  }

  /** Asks for a sign of life. Resolves with the answer, or when the connection is over. */
  async ping(): Promise<void> {
    if (this.#isOver) return;
    const id = this.#nextPingID;
    this.#nextPingID += 2;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#pings.set(id, resolve);
    this.#write(controlFrame(frameType.ping, 0, words(id)));
    await promise;
  }

  /** Ends in order: GOAWAY, then FIN behind everything that was written. The peer has what it still sends read. */
  close(): void {
    if (this.#isOver || this.#isGoingAway) return;
    this.#isGoingAway = true;
    this.#write(controlFrame(frameType.goAway, 0, words(this.#lastPeerStreamID, 0)));
    this.#socket.end();
  }

  /** Ends at once; what was not sent is lost. May be called any number of times. */
  destroy(reason?: Error): void {
    this.#end(reason);
    this.#socket.destroy();
  }

  #watchIdle(): void {
    const { idleMs, clock } = this.#options;
    if (idleMs === undefined || this.#isOver) return;
    const restMs = this.#activeAtMs + idleMs - clock.monotonic();
    if (restMs <= 0) this.destroy(new SpdyError(`nothing came or went for ${idleMs / 1000} s`));
    else this.#idleTimer = clock.after(restMs, () => this.#watchIdle());
  }

  #onChunk(chunk: Buffer): void {
    this.#activeAtMs = this.#options.clock.monotonic();
    const frames = this.#parser.push(chunk);
    try {
      const wait = this.#handleSome(frames);
      if (wait === undefined) release(chunk);
      else void this.#handleRest(wait, frames, chunk);
    } catch (err) {
      this.#fail(err);
    }
  }

  /** Takes frames until one has to wait for something. @returns the wait; undefined if none is left */
  #handleSome(frames: Iterator<Frame, void>): Promise<void> | undefined {
    for (let next = frames.next(); next.done !== true && !this.#isOver; next = frames.next()) {
      const frame = next.value;
      const wait = frame.kind === "data" ? this.#onData(frame) : this.#onControl(frame);
      if (wait !== undefined) return wait;
    }
    return undefined;
  }

  async #handleRest(first: Promise<void>, frames: Iterator<Frame, void>, chunk: Buffer): Promise<void> {
    this.#isBusy = true;
    this.#socket.pause();
    try {
      for (let wait: Promise<void> | undefined = first; wait !== undefined; wait = this.#handleSome(frames)) await wait;
      this.#isBusy = false;
      release(chunk);
      this.#socket.resume();
      if (this.#hasEnded) this.#onEnd();
    } catch (err) {
      this.#fail(err);
    }
  }

  #onEnd(): void {
    this.#end(this.#parser.isBetweenFrames ? undefined : new SpdyError("the peer ended in the middle of a frame"));
    this.#socket.end();
  }

  #fail(err: unknown): void {
    this.destroy(err instanceof Error ? err : new SpdyError(String(err)));
  }

  #onData({ streamID, payload, fin }: Frame & { kind: "data" }): Promise<void> | undefined {
    const stream = this.#streams.get(streamID);
    // A stream that was reset may still have data on its way; before the reply the opener has no say in it.
    if (stream === undefined || this.#replies.has(streamID)) return undefined;
    // A copy, so that the chunk it came in can go at once, whenever the stream is read.
    return stream.receive(Buffer.from(payload), fin) ? undefined : this.#roomIn(stream);
  }

  async #roomIn(stream: SpdyStream): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#blocked = { stream, go: resolve };
    await promise;
    this.#blocked = undefined;
  }

  #onControl({ type, flags, payload }: Frame & { kind: "control" }): Promise<void> | undefined {
    switch (type) {
      case frameType.synStream:
        return this.#onSynStream(flags, payload);
      case frameType.synReply:
      case frameType.headers:
        return this.#onHeaders(type, flags, payload);
      case frameType.rstStream: {
        const streamID = wordAt(payload, 0) & 0x7fffffff;
        const status = wordAt(payload, 1);
        this.#replies.get(streamID)?.(new SpdyError(`the peer refused the stream (status ${status})`));
        this.#streams.get(streamID)?.fail("reset");
        this.#streams.delete(streamID);
        return undefined;
      }
      case frameType.ping: {
        const id = wordAt(payload, 0);
        if (id % 2 === (this.#options.role === "client" ? 1 : 0)) {
          this.#pings.get(id)?.();
          this.#pings.delete(id);
          return undefined;
        }
        this.#write(controlFrame(frameType.ping, 0, words(id)));
        return this.#drained(); // a peer that only asks and never reads must not fill our memory
      }
      case frameType.goAway:
        this.#isGoingAway = true;
        return undefined;
      default:
        return undefined; // SETTINGS, WINDOW_UPDATE and whatever else: nothing of it is in use
    }
  }

  async #onSynStream(flags: number, payload: Buffer): Promise<void> {
    const streamID = wordAt(payload, 0) & 0x7fffffff;
    const headers = await this.#inflater.decompress(payload.subarray(10));
    const isPeers = streamID % 2 === (this.#options.role === "client" ? 0 : 1);
    if (!isPeers || streamID <= this.#lastPeerStreamID) throw new SpdyError(`the peer may not open stream ${streamID}`);
    this.#lastPeerStreamID = streamID;
    const { onStream, streamsMax = streamsMaxDefault } = this.#options;
    if (onStream === undefined || this.#isGoingAway || this.#streams.size >= streamsMax) {
      this.#write(controlFrame(frameType.rstStream, 0, words(streamID, resetStatus.refusedStream)));
      await this.#drained();
      return;
    }
    const stream = this.#addStream(streamID, headers);
    if ((flags & flagFin) !== 0) stream.receive(Buffer.alloc(0), true);
    onStream(stream);
  }

  async #onHeaders(type: number, flags: number, payload: Buffer): Promise<void> {
    const streamID = wordAt(payload, 0) & 0x7fffffff;
    await this.#inflater.decompress(payload.subarray(4)); // nobody looks at them, but the next block builds on them
    if (type === frameType.synReply) {
      this.#replies.get(streamID)?.(undefined);
      this.#replies.delete(streamID);
    }
    if ((flags & flagFin) !== 0) this.#streams.get(streamID)?.receive(Buffer.alloc(0), true);
  }

  #addStream(streamID: number, headers: Headers): SpdyStream {
    const stream = new SpdyStream(
      {
        data: (id, payload, fin, sent) => this.#sendData(id, payload, fin, sent),
        reply: async (id, replyHeaders) =>
          await this.#sendHeaders(replyHeaders, () => (block) => controlFrame(frameType.synReply, 0, words(id), block)),
        reset: (id) => {
          if (this.#streams.has(id)) {
            this.#write(controlFrame(frameType.rstStream, 0, words(id, resetStatus.cancel)));
          }
        },
        roomy: (roomy) => {
          if (this.#blocked?.stream === roomy) this.#blocked.go();
        },
        ended: (id) => void this.#streams.delete(id),
      },
      streamID,
      headers,
    );
    this.#streams.set(streamID, stream);
    return stream;
  }

  /** Sends a frame with a block of headers, in turn. `begin` runs when its turn has come. */
  async #sendHeaders(headers: Headers, begin: () => (block: Buffer) => Buffer): Promise<void> {
    const before = this.#lastHeaders;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#lastHeaders = promise;
    try {
      await before;
      if (this.#isOver) throw this.#overBecause;
      const frame = begin();
      this.#write(frame(await this.#deflater.compress(headers)));
    } catch (err) {
      throw this.#isOver ? this.#overBecause : err;
    } finally {
      resolve();
    }
  }

  #sendData(streamID: number, payload: Buffer, fin: boolean, sent: () => void): void {
    if (this.#isOver) {
      sent();
      return;
    }
    this.#activeAtMs = this.#options.clock.monotonic();
    const piece = payload.subarray(0, payloadBytesMax);
    const rest = payload.subarray(piece.length);
    const next = (err?: Error | null) => {
      if (err) this.#end(err); // at once: the socket's own word comes later, and writers would go on till then
      if (rest.length === 0) sent();
      else this.#sendData(streamID, rest, fin, sent);
    };
    const header = dataFrameHeader(streamID, fin && rest.length === 0, piece.length);
    if (piece.length === 0) {
      this.#socket.write(header, next);
      return;
    }
    this.#socket.cork();
    this.#socket.write(header);
    this.#socket.write(piece, next);
    this.#socket.uncork();
  }

  #write(frame: Buffer): void {
    if (this.#isOver) return;
    this.#activeAtMs = this.#options.clock.monotonic();
    this.#socket.write(frame);
  }

  #drained(): Promise<void> | undefined {
    if (!this.#socket.writableNeedDrain || this.#isOver) return undefined;
    const { promise, resolve } = Promise.withResolvers<void>();
    const done = () => {
      this.#socket.off("drain", done).off("close", done);
      resolve();
    };
    this.#socket.on("drain", done).on("close", done);
    return promise;
  }

  #end(reason: Error | undefined): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#idleTimer?.cancel();
    this.#deflater.close();
    this.#inflater.close();
    if (reason !== undefined) this.#overBecause = new SpdyError(reason.message, { cause: reason });
    for (const refuse of this.#replies.values()) refuse(this.#overBecause);
    for (const answered of this.#pings.values()) answered();
    for (const stream of this.#streams.values()) stream.fail("connection lost");
    this.#replies.clear();
    this.#pings.clear();
    this.#streams.clear();
    this.#blocked?.go();
    this.#settle(reason);
  }
}

function wordAt(payload: Buffer, index: number): number {
  if (payload.length < 4 * index + 4) throw new SpdyError("the peer sent a control frame that is too short");
  return payload.readUInt32BE(4 * index);
}
