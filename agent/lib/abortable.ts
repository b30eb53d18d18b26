import { AgentError } from "./errors.ts";

/**
 * Settles with `work`, or rejects as soon as the signal aborts, with its reason unless `error` makes another. `work` is not
 * stopped, its outcome is dropped: only for work without effects that matter later, such as a read.
 */
export async function abortable<T>(
  work: Promise<T>,
  signal: AbortSignal,
  error: () => unknown = () => signal.reason,
): Promise<T> {
  const { promise, reject } = Promise.withResolvers<never>();
  const onAbort = () => reject(error());
  if (signal.aborted) onAbort();
  signal.addEventListener("abort", onAbort, { once: true });
  try {
    return await Promise.race([work, promise]);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}

/** {@link abortable}, rejecting with Canceled: for work that its owner brings to an end when nobody waits any more. */
export async function cancelable<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  return await abortable(work, signal, () => new AgentError("Canceled", "canceled"));
}
