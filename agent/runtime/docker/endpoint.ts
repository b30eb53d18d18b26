import { request } from "node:http";
import type { Clock } from "../../lib/clock.ts";
import { AgentError, messageOf } from "../../lib/errors.ts";
import { translateDockerError } from "./errors.ts";

// A daemon that is up answers a ping at once. A socket of systemd's takes connections before the daemon is there.
const probeTimeoutMs = 5_000;

const defaultSocket = "/var/run/docker.sock";

/**
 * The socket of an endpoint that names Docker: `docker://` and `docker:///path`; `undefined` for all others.
 * Throws Invalid for a `docker` endpoint that is no unix socket.
 */
export function dockerSocket(endpoint: string): string | undefined {
  const rest = /^docker:(?:\/\/)?(.*)$/.exec(endpoint)?.[1];
  if (rest === undefined) return undefined;
  if (rest === "") return defaultSocket;
  if (rest.startsWith("/")) return rest;
  const message = `container runtime endpoint "${endpoint}" is not a unix socket: use docker:// or docker:///path/to/socket`;
  throw new AgentError("Invalid", message);
}

/**
 * Asks what serves at a unix socket, in the Docker API's own way: a ping, to which CRI runtimes have no such answer.
 *
 * Rejects with Unavailable if nobody listens, DeadlineExceeded if who listens says nothing.
 */
export async function isDockerSocket(socketPath: string, clock: Clock): Promise<boolean> {
  const what = `ask what serves at ${socketPath}`;
  const { promise, resolve, reject } = Promise.withResolvers<boolean>();
  const ping = request({ socketPath, path: "/_ping", agent: false });
  let isConnected = false;
  const timer = clock.after(probeTimeoutMs, () => {
    const message = `${what}: no answer within ${probeTimeoutMs / 1000} s; is the runtime starting?`;
    reject(new AgentError("DeadlineExceeded", message));
    ping.destroy();
  });
  ping.on("socket", (socket) => {
    if (!socket.connecting) isConnected = true;
    else socket.once("connect", () => (isConnected = true));
  });
  ping.on("response", (response) => {
    response.resume();
    const { "api-version": apiVersion, server } = response.headers;
    resolve(response.statusCode === 200 && (apiVersion !== undefined || String(server).startsWith("Docker/")));
  });
  // gRPC takes the request for a broken beginning of its own protocol, and says so in it or closes.
  ping.on("error", (err) => (isConnected ? resolve(false) : reject(translateDockerError(err, what))));
  ping.end();
  try {
    return await promise;
  } catch (err) {
    throw err instanceof AgentError ? err : new AgentError("Unavailable", `${what}: ${messageOf(err)}`, { cause: err });
  } finally {
    timer.cancel();
    ping.destroy();
  }
}
