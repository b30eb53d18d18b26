/** A file to read at positions; FileHandle is one. */
export interface ReadableAt {
  read(buffer: Buffer, offset: number, length: number, position: number): Promise<{ bytesRead: number }>;
}

// The first look back finds the usual tail in one read. Longer tails are looked for in bigger steps.
const blockBytesMin = 16 * 1024;
const blockBytesMax = 1024 * 1024;

const lf = 0x0a;

/**
 * Where the last `lines` lines begin, found from the end backwards: the cost grows with the tail, not with the file. A last
 * line that has no end yet is not counted.
 *
 * @param size bytes of the file that count
 * @returns 0 if the file has fewer lines
 * Rejects with the signal's reason when it aborts, and if the file cannot be read.
 */
export async function findTail(file: ReadableAt, size: number, lines: number, signal: AbortSignal): Promise<number> {
  if (lines === 0) return size;
  let left = lines + 1; // newlines to find: the one before the tail, too
  let end = size;
  let buffer = Buffer.allocUnsafeSlow(Math.min(blockBytesMin, size));
  while (end > 0) {
    const start = Math.max(0, end - buffer.length);
    const length = await readFully(file, buffer, end - start, start);
    signal.throwIfAborted(); // a long tail of a huge file takes minutes
    for (let i = length; i > 0; ) {
      i = buffer.lastIndexOf(lf, i - 1);
      if (i < 0) break;
      left -= 1;
      if (left === 0) return start + i + 1;
    }
    end = start;
    if (buffer.length < blockBytesMax) buffer = Buffer.allocUnsafeSlow(Math.min(buffer.length * 4, blockBytesMax));
  }
  return 0;
}

async function readFully(file: ReadableAt, buffer: Buffer, length: number, position: number): Promise<number> {
  let got = 0;
  while (got < length) {
    const { bytesRead } = await file.read(buffer, got, length - got, position + got);
    if (bytesRead === 0) break; // truncated meanwhile
    got += bytesRead;
  }
  return got;
}
