import type { Readable } from "node:stream";
import { AgentError } from "./errors.ts";
import { release } from "./spdy/release.ts";

/**
 * Hands each chunk of a stream to `handle`, the next one once that is done, and gives its memory back then. (`for await`
 * would join chunks that wait, which doubles what has to be collected.)
 *
 * Resolves at the stream's end. Rejects if it fails or closes before, and with what `handle` rejects with.
 */
export async function forEachChunk(stream: Readable, handle: (chunk: Buffer) => Promise<void>): Promise<void> {
  if (stream.readableEnded) return;
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const onClose = () => reject(stream.errored ?? new AgentError("Unavailable", "the connection was lost"));
  const onData = (chunk: Buffer) => {
    stream.pause();
    handle(chunk).then(() => {
      release(chunk);
      stream.resume();
    }, reject);
  };
  stream.on("end", resolve).on("close", onClose).on("error", reject).on("data", onData);
  if (stream.destroyed) onClose();
  else stream.resume(); // it may come paused
  await promise;
}
