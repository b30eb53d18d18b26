import { Duplex } from "node:stream";
import type { Headers } from "./header-block.ts";

/** What a stream needs of its connection. */
export interface StreamLink {
  /** Sends bytes; `sent` is called once the socket has taken them, or will never. */
  data(streamID: number, payload: Buffer, fin: boolean, sent: () => void): void;
  reply(streamID: number, headers: Headers): Promise<void>;
  reset(streamID: number): void;
  /** The stream has room again. */
  roomy(stream: SpdyStream): void;
  /** The stream has ended in both directions. */
  ended(streamID: number): void;
}

/** Why a stream's incoming half ended other than by the peer's FIN. */
export type StreamFault = "reset" | "connection lost";

// Per stream and direction: two chunks of a socket. With 100 sessions of three streams that is less than 40 MB at worst.
const bufferBytesMax = 128 * 1024;

/**
 * One stream of a SPDY connection: a Duplex whose `end` half-closes it and whose `destroy` resets it.
 *
 * Whatever arrived stays readable. If the peer resets the stream or the connection is lost, reading ends as if it were
 * complete, `fault` says why, and what is written after that is dropped: a session's last words often come right before
 * its end. What is read belongs to the reader alone. A stream that nobody reads stops the whole connection, as SPDY knows no flow control here.
 */
export class SpdyStream extends Duplex {
  readonly streamID: number;
  /** As the opener sent them. */
  readonly headers: Headers;
  readonly #link: StreamLink;
  #fault: StreamFault | undefined;
  #receivedFin = false;
  #sentFin = false;

  constructor(link: StreamLink, streamID: number, headers: Headers) {
    super({ allowHalfOpen: true, highWaterMark: bufferBytesMax });
    this.#link = link;
    this.streamID = streamID;
    this.headers = headers;
    this.on("error", () => {}); // what a stream dies of is told by `fault` and by the connection
  }

  get fault(): StreamFault | undefined {
    return this.#fault;
  }

  /** First value of a header; undefined without it. */
  header(name: string): string | undefined {
    return this.headers[name]?.[0];
  }

  /** Lets the peer send: SYN_REPLY. For streams that the peer opened; `destroy` refuses one. */
  async accept(headers: Headers = {}): Promise<void> {
    await this.#link.reply(this.streamID, headers);
  }

  /** For the connection: bytes or the FIN came. @returns false if there is no room for more */
  receive(payload: Buffer, fin: boolean): boolean {
    if (this.#receivedFin || this.destroyed) return true;
    const hasRoom = payload.length === 0 || this.push(payload);
    if (fin) {
      this.#receivedFin = true;
      this.push(null);
    }
    return hasRoom || this.#receivedFin;
  }

  /** For the connection: nothing more will come or go. */
  fail(fault: StreamFault): void {
    if (this.#fault !== undefined || this.destroyed) return;
    if (!this.#receivedFin) {
      this.#fault = fault;
      this.#receivedFin = true;
      this.push(null);
    }
    this.#sentFin = true;
    this.end();
  }

  override _read(): void {
    this.#link.roomy(this);
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: () => void): void {
    if (this.#sentFin) done();
    else this.#link.data(this.streamID, chunk, false, done);
  }

  override _final(done: () => void): void {
    if (this.#sentFin) {
      done();
      return;
    }
    this.#sentFin = true;
    this.#link.data(this.streamID, Buffer.alloc(0), true, done);
  }

  override _destroy(err: Error | null, done: (err: Error | null) => void): void {
    if (!this.#sentFin || !this.#receivedFin) {
      this.#fault ??= "reset";
      this.#link.reset(this.streamID);
    }
    this.#link.roomy(this);
    this.#link.ended(this.streamID);
    done(err);
  }
}
