import { Readable, type Duplex } from "node:stream";
import type { Clock, Timer } from "../../../lib/clock.ts";
import { type MessagePiece, type Peer, serveWebSocket } from "../../../lib/websocket/connection.ts";

export interface WebSocketChannelsOptions {
  /** Text messages: a digit for the channel, then base64. Else binary ones: a byte for the channel, then the data. */
  readonly isBase64: boolean;
  /** Channels that the client may write to; what comes on others is dropped. */
  readonly inputs: readonly number[];
  /** Whether a message on channel 255 closes the input that it names. */
  readonly canClose: boolean;
  readonly idleMs: number;
  readonly clock: Clock;
}

const closeChannel = 255;
const digitZero = 0x30;

/** Kubernetes' channels over WebSocket: the first byte of each message says which one the rest is of. */
export class WebSocketChannels {
  /** Aborts when the client is lost. */
  readonly gone: AbortSignal;
  readonly #options: WebSocketChannelsOptions;
  readonly #inputs = new Map<number, Input>();
  readonly #peer: Peer;
  readonly #stop = new AbortController();
  /** The channel of the message which is coming; undefined while it has not said. */
  #channel: number | undefined;
  /** What of the message which is coming makes no whole group of four base64 characters yet. */
  #base64Rest = "";
  #activeAtMs: number;
  #idleTimer: Timer | undefined;

  /** @param socket whose handshake is complete; it belongs to the channels from here on */
  constructor(socket: Duplex, options: WebSocketChannelsOptions) {
    this.#options = options;
    const { inputs, clock } = options;
    for (const number of inputs) this.#inputs.set(number, new Input(() => this.#flow()));
    this.#activeAtMs = clock.monotonic();
    this.#peer = serveWebSocket(socket, clock, this.#stop.signal, (piece, _peer, done) => {
      this.#onPiece(piece);
      done();
    });
    const gone = new AbortController();
    this.gone = gone.signal;
    void this.#peer.lost.then(() => {
      this.#idleTimer?.cancel();
      gone.abort();
      for (const input of this.#inputs.values()) input.finish();
    });
    this.#watchIdle();
  }

  /** What the client sends on a channel. */
  input(number: number): Readable | undefined {
    return this.#inputs.get(number);
  }

  /** Sends a message. Resolves once the socket has taken it, or never will. */
  async send(channel: number, data: Buffer): Promise<void> {
    this.#activeAtMs = this.#options.clock.monotonic();
    const sent = this.#options.isBase64
      ? this.#peer.sendText(`${channel}${data.toString("base64")}`)
      : this.#peer.send(Buffer.of(channel), data);
    await sent.catch(() => {}); // who is lost is told by `gone`
  }

  /** Says close and waits for the client's. Never rejects. */
  async close(): Promise<void> {
    for (const input of this.#inputs.values()) input.discard();
    await this.#peer.close();
  }

  /** Ends at once. */
  destroy(): void {
    this.#stop.abort();
  }

  #onPiece({ payload, isFirst, isLast, isBinary }: MessagePiece): void {
    this.#activeAtMs = this.#options.clock.monotonic();
    if (isFirst) {
      this.#channel = undefined;
      this.#base64Rest = "";
    }
    let data = payload;
    if (this.#channel === undefined) {
      if (payload.length === 0) return;
      this.#channel = (payload[0] ?? 0) - (this.#options.isBase64 ? digitZero : 0);
      data = payload.subarray(1);
    }
    if (isBinary === this.#options.isBase64) return; // nothing that this protocol has
    if (this.#channel === closeChannel && this.#options.canClose) {
      for (const number of data) this.#inputs.get(number)?.finish();
      return;
    }
    const input = this.#inputs.get(this.#channel);
    if (input === undefined) return;
    // A copy, so that the socket's memory can go at once.
    const bytes = this.#options.isBase64 ? this.#decode(data, isLast) : Buffer.from(data);
    if (bytes.length > 0 && !input.offer(bytes)) this.#peer.pause();
  }

  #decode(piece: Buffer, isLast: boolean): Buffer {
    const text = this.#base64Rest + piece.toString("latin1");
    const whole = isLast ? text.length : text.length - (text.length % 4);
    this.#base64Rest = text.slice(whole);
    return Buffer.from(text.slice(0, whole), "base64");
  }

  /** An input has room again: the client is read once all have. */
  #flow(): void {
    if (![...this.#inputs.values()].some(({ isFull }) => isFull)) this.#peer.resume();
  }

  #watchIdle(): void {
    const { idleMs, clock } = this.#options;
    const restMs = this.#activeAtMs + idleMs - clock.monotonic();
    if (restMs <= 0) this.destroy();
    else this.#idleTimer = clock.after(restMs, () => this.#watchIdle());
  }
}

// As a SPDY stream holds.
const inputBytesMax = 128 * 1024;

class Input extends Readable {
  isFull = false;
  #isDone = false;
  readonly #onRoom: () => void;

  constructor(onRoom: () => void) {
    super({ highWaterMark: inputBytesMax });
    this.#onRoom = onRoom;
  }

  /** @returns false if there is no room for more: `onRoom` is called when there is */
  offer(bytes: Buffer): boolean {
    if (this.#isDone) return true;
    this.isFull = !this.push(bytes);
    return !this.isFull;
  }

  /** No more comes. */
  finish(): void {
    if (this.#isDone) return;
    this.#isDone = true;
    this.push(null);
  }

  /** Nobody wants what comes. */
  discard(): void {
    this.finish();
    this.resume();
  }

  override _read(): void {
    if (!this.isFull) return;
    this.isFull = false;
    this.#onRoom();
  }
}
