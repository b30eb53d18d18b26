import { constants, createDeflate, createInflate, type Deflate, type Inflate } from "node:zlib";
import { spdyDictionary } from "./dictionary.ts";
import { SpdyError } from "./frame.ts";

/** Names in lower case → values, in order. */
export type Headers = Readonly<Record<string, readonly string[]>>;

// What moby/spdystream accepts of a peer: 1000 headers of at most 1 MiB each.
const headersMax = 1000;
// A whole block, when inflated. Far above what anybody sends, and little enough that compressed rubbish costs nothing.
export const headerBlockBytesMax = 1 << 20;

/** A block of headers before compression. Names are made lower case; several values of a name are joined by NUL. */
export function encodeHeaders(headers: Headers): Buffer {
  const parts: Buffer[] = [];
  const add = (text: string) => {
    const bytes = Buffer.from(text, "utf8");
    parts.push(length(bytes.length), bytes);
  };
  const entries = Object.entries(headers);
  for (const [name, values] of entries) {
    add(name.toLowerCase());
    add(values.join("\0"));
  }
  return Buffer.concat([length(entries.length), ...parts]);
}

/** Reverses {@link encodeHeaders}. Throws SpdyError for anything that is no such block. */
export function decodeHeaders(block: Buffer): Headers {
  let at = 0;
  const number = () => {
    if (at + 4 > block.length) throw new SpdyError("a block of headers ends in the middle");
    at += 4;
    return block.readUInt32BE(at - 4);
  };
  const text = () => {
    const bytes = number();
    if (at + bytes > block.length) throw new SpdyError("a block of headers ends in the middle");
    at += bytes;
    return block.toString("utf8", at - bytes, at);
  };
  const count = number();
  if (count > headersMax) throw new SpdyError(`a block of ${count} headers, at most ${headersMax}`);
  const headers = new Map<string, string[]>();
  for (let i = 0; i < count; i += 1) {
    const name = text();
    if (name === "") throw new SpdyError("a header without a name");
    if (name !== name.toLowerCase()) throw new SpdyError("a header whose name is not in lower case");
    if (headers.has(name)) throw new SpdyError("a header that is there twice");
    headers.set(name, text().split("\0"));
  }
  return Object.fromEntries(headers);
}

function length(value: number): Buffer {
  const bytes = Buffer.allocUnsafe(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

/**
 * Compresses the blocks that one side of a connection sends; its state goes on from block to block, so blocks must be sent
 * in the order in which they were compressed. One call at a time.
 */
export class HeaderDeflater {
  // The window holds the dictionary; zlib's default would cost 268 KB a connection, this costs 10 KB.
  readonly #deflate: Deflate = createDeflate({ dictionary: spdyDictionary, windowBits: 11, memLevel: 1 });
  readonly #output = collect(this.#deflate);

  async compress(headers: Headers): Promise<Buffer> {
    await feed(this.#deflate, encodeHeaders(headers));
    return this.#output.take();
  }

  close(): void {
    this.#deflate.close();
  }
}

/** Inflates the blocks that the other side sends, each of them in the order of arrival, whether it is wanted or not. */
export class HeaderInflater {
  readonly #inflate: Inflate = createInflate({ dictionary: spdyDictionary });
  readonly #output = collect(this.#inflate);

  /** Rejects with SpdyError if it is no zlib stream, no block, or more than {@link headerBlockBytesMax}. */
  async decompress(block: Buffer): Promise<Headers> {
    await feed(this.#inflate, block);
    return decodeHeaders(this.#output.take());
  }

  close(): void {
    this.#inflate.close();
  }
}

interface Output {
  /** What came out since the last call. */
  take(): Buffer;
}

function collect(codec: Deflate | Inflate): Output {
  let parts: Buffer[] = [];
  let bytes = 0;
  codec.on("data", (part: Buffer) => {
    bytes += part.length;
    parts.push(part);
    if (bytes > headerBlockBytesMax) {
      codec.destroy(new SpdyError(`a block of headers of more than ${headerBlockBytesMax} bytes`));
    }
  });
  codec.on("error", () => {}); // reaches the call under way by its promise
  return {
    take: () => {
      const all = Buffer.concat(parts);
      parts = [];
      bytes = 0;
      return all;
    },
  };
}

async function feed(codec: Deflate | Inflate, block: Buffer): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const onError = (err: Error) => reject(failureOf(err));
  const onClose = () => reject(new SpdyError("the connection is closed"));
  codec.once("error", onError);
  codec.once("close", onClose);
  try {
    codec.write(block);
    codec.flush(constants.Z_SYNC_FLUSH, resolve);
    await promise;
    // A codec that fails calls back before it tells its error.
    if (codec.errored !== null) throw failureOf(codec.errored);
    if (codec.destroyed) throw new SpdyError("the connection is closed");
  } finally {
    codec.off("error", onError);
    codec.off("close", onClose);
  }
}

function failureOf(err: Error): SpdyError {
  return err instanceof SpdyError ? err : new SpdyError(`a block of headers: ${err.message}`, { cause: err });
}
