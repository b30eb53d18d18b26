import type { Duplex } from "node:stream";
import type { Clock, Timer } from "../../lib/clock.ts";
import { release } from "../../lib/spdy/release.ts";

// After one side's FIN, the other may go on sending. Clients that are still there use that at once; one that has closed
// its whole connection looks the same to us until something is sent to it. The reference's deadline for last words.
export const halfClosedIdleMs = 10_000;
// A side that takes its time over what was written to it is there, and slow: the last words may be an exit code. The
// reference's and the runtimes' limit of a session in which nothing moves.
export const stalledMs = 4 * 3_600_000;

interface Side {
  readonly stream: Duplex;
  hasEnded: boolean;
}

/**
 * Carries bytes between client and runtime until both sides have ended. Each side's FIN is passed on behind its data, and
 * does not cut what still flows the other way, unless nothing flows for {@link halfClosedIdleMs}, or what was written is not
 * taken for {@link stalledMs}. A client that breaks off takes the runtime's connection along at once; when the runtime
 * breaks off, the client still gets what it had sent, within the same limits.
 *
 * No side is read faster than the other takes: at most a socket's buffer waits in each direction.
 * Never rejects; both sockets are closed when it returns. `signal` ends it at once.
 */
export async function pump(client: Duplex, runtime: Duplex, clock: Clock, signal: AbortSignal): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  const left: Side = { stream: client, hasEnded: false };
  const right: Side = { stream: runtime, hasEnded: false };
  let movedAtMs = clock.monotonic();
  let timer: Timer | undefined;
  let isRuntimeGone = false;
  let isOver = false;

  const stop = () => {
    isOver = true;
    client.destroy();
    runtime.destroy();
    resolve();
  };
  // A side that has ended may still have to take what the other one said before.
  const stopIfDone = () => {
    const hasEnded = left.hasEnded && (right.hasEnded || isRuntimeGone);
    if (hasEnded && client.writableFinished && (runtime.writableFinished || isRuntimeGone)) stop();
  };
  const moved = () => {
    movedAtMs = clock.monotonic();
  };
  const watchHalfClosed = () => {
    const isTaking = client.writableLength > 0 || (!isRuntimeGone && runtime.writableLength > 0);
    const idleMs = clock.monotonic() - movedAtMs;
    if (idleMs >= (isTaking ? stalledMs : halfClosedIdleMs)) stop();
    else timer = clock.after(isTaking ? halfClosedIdleMs : halfClosedIdleMs - idleMs, watchHalfClosed);
  };
  const carry = (from: Side, to: Side) => {
    const onEnd = () => {
      from.hasEnded = true;
      moved();
      if (isOver) return;
      if (isRuntimeGone) {
        stopIfDone();
        return;
      }
      to.stream.end(stopIfDone);
      timer ??= clock.after(halfClosedIdleMs, watchHalfClosed);
    };
    from.stream.on("data", (chunk: Buffer) => {
      moved();
      const onTaken = () => {
        release(chunk);
        moved();
      };
      if (!isRuntimeGone && !to.stream.write(chunk, onTaken)) from.stream.pause();
    });
    to.stream.on("drain", () => from.stream.resume());
    // A side that sent only its FIN so far has ended unnoticed.
    if (from.stream.readableEnded) onEnd();
    else from.stream.on("end", onEnd);
  };
  const onRuntimeGone = () => {
    if (isRuntimeGone || isOver) return;
    isRuntimeGone = true;
    moved();
    timer ??= clock.after(halfClosedIdleMs, watchHalfClosed);
    // Goes on reading what nobody wants: closing with bytes unread would reset the connection under the last words.
    client.resume();
    client.end(stopIfDone);
  };

  // A server's TLS socket would close its own half together with the peer's.
  client.allowHalfOpen = true;
  client.on("error", stop).on("close", stop);
  runtime.on("error", onRuntimeGone).on("close", onRuntimeGone);
  signal.addEventListener("abort", stop);
  try {
    if (signal.aborted || client.destroyed) stop();
    else if (runtime.destroyed) onRuntimeGone();
    carry(left, right);
    carry(right, left);
    client.resume(); // either may come paused
    runtime.resume();
    await promise;
  } finally {
    timer?.cancel();
    signal.removeEventListener("abort", stop);
  }
}
