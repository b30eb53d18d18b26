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
  const onClose = () => {
    if (!hasEnded) reject(stream.errored ?? new AgentError("Unavailable", "the connection was lost"));
  };
  // A paused socket may tell its end all the same, which is not to overtake what is being handled.
  let isBusy = false;
  let hasEnded = false;
  const onEnd = () => {
    hasEnded = true;
    if (!isBusy) resolve();
  };
  const onData = (chunk: Buffer) => {
    isBusy = true;
    stream.pause();
    handle(chunk).then(() => {
      isBusy = false;
      release(chunk);
      if (hasEnded) resolve();
      else stream.resume();
    }, reject);
  };
  stream.on("end", onEnd).on("close", onClose).on("error", reject).on("data", onData);
  if (stream.destroyed) onClose();
  else stream.resume(); // it may come paused
  await promise;
}
