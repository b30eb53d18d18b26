import type { Duplex } from "node:stream";
import type { Clock, Timer } from "../clock.ts";
import { AgentError } from "../errors.ts";
import { release } from "../spdy/release.ts";
import { frameHead, type WebSocketFrame, WebSocketError, WebSocketParser } from "./frames.ts";

// One message; the reference's limit. It passes in pieces and is never held as a whole.
export const messageBytesMax = 32 << 20;
// How long the peer may take to answer our close, and to take what was written before.
export const closeTimeoutMs = 10_000;
// kubectl gives up when no pong came for 61 s. While we do not read, because the runtime takes nothing, its pings stay
// unread, too; a pong that nobody asked for (RFC 6455, section 5.5.3) tells it that we are here, and us if it is not.
export const pongIntervalMs = 5_000;

/** A piece of a message. */
export type MessagePiece = Extract<WebSocketFrame, { kind: "data" }>;

/** A WebSocket connection to a client. Pings are answered by themselves. */
export interface Peer {
  /**
   * Sends a binary message made of two parts. Resolves when the socket has taken it; rejects when the connection is over.
   */
  send(first: Buffer, second?: Buffer): Promise<void>;
  /** As `send`, a text message. */
  sendText(text: string): Promise<void>;
  /** Says close and waits for the end, {@link closeTimeoutMs} at most. Never rejects. */
  close(code?: number, reason?: string): Promise<void>;
  /** Stops reading for a while; pongs go on. The rest of what was read already is still told. */
  pause(): void;
  resume(): void;
  /** Ends at once. */
  terminate(): void;
  /** Settles once the client has broken the protocol, or with `closed`: nothing goes either way any more. Never rejects. */
  readonly lost: Promise<void>;
  /** Settles once the connection is over, whoever ended it. Never rejects. */
  readonly closed: Promise<void>;
}

/**
 * Gets messages in order, in pieces. A piece is a view of the socket's memory, valid until `done` is called, which must
 * happen once for each.
 */
export type OnMessage = (piece: MessagePiece, peer: Peer, done: () => void) => void;

/** Speaks WebSocket, as a server, on a socket whose handshake is complete. It belongs to the result from here on. */
export function serveWebSocket(socket: Duplex, clock: Clock, signal: AbortSignal, onMessage: OnMessage): Peer {
  return new Connection(socket, clock, signal, onMessage);
}

class Connection implements Peer {
  readonly lost: Promise<void>;
  readonly closed: Promise<void>;
  readonly #onLost: () => void;
  readonly #socket: Duplex;
  readonly #clock: Clock;
  readonly #onMessage: OnMessage;
  readonly #parser = new WebSocketParser(messageBytesMax);
  #isPaused = false;
  #isClosing = false;
  /** The client broke the protocol: what it sends means nothing any more. */
  #isBroken = false;
  #pongTimer: Timer | undefined;
  #closeTimer: Timer | undefined;

  constructor(socket: Duplex, clock: Clock, signal: AbortSignal, onMessage: OnMessage) {
    this.#socket = socket;
    this.#clock = clock;
    this.#onMessage = onMessage;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.closed = promise;
    const lost = Promise.withResolvers<void>();
    this.lost = lost.promise;
    this.#onLost = lost.resolve;
    const terminate = () => this.terminate();
    const onClose = () => {
      this.#pongTimer?.cancel();
      this.#closeTimer?.cancel();
      signal.removeEventListener("abort", terminate);
      lost.resolve();
      resolve();
    };
    signal.addEventListener("abort", terminate);
    socket.on("error", terminate).on("close", onClose).on("end", terminate);
    socket.on("drain", () => this.#flow());
    socket.on("data", (chunk: Buffer) => this.#onChunk(chunk));
    socket.resume(); // it may come paused
    if (socket.destroyed) onClose();
    else if (signal.aborted || socket.readableEnded) terminate();
  }

  async send(first: Buffer, second: Buffer = Buffer.alloc(0)): Promise<void> {
    await this.#message("binary", first, second);
  }

  async sendText(text: string): Promise<void> {
    await this.#message("text", Buffer.from(text), Buffer.alloc(0));
  }

  async #message(kind: "binary" | "text", first: Buffer, second: Buffer): Promise<void> {
    if (this.#isClosing || this.#socket.destroyed) throw new AgentError("Unavailable", "the client has gone");
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const head = frameHead(kind, first.length + second.length);
    const sent = (err?: Error | null) => (err ? reject(err) : resolve());
    this.#socket.cork();
    this.#socket.write(head);
    if (second.length > 0) this.#socket.write(first);
    this.#socket.write(second.length > 0 ? second : first, sent);
    this.#socket.uncork();
    await promise;
  }

  async close(code = 1000, reason = ""): Promise<void> {
    if (!this.#isClosing && !this.#socket.destroyed) {
      this.#sayClose(code, reason);
      this.#awaitEnd(); // to see the peer's close
    }
    await this.closed;
  }

  pause(): void {
    if (this.#isPaused || this.#isClosing) return;
    this.#isPaused = true;
    this.#socket.pause();
    this.#pongs();
  }

  resume(): void {
    if (!this.#isPaused) return;
    this.#isPaused = false;
    this.#pongTimer?.cancel();
    this.#flow();
  }

  terminate(): void {
    this.#isClosing = true;
    this.#socket.destroy();
  }

  #flow(): void {
    if (!this.#isPaused) this.#socket.resume();
  }

  #pongs(): void {
    this.#pongTimer = this.#clock.after(pongIntervalMs, () => {
      this.#control("pong", Buffer.alloc(0));
      this.#pongs();
    });
  }

  #onChunk(chunk: Buffer): void {
    let users = 1;
    const done = () => {
      users -= 1;
      if (users === 0) release(chunk);
    };
    try {
      if (this.#isBroken) return;
      for (const frame of this.#parser.push(chunk)) {
        if (this.#socket.destroyed) break;
        if (frame.kind === "data") {
          if (this.#isClosing) continue;
          users += 1;
          this.#onMessage(frame, this, done);
        } else if (frame.kind === "ping") this.#onPing(frame.payload);
        else if (frame.kind === "close") this.#onClose(frame.payload);
      }
    } catch (err) {
      if (!(err instanceof WebSocketError)) throw err;
      this.#onBroken(err);
    } finally {
      done();
    }
  }

  /**
   * What comes behind a broken frame means nothing. It is read all the same, until the client's FIN: closing with bytes
   * unread would reset the connection, and the close code might be lost on its way.
   */
  #onBroken({ code, message }: WebSocketError): void {
    this.#isBroken = true;
    if (!this.#isClosing) this.#sayClose(code, message);
    this.#socket.end();
    this.#awaitEnd();
    this.#onLost();
  }

  /** Reads until the peer has closed, {@link closeTimeoutMs} at most. */
  #awaitEnd(): void {
    this.resume();
    this.#socket.resume();
    this.#closeTimer ??= this.#clock.after(closeTimeoutMs, () => this.terminate());
  }

  #onPing(payload: Buffer): void {
    this.#control("pong", payload);
    // A peer that only asks and never reads must not fill our memory: it is read again after the drain.
    if (this.#socket.writableNeedDrain) this.#socket.pause();
  }

  #onClose(payload: Buffer): void {
    if (!this.#isClosing) this.#sayClose(payload.length >= 2 ? payload.readUInt16BE(0) : 1000, "");
    this.#socket.end();
    this.#closeTimer ??= this.#clock.after(closeTimeoutMs, () => this.terminate());
  }

  #sayClose(code: number, reason: string): void {
    const payload = Buffer.concat([Buffer.of(code >> 8, code & 0xff), Buffer.from(reason).subarray(0, 120)]);
    this.#control("close", payload);
    this.#isClosing = true;
  }

  #control(kind: "close" | "pong", payload: Buffer): void {
    if (!this.#isClosing && this.#socket.writable) {
      this.#socket.write(Buffer.concat([frameHead(kind, payload.length), payload]));
    }
  }
}
