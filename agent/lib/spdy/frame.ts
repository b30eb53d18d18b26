/** Types of control frames that mean something here; others are skipped. */
export const frameType = {
  synStream: 1,
  synReply: 2,
  rstStream: 3,
  settings: 4,
  ping: 6,
  goAway: 7,
  headers: 8,
  windowUpdate: 9,
} as const;

/** The flag by which a sender closes its half of a stream. */
export const flagFin = 0x01;

/** Status of RST_STREAM. */
export const resetStatus = { refusedStream: 3, cancel: 5 } as const;

const spdyVersion = 3;
const frameHeaderBytes = 8;
// Control frames are kept whole until they are complete. A compressed block of headers is the only one that can be long;
// those in use hold some hundred bytes.
export const controlFrameBytesMax = 1 << 20;

/**
 * What the parser tells. A data frame comes in as many pieces as it arrives in; `fin` is only on the last one, which may
 * be empty. Pieces are views of the chunks that were pushed.
 */
export type Frame =
  | { readonly kind: "control"; readonly type: number; readonly flags: number; readonly payload: Buffer }
  | { readonly kind: "data"; readonly streamID: number; readonly fin: boolean; readonly payload: Buffer };

/** A peer that does not speak SPDY/3 as agreed. The connection cannot go on. */
export class SpdyError extends Error {
  override readonly name = "SpdyError";
}

/** Cuts a byte stream into frames. Holds at most one control frame, and nothing of data frames. */
export class FrameParser {
  readonly #header = Buffer.alloc(frameHeaderBytes);
  #headerBytes = 0;
  #isControl = false;
  #flags = 0;
  /** Payload bytes of the present frame still to come. */
  #missing = 0;
  #payload: Buffer | undefined;
  #payloadBytes = 0;

  /** True if the bytes so far end with a whole frame. */
  get isBetweenFrames(): boolean {
    return this.#headerBytes === 0;
  }

  /**
   * Takes the next bytes of the connection. Frames must be taken out before the next call.
   *
   * Throws SpdyError for another version of the protocol and for control frames above {@link controlFrameBytesMax}.
   */
  *push(chunk: Buffer): Generator<Frame, void, void> {
    let at = 0;
    while (at < chunk.length) {
      if (this.#headerBytes < frameHeaderBytes) {
        const count = Math.min(frameHeaderBytes - this.#headerBytes, chunk.length - at);
        chunk.copy(this.#header, this.#headerBytes, at, at + count);
        this.#headerBytes += count;
        at += count;
        if (this.#headerBytes < frameHeaderBytes) return;
        this.#begin();
        if (this.#missing > 0) continue;
      }
      const piece = chunk.subarray(at, at + this.#missing);
      at += piece.length;
      this.#missing -= piece.length;
      const isLast = this.#missing === 0;
      if (isLast) this.#headerBytes = 0;
      if (!this.#isControl) {
        const fin = isLast && (this.#flags & flagFin) !== 0;
        // An empty piece says nothing unless it ends the stream.
        if (piece.length > 0 || fin) yield { kind: "data", streamID: this.#streamID(), fin, payload: piece };
      } else {
        const payload = this.#collect(piece, isLast);
        if (payload !== undefined) yield { kind: "control", type: this.#type(), flags: this.#flags, payload };
      }
    }
  }

  #begin(): void {
    this.#isControl = ((this.#header[0] ?? 0) & 0x80) !== 0;
    this.#flags = this.#header[4] ?? 0;
    this.#missing = this.#header.readUIntBE(5, 3);
    if (!this.#isControl) return;
    const version = this.#header.readUInt16BE(0) & 0x7fff;
    if (version !== spdyVersion) throw new SpdyError(`the peer sent a frame of SPDY version ${version}, wanted 3`);
    if (this.#missing > controlFrameBytesMax) {
      throw new SpdyError(`the peer sent a control frame of ${this.#missing} bytes, at most ${controlFrameBytesMax}`);
    }
    this.#payload = undefined;
    this.#payloadBytes = 0;
  }

  /** @returns the payload when it is complete */
  #collect(piece: Buffer, isLast: boolean): Buffer | undefined {
    if (this.#payload === undefined) {
      if (isLast) return piece;
      this.#payload = Buffer.allocUnsafe(piece.length + this.#missing);
    }
    this.#payloadBytes += piece.copy(this.#payload, this.#payloadBytes);
    if (!isLast) return undefined;
    const whole = this.#payload;
    this.#payload = undefined;
    return whole;
  }

  #type(): number {
    return this.#header.readUInt16BE(2);
  }

  #streamID(): number {
    return this.#header.readUInt32BE(0) & 0x7fffffff;
  }
}

/** The eight bytes before a data frame's payload. */
export function dataFrameHeader(streamID: number, fin: boolean, payloadBytes: number): Buffer {
  const header = Buffer.allocUnsafe(frameHeaderBytes);
  header.writeUInt32BE(streamID, 0);
  header[4] = fin ? flagFin : 0;
  header.writeUIntBE(payloadBytes, 5, 3);
  return header;
}

/** A whole control frame. */
export function controlFrame(type: number, flags: number, ...payload: Buffer[]): Buffer {
  const header = Buffer.allocUnsafe(frameHeaderBytes);
  header.writeUInt16BE(0x8000 | spdyVersion, 0);
  header.writeUInt16BE(type, 2);
  header[4] = flags;
  header.writeUIntBE(
    payload.reduce((sum, part) => sum + part.length, 0),
    5,
    3,
  );
  return Buffer.concat([header, ...payload]);
}

/** 32-bit numbers, big endian: what most control frames are made of. */
export function words(...values: number[]): Buffer {
  const bytes = Buffer.allocUnsafe(4 * values.length);
  for (const [i, value] of values.entries()) bytes.writeUInt32BE(value, 4 * i);
  return bytes;
}
