import { close, type NoParamCallback, open, read } from "node:fs";

/** Reads small files of /proc, /sys and cgroups. */
export interface FileReader {
  /** A file that the kernel gives in one piece (most of cgroups). Undefined if it cannot be read. */
  text(path: string): Promise<string | undefined>;
  /**
   * A file that the kernel may give in several pieces: lists of processes, mounts or interfaces. A piece holds whole lines,
   * so that it may be short when the next line is long; only an empty one is the end.
   */
  list(path: string): Promise<string | undefined>;
}

// memory.stat, the longest file given in one piece, has 2 KiB.
const chunkBytes = 8_192;
// Lists of processes: 7 bytes each, so 140 000 processes. What is longer is not read on.
const listBytesMax = 1 << 20;
// Buffers kept for the next read; more reads at a time than this only allocate.
const buffersKept = 16;

/**
 * Makes a reader. It opens, reads and closes: three trips to the thread pool, four for a list, and some 30 µs of CPU a file,
 * where `readFile` takes five and twice the time, which counts with thousands of files a round. Files are read by callback
 * for the same reason.
 */
export function createFileReader(): FileReader {
  const buffers: Buffer[] = [];

  const readFile = (path: string, toEnd: boolean) =>
    new Promise<string | undefined>((resolve) => {
      open(path, "r", (openError, fd) => {
        if (openError !== null) {
          resolve(undefined);
          return;
        }
        const buffer = buffers.pop() ?? Buffer.allocUnsafeSlow(chunkBytes);
        let text = "";
        const finish = (result: string | undefined) => {
          if (buffers.length < buffersKept) buffers.push(buffer);
          // Nothing was written: how closing ends says nothing.
          const closed: NoParamCallback = () => resolve(result);
          close(fd, closed);
        };
        const next = () => {
          read(fd, buffer, 0, chunkBytes, null, (err, count) => {
            if (err !== null) {
              finish(undefined);
              return;
            }
            text += buffer.toString("latin1", 0, count);
            const mayHaveMore = toEnd ? count > 0 : count === chunkBytes;
            if (mayHaveMore && text.length < listBytesMax) next();
            else finish(text);
          });
        };
        next();
      });
    });

  return {
    text: (path) => readFile(path, false),
    list: (path) => readFile(path, true),
  };
}

/**
 * Runs `work` for each item, at most `concurrency` at a time, so that a thousand reads neither fill the thread pool's queue
 * nor the heap. Rejects with the first rejection, when those under way have ended.
 */
export async function forEachLimited<T>(
  items: Iterable<T>,
  concurrency: number,
  work: (item: T) => Promise<void>,
): Promise<void> {
  const rest = items[Symbol.iterator]();
  const lane = async () => {
    for (let next = rest.next(); next.done !== true; next = rest.next()) await work(next.value);
  };
  const outcomes = await Promise.allSettled(Array.from({ length: concurrency }, lane));
  for (const outcome of outcomes) if (outcome.status === "rejected") throw outcome.reason;
}
