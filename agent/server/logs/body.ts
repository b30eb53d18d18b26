import type { ServerResponse } from "node:http";

/**
 * Writes pieces of a body one after the other at the client's pace.
 *
 * @returns resolves when the piece has left our hands, so its memory may be used again; rejects once `signal` aborts or the
 *   connection is gone
 */
export function createBodyWriter(response: ServerResponse, signal: AbortSignal): (chunk: Buffer) => Promise<void> {
  return async (chunk) => {
    signal.throwIfAborted();
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const onAbort = () => reject(signal.reason);
    signal.addEventListener("abort", onAbort, { once: true });
    // The response may be closed without the callback of a write that was under way.
    response.once("close", onClose);
    function onClose() {
      reject(new Error("the connection was closed"));
    }
    response.write(chunk, (err) => {
      if (err) reject(err);
      else resolve();
    });
    try {
      await promise;
    } finally {
      signal.removeEventListener("abort", onAbort);
      response.off("close", onClose);
    }
  };
}
