/**
 * What the parser tells. A message comes in as many pieces as it arrives in: `isFirst` and `isLast` say where it begins
 * and ends; pieces may be empty. They are views of the chunks that were pushed, unmasked in place. Control frames are whole.
 */
export type WebSocketFrame =
  | {
      readonly kind: "data";
      readonly isBinary: boolean;
      readonly isFirst: boolean;
      readonly isLast: boolean;
      readonly payload: Buffer;
    }
  | { readonly kind: "close" | "ping" | "pong"; readonly payload: Buffer };

/** A client that breaks the protocol; `code` is what to close with. */
export class WebSocketError extends Error {
  override readonly name = "WebSocketError";
  readonly code: number;

  constructor(code: 1002 | 1009, message: string) {
    super(message);
    this.code = code;
  }
}

const opcode = { continuation: 0, text: 1, binary: 2, close: 8, ping: 9, pong: 10 } as const;
const controlBytesMax = 125;

/**
 * Cuts what a client sends into frames (RFC 6455, section 5), as a server reads them: without extensions, always masked.
 * Holds at most one control frame, and nothing of messages.
 */
export class WebSocketParser {
  readonly #messageBytesMax: number;
  /** Longest head: 2 bytes, 8 of length, 4 of mask. */
  readonly #head = Buffer.alloc(14);
  #headBytes = 0;
  #headWanted = 2;
  #isFinal = false;
  #opcode: number = opcode.continuation;
  /** Payload bytes of the present frame still to come, and those that came. */
  #missing = 0;
  #taken = 0;
  #control: Buffer[] = [];
  /** The message whose frames are coming. */
  #message: { isBinary: boolean; isFirst: boolean; bytes: number } | undefined;

  constructor(messageBytesMax: number) {
    this.#messageBytesMax = messageBytesMax;
  }

  /** Takes the next bytes. Throws WebSocketError; the connection cannot go on then. */
  *push(chunk: Buffer): Generator<WebSocketFrame, void, void> {
    let at = 0;
    while (at < chunk.length) {
      if (this.#headBytes < this.#headWanted) {
        const count = chunk.copy(this.#head, this.#headBytes, at, at + this.#headWanted - this.#headBytes);
        this.#headBytes += count;
        at += count;
        if (this.#headBytes < this.#headWanted || !this.#readHead()) continue;
        if (this.#missing > 0) continue;
      }
      const piece = chunk.subarray(at, at + this.#missing);
      at += piece.length;
      unmask(piece, this.#head.subarray(this.#headWanted - 4, this.#headWanted), this.#taken);
      this.#missing -= piece.length;
      this.#taken += piece.length;
      const frame = this.#piece(piece);
      if (this.#missing === 0) {
        this.#headBytes = 0;
        this.#headWanted = 2;
      }
      if (frame !== undefined) yield frame;
    }
  }

  /** @returns true if the head is complete */
  #readHead(): boolean {
    const [first = 0, second = 0] = this.#head;
    const short = second & 0x7f;
    if (this.#headWanted === 2) {
      if ((first & 0x70) !== 0) throw new WebSocketError(1002, "an extension that was not agreed on");
      if ((second & 0x80) === 0) throw new WebSocketError(1002, "a frame without a mask");
      this.#headWanted = 2 + (short === 126 ? 2 : short === 127 ? 8 : 0) + 4;
      return false;
    }
    this.#isFinal = (first & 0x80) !== 0;
    this.#opcode = first & 0x0f;
    this.#taken = 0;
    this.#missing = short < 126 ? short : short === 126 ? this.#head.readUInt16BE(2) : this.#longLength();
    if (this.#opcode >= opcode.close) this.#beginControl();
    else this.#beginData();
    return true;
  }

  #longLength(): number {
    const length = this.#head.readBigUInt64BE(2);
    if (length > BigInt(this.#messageBytesMax)) throw new WebSocketError(1009, `a message of ${length} bytes`);
    return Number(length);
  }

  #beginControl(): void {
    if (!this.#isFinal || this.#missing > controlBytesMax) throw new WebSocketError(1002, "a control frame too long");
    if (this.#opcode > opcode.pong) throw new WebSocketError(1002, `a frame of the unknown type ${this.#opcode}`);
    this.#control = [];
  }

  #beginData(): void {
    const isContinued = this.#opcode === opcode.continuation;
    if (this.#opcode > opcode.binary) throw new WebSocketError(1002, `a frame of the unknown type ${this.#opcode}`);
    if (isContinued !== (this.#message !== undefined)) throw new WebSocketError(1002, "a message within another");
    this.#message ??= { isBinary: this.#opcode === opcode.binary, isFirst: true, bytes: 0 };
    this.#message.bytes += this.#missing;
    if (this.#message.bytes > this.#messageBytesMax) {
      throw new WebSocketError(1009, `a message of more than ${this.#messageBytesMax} bytes`);
    }
  }

  #piece(payload: Buffer): WebSocketFrame | undefined {
    if (this.#opcode >= opcode.close) {
      this.#control.push(Buffer.from(payload));
      if (this.#missing > 0) return undefined;
      const kind = this.#opcode === opcode.close ? "close" : this.#opcode === opcode.ping ? "ping" : "pong";
      return { kind, payload: Buffer.concat(this.#control) };
    }
    const message = this.#message;
    if (message === undefined) return undefined;
    const { isBinary, isFirst } = message;
    const isLast = this.#isFinal && this.#missing === 0;
    message.isFirst = false;
    if (isLast) this.#message = undefined;
    return { kind: "data", isBinary, isFirst, isLast, payload };
  }
}

/** XORs with the mask, whose first byte belongs to payload byte 0; `offset` is the place of `bytes` in the payload. */
function unmask(bytes: Buffer, mask: Buffer, offset: number): void {
  let i = 0;
  const byByte = (end: number) => {
    for (; i < end; i += 1) bytes[i] = (bytes[i] ?? 0) ^ (mask[(offset + i) & 3] ?? 0);
  };
  byByte(Math.min(bytes.length, (4 - (bytes.byteOffset & 3)) & 3)); // words must be aligned
  const wordCount = (bytes.length - i) >> 2;
  if (wordCount > 0) {
    const words = new Uint32Array(bytes.buffer, bytes.byteOffset + i, wordCount);
    const rotated = Uint8Array.from([0, 1, 2, 3], (k) => mask[(offset + i + k) & 3] ?? 0);
    const [word = 0] = new Uint32Array(rotated.buffer);
    for (let k = 0; k < wordCount; k += 1) words[k] = (words[k] ?? 0) ^ word;
    i += wordCount * 4;
  }
  byByte(bytes.length);
}

/** The head of a frame that a server sends. */
export function frameHead(kind: "text" | "binary" | "close" | "ping" | "pong", payloadBytes: number): Buffer {
  const lengthBytes = payloadBytes < 126 ? 0 : payloadBytes < 65_536 ? 2 : 8;
  const head = Buffer.alloc(2 + lengthBytes);
  head[0] = 0x80 | opcode[kind];
  if (lengthBytes === 0) head[1] = payloadBytes;
  if (lengthBytes === 2) {
    head[1] = 126;
    head.writeUInt16BE(payloadBytes, 2);
  }
  if (lengthBytes === 8) {
    head[1] = 127;
    head.writeBigUInt64BE(BigInt(payloadBytes), 2);
  }
  return head;
}
