import { connect as connectTCP, isIP, type Socket } from "node:net";
import type { Duplex } from "node:stream";
import type { Clock } from "../../lib/clock.ts";
import { AgentError, messageOf } from "../../lib/errors.ts";
import { parseResponseHead, type ResponseHead } from "./http-head.ts";

// The runtime's server is on this machine, or one hop away.
export const dialTimeoutMs = 10_000;
// Runtimes answer an upgrade before they do anything for it; a machine under load may take its time.
export const answerTimeoutMs = 30_000;
// Go's own limit for headers, which the reference's proxy has, too.
export const headBytesMax = 1 << 20;

export interface DialOptions {
  clock: Clock;
  /** Ends dialling and waiting: the client has gone, or the server stops. */
  signal: AbortSignal;
}

/** A runtime that answered. The socket is the caller's; what came behind the head is to be read from it. */
export interface RuntimeAnswer {
  readonly socket: Socket;
  readonly head: ResponseHead;
  /** The head's bytes as they came, with the empty line. */
  readonly rawHead: Buffer;
}

/**
 * Connects to the runtime's streaming server, sends a request and waits for the head of its answer.
 *
 * Rejects with Unavailable if it cannot be reached or answers something that is not HTTP, DeadlineExceeded if it is too
 * slow, Canceled if `signal` aborts.
 *
 * @param url as the runtime gave it: http or https
 * @param request makes the request's head out of path and query
 */
export async function askRuntime(
  url: string,
  request: (path: string, host: string) => string,
  { clock, signal }: DialOptions,
): Promise<RuntimeAnswer> {
  const target = parseURL(url);
  const socket = await dial(target, clock, signal);
  try {
    // Node reads and gives headers byte by byte; any other encoding would change names that are not ASCII.
    socket.write(request(target.pathname + target.search, target.host), "latin1");
    const what = `the container runtime's streaming server at ${target.host}`;
    const rawHead = await within(answerTimeoutMs, `${what} did not answer`, clock, signal, readHead(socket, what));
    const head = parseResponseHead(rawHead.toString("latin1", 0, rawHead.length - 4));
    if (head === undefined) throw new AgentError("Unavailable", `${what} answered something that is not HTTP`);
    return { socket, head, rawHead };
  } catch (err) {
    socket.destroy();
    throw err;
  }
}

function parseURL(url: string): URL {
  const target = URL.canParse(url) ? new URL(url) : undefined;
  if (target === undefined || !["http:", "https:"].includes(target.protocol)) {
    throw new AgentError("Unavailable", "the container runtime gave a streaming URL that is not http or https");
  }
  return target;
}

async function dial(target: URL, clock: Clock, signal: AbortSignal): Promise<Socket> {
  const isTLS = target.protocol === "https:";
  const host = target.hostname.replace(/^\[(.*)\]$/, "$1");
  const port = Number(target.port || (isTLS ? 443 : 80));
  const socket = isTLS ? await connectTLS(host, port) : connectTCP({ host, port, allowHalfOpen: true, noDelay: true });
  const ready = Promise.withResolvers<void>();
  const onError = (err: Error) => ready.reject(err);
  socket.once(isTLS ? "secureConnect" : "connect", () => ready.resolve());
  socket.on("error", onError); // stays: a socket without a listener would end the process
  const what = `dial the container runtime's streaming server at ${target.host}`;
  try {
    await within(dialTimeoutMs, `${what}: no connection`, clock, signal, ready.promise);
    return socket;
  } catch (err) {
    socket.destroy();
    throw err instanceof AgentError ? err : new AgentError("Unavailable", `${what}: ${messageOf(err)}`);
  }
}

async function connectTLS(host: string, port: number): Promise<Socket> {
  const tls = await import("node:tls");
  const ca = tls.getCACertificates("system");
  const servername = isIP(host) === 0 ? { servername: host } : {}; // an address is no name to ask for
  const socket = tls.connect({ host, port, ca, ...servername });
  socket.allowHalfOpen = true;
  return socket;
}

/** The result of `work`, unless it takes too long or `signal` aborts. The loser's rejection is taken care of. */
async function within<T>(
  timeoutMs: number,
  what: string,
  clock: Clock,
  signal: AbortSignal,
  work: Promise<T>,
): Promise<T> {
  const late = Promise.withResolvers<never>();
  const timer = clock.after(timeoutMs, () =>
    late.reject(new AgentError("DeadlineExceeded", `${what} within ${timeoutMs / 1000} s`)),
  );
  const onAbort = () => late.reject(new AgentError("Canceled", "the client has gone, or the server stops"));
  signal.addEventListener("abort", onAbort);
  if (signal.aborted) onAbort();
  try {
    return await Promise.race([work, late.promise]);
  } finally {
    timer.cancel();
    signal.removeEventListener("abort", onAbort);
  }
}

/** Reads up to and with the empty line; what comes behind it stays in the socket. */
async function readHead(socket: Duplex, what: string): Promise<Buffer> {
  const { promise, resolve, reject } = Promise.withResolvers<Buffer>();
  const chunks: Buffer[] = [];
  let bytes = 0;
  let tail = Buffer.alloc(0);
  const onReadable = () => {
    for (let chunk = socket.read() as Buffer | null; chunk !== null; chunk = socket.read() as Buffer | null) {
      // The empty line may be cut anywhere: look at the last three bytes again.
      const seen = Buffer.concat([tail, chunk]);
      const found = seen.indexOf("\r\n\r\n");
      if (found >= 0) {
        const used = found + 4 - tail.length;
        chunks.push(chunk.subarray(0, used));
        if (bytes + used > headBytesMax) break;
        socket.off("readable", onReadable); // or it would take what is put back
        if (used < chunk.length) socket.unshift(chunk.subarray(used));
        resolve(Buffer.concat(chunks));
        return;
      }
      chunks.push(chunk);
      bytes += chunk.length;
      tail = seen.subarray(-3);
      if (bytes > headBytesMax) break;
    }
    if (bytes > headBytesMax) {
      reject(new AgentError("Unavailable", `${what} answered headers of more than ${headBytesMax} bytes`));
    }
  };
  const onEnd = () => reject(new AgentError("Unavailable", `${what} closed the connection without an answer`));
  const onError = (err: Error) => reject(new AgentError("Unavailable", `${what}: ${err.message}`));
  socket.on("readable", onReadable).on("end", onEnd).on("close", onEnd).on("error", onError);
  try {
    onReadable();
    return await promise;
  } finally {
    socket.off("readable", onReadable).off("end", onEnd).off("close", onEnd).off("error", onError);
  }
}
