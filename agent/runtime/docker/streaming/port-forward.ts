import type { Socket } from "node:net";
import type { Duplex } from "node:stream";
import type { Clock, Timer } from "../../../lib/clock.ts";
import { messageOf } from "../../../lib/errors.ts";
import { release } from "../../../lib/spdy/release.ts";
import { SpdyConnection } from "../../../lib/spdy/connection.ts";
import type { SpdyStream } from "../../../lib/spdy/stream.ts";
import { streamCreationTimeoutMs } from "./spdy-command.ts";

/** Connects to a port of the sandbox's loopback. Rejects with AgentError. */
export type Dial = (port: number, signal: AbortSignal) => Promise<Socket>;

export interface PortForwardOptions {
  readonly dial: Dial;
  /** For messages. */
  readonly sandboxID: string;
  readonly idleMs: number;
  readonly clock: Clock;
  /** Aborts when the server stops. */
  readonly signal: AbortSignal;
}

/**
 * Forwards connections for a client that speaks SPDY, until it leaves. Each is a pair of streams with one request ID: "data"
 * carries the bytes, "error" what went wrong. Never rejects.
 */
export async function servePortForward(socket: Duplex, options: PortForwardOptions): Promise<void> {
  const { idleMs, clock, signal } = options;
  const pairs = new Map<string, Pair>();
  const gone = new AbortController();
  const connection = new SpdyConnection(socket, {
    ...{ role: "server", clock, idleMs },
    onStream: (stream) => void onStream(stream).catch(() => stream.destroy()),
  });
  const onStop = () => connection.destroy();
  signal.addEventListener("abort", onStop);
  if (signal.aborted) onStop();
  await connection.closed;
  signal.removeEventListener("abort", onStop);
  gone.abort();
  for (const { timer } of pairs.values()) timer.cancel();

  async function onStream(stream: SpdyStream): Promise<void> {
    const told = describeStream(stream);
    if (told === undefined) {
      stream.destroy();
      return;
    }
    const { requestID, type, port } = told;
    const pair = pairs.get(requestID) ?? begin(requestID, port);
    const before = pair[type];
    if (before === undefined) pair[type] = stream;
    await stream.accept();
    if (before !== undefined) {
      await complain(pair.error, `error stream or data stream of request ${requestID} is there twice`);
      stream.destroy();
      return;
    }
    if (type === "error") stream.resume(); // a client says nothing on it
    const { data, error } = pair;
    if (data === undefined || error === undefined) return;
    pair.timer.cancel();
    pairs.delete(requestID);
    await forward(pair.port, { data, error }, options, gone.signal);
  }

  function begin(requestID: string, port: number): Pair {
    const timer = clock.after(streamCreationTimeoutMs, () => {
      pairs.delete(requestID);
      void complain(
        pair.error,
        `request ${requestID} has only one of its two streams after ${streamCreationTimeoutMs / 1000} s`,
      );
      pair.data?.destroy();
    });
    const pair: Pair = { port, timer, data: undefined, error: undefined };
    pairs.set(requestID, pair);
    return pair;
  }
}

interface Pair {
  readonly port: number;
  readonly timer: Timer;
  data: SpdyStream | undefined;
  error: SpdyStream | undefined;
}

/** What a stream's headers say. Clients of old send no request ID: they open the error stream, then the data stream. */
function describeStream(stream: SpdyStream): { requestID: string; type: "data" | "error"; port: number } | undefined {
  const type = stream.header("streamtype");
  const port = parsePort(stream.header("port") ?? "");
  if ((type !== "data" && type !== "error") || port === undefined) return undefined;
  const requestID = stream.header("requestid") ?? String(type === "error" ? stream.streamID : stream.streamID - 2);
  return { requestID, type, port };
}

const portMax = 65_535;

function parsePort(text: string): number | undefined {
  const port = /^\d{1,5}$/.test(text) ? Number(text) : 0;
  return port >= 1 && port <= portMax ? port : undefined;
}

async function forward(
  port: number,
  { data, error }: { data: SpdyStream; error: SpdyStream },
  { dial, sandboxID }: PortForwardOptions,
  gone: AbortSignal,
): Promise<void> {
  let target: Socket;
  try {
    target = await dial(port, gone);
  } catch (err) {
    await complain(error, forwardError(port, sandboxID, err));
    data.destroy();
    return;
  }
  await join(data, target);
  error.end();
}

/** The message of a connection that could not be made, in the reference's form. */
export function forwardError(port: number, sandboxID: string, err: unknown): string {
  return `error forwarding port ${port} to pod ${sandboxID}, uid : ${messageOf(err)}`;
}

/** Says something on an error stream and ends it. Resolves once it has left. */
async function complain(error: SpdyStream | undefined, text: string): Promise<void> {
  if (error === undefined || error.destroyed || error.writableEnded) return;
  await new Promise<void>((resolve) => void error.write(text, () => resolve()));
  error.end();
}

/**
 * Carries bytes both ways. Each direction ends by itself; when one side breaks off the other is reset, too. Resolves once
 * both are over.
 */
export async function join(client: Duplex & { readonly fault?: string | undefined }, target: Socket): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  const carry = (from: Duplex, to: Duplex) => {
    from.on("data", (chunk: Buffer) => {
      if (!to.write(chunk, () => release(chunk))) from.pause();
    });
    to.on("drain", () => from.resume());
    from.on("end", () => to.end());
  };
  carry(target, client);
  carry(client, target);
  let open = 2;
  const onClose = () => {
    open -= 1;
    if (open === 0) resolve();
  };
  target.on("error", () => client.destroy()); // reset by the pod: the client sees the same
  target.on("close", onClose);
  client.on("error", () => {});
  client.on("end", () => {
    if (client.fault !== undefined) target.destroy();
  });
  client.on("close", () => {
    if (!client.readableEnded || !target.readableEnded) target.destroy();
    onClose();
  });
  client.resume();
  target.resume();
  await promise;
}
