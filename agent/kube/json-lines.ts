import { AgentError } from "../lib/errors.ts";

// The largest object that etcd takes is about 1.5 MiB; as JSON it is a few times that. A longer line is no watch event.
export const lineBytesMax = 32 << 20;

const newline = 0x0a;

/**
 * Splits a byte stream into lines and parses each as JSON. Work is linear in the bytes: the pieces of a long line are
 * joined once, when its end is there.
 */
export class JsonLines {
  #pieces: Buffer[] = [];
  #bytes = 0;

  /**
   * The values whose last byte lies in `chunk`, in order. Throws Invalid at the first line that is not JSON, or too long;
   * what was yielded before it is good.
   */
  *push(chunk: Buffer): Generator<unknown, void, void> {
    let start = 0;
    for (let end = chunk.indexOf(newline); end >= 0; end = chunk.indexOf(newline, start)) {
      const line = this.#take(chunk.subarray(start, end));
      start = end + 1;
      if (line.length > 0) yield parseLine(line);
    }
    if (start === chunk.length) return;
    const rest = chunk.subarray(start);
    this.#bytes += rest.length;
    if (this.#bytes > lineBytesMax) {
      throw new AgentError("Invalid", `a watch event is larger than ${lineBytesMax} bytes`);
    }
    this.#pieces.push(rest);
  }

  /** True if the stream ended in the middle of a line. */
  get hasRest(): boolean {
    return this.#bytes > 0;
  }

  #take(end: Buffer): Buffer {
    if (this.#bytes === 0) return end;
    const line = Buffer.concat([...this.#pieces, end]);
    this.#pieces = [];
    this.#bytes = 0;
    return line;
  }
}

function parseLine(line: Buffer): unknown {
  const text = line.toString("utf8");
  if (text.trim() === "") return undefined;
  try {
    return JSON.parse(text);
  } catch {
    // The parser's message would quote the line, which may hold a secret.
    throw new AgentError("Invalid", `a watch event of ${line.length} bytes is not JSON`);
  }
}
