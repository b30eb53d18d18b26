import { connect, type Socket } from "node:net";
import { systemClock } from "./clock.ts";
import { errnoText } from "./errno-text.ts";
import { messageOf } from "./errors.ts";

/** The command line's first word that makes this program a dialer. Only the agent itself uses it. */
export const dialerRole = "dial-for-agent";

// To loopback: an answer takes no time, unless the packets are dropped or the listener's queue is full.
export const dialTimeoutMs = 10_000;

const addresses = [
  { family: "IPv4", host: "127.0.0.1" },
  { family: "IPv6", host: "::1" },
];

/**
 * Connects to ports of loopback for the parent process until that goes away: takes `{id, port}` messages, answers each with
 * `{id}` and the connection, or with `{id, error}`.
 *
 * Rejects if there is no such parent.
 */
export async function serveDials(): Promise<void> {
  if (process.send === undefined) throw new Error(`${dialerRole} is a helper that only the agent can start`);
  process.on("message", (message: unknown) => {
    const { id, port } = parseDialRequest(message);
    dialLoopback(port).then(
      (socket) => process.send?.({ id }, socket, {}, () => {}),
      (err: unknown) => process.send?.({ id, error: messageOf(err) }),
    );
  });
  await new Promise<void>((resolve) => void process.once("disconnect", resolve));
}

/**
 * Connects to a port of this namespace's loopback. Nothing is read from the connection.
 *
 * Rejects with an Error that tells of each address family.
 */
export async function dialLoopback(port: number): Promise<Socket> {
  const failures: string[] = [];
  for (const { family, host } of addresses) {
    try {
      return await dial(host, port);
    } catch (err) {
      failures.push(`${family}: ${messageOf(err)}`);
    }
  }
  throw new Error(`failed to connect to localhost:${port} inside the pod's network namespace, ${failures.join(", ")}`);
}

async function dial(host: string, port: number): Promise<Socket> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const socket = connect({ host, port, allowHalfOpen: true, noDelay: true });
  socket.pause(); // not one byte may be read here
  const timer = systemClock.after(dialTimeoutMs, () => reject(new Error(`no answer within ${dialTimeoutMs / 1000} s`)));
  const onError = (err: Error) => reject(new Error(errnoText(err)));
  socket.once("connect", resolve).on("error", onError);
  try {
    await promise;
    return socket;
  } catch (err) {
    socket.destroy();
    throw err;
  } finally {
    timer.cancel();
  }
}

function parseDialRequest(message: unknown): { id: number; port: number } {
  const { id, port } = message as { id: unknown; port: unknown };
  return { id: Number(id), port: Number(port) };
}

/** Reads the dialer's answer to one request. */
export function parseDialAnswer(message: unknown): { id: number; error: string | undefined } {
  const { id, error } = message as { id: unknown; error?: unknown };
  return { id: Number(id), error: typeof error === "string" ? error : undefined };
}
