import { AgentError } from "../../lib/errors.ts";

/** A piece of what a command without a terminal says. A view of the chunk that was pushed. */
export interface OutputPiece {
  /** "system" is the daemon's own word: what went wrong with the stream. */
  readonly stream: "stdout" | "stderr" | "system";
  readonly payload: Buffer;
}

/** Cuts what comes over a hijacked connection into pieces of output. */
export interface OutputParser {
  /** Takes the next bytes. Throws AgentError if the daemon does not keep to the format; nothing more can be read then. */
  push(chunk: Buffer): Iterable<OutputPiece>;
}

/** The parser for a session: with a terminal the bytes are stdout's, without one they come in frames. */
export function outputParser(tty: boolean): OutputParser {
  return tty ? { push: (chunk) => [{ stream: "stdout", payload: chunk }] } : new FrameReader();
}

// Docker's stdcopy format: one byte of stream, three of nothing, four of length (big endian), then the payload.
const headBytes = 8;
// Stream 0 is stdin, which the daemon's own clients take for stdout.
const streams = ["stdout", "stdout", "stderr", "system"] as const;

/** Hands a frame out in as many pieces as it comes in, so that its length, up to 4 GiB, takes no memory. */
class FrameReader implements OutputParser {
  readonly #head = Buffer.alloc(headBytes);
  #headBytes = 0;
  /** Payload bytes of the present frame still to come. */
  #missing = 0;

  *push(chunk: Buffer): Generator<OutputPiece, void, void> {
    let at = 0;
    while (at < chunk.length) {
      if (this.#missing === 0) {
        const count = chunk.copy(this.#head, this.#headBytes, at, at + headBytes - this.#headBytes);
        this.#headBytes += count;
        at += count;
        if (this.#headBytes < headBytes) return;
        this.#headBytes = 0;
        this.#missing = this.#head.readUInt32BE(4);
        continue;
      }
      const stream = streams[this.#head[0] ?? streams.length];
      if (stream === undefined) {
        throw new AgentError("Internal", `the Docker daemon sent output of the unknown stream ${this.#head[0]}`);
      }
      const payload = chunk.subarray(at, at + this.#missing);
      at += payload.length;
      this.#missing -= payload.length;
      yield { stream, payload };
    }
  }
}
