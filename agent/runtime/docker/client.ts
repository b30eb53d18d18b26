import { addAbortListener } from "node:events";
import type Docker from "dockerode";
import { type Clock, systemClock } from "../../lib/clock.ts";
import { AgentError, messageOf } from "../../lib/errors.ts";
import { type DaemonInfo, negotiateVersion, readDaemonInfo } from "./daemon.ts";
import { translateDockerError } from "./errors.ts";
import { useOwnTransport } from "./transport.ts";

/** One Docker daemon, for the life of the process. */
export interface DockerClient {
  /** dockerode, with the API version negotiated. Use it inside `call` only. */
  readonly docker: Docker;
  /**
   * Runs one call with its deadline.
   *
   * @param what names what is tried and its object, for messages: "start container abc"
   * @param run  gets the signal that ends the call; pass it on as `abortSignal`
   * @returns what `run` resolved to. A stream is no longer under the deadline, but still under `options.signal`.
   * Rejects with AgentError: DeadlineExceeded when the time is over, Canceled when a signal aborted or the client was
   * closed, else what the daemon's error means.
   */
  call<T>(what: string, run: (signal: AbortSignal) => Promise<T>, options?: DockerCallOptions): Promise<T>;
  /** As read when the connection was made, or when it was last asked for anew. */
  readonly daemon: DaemonInfo;
  /** Asks anew what the daemon is, and for the API version: it may be another one since its restart. Rejects as `openDocker`. */
  refresh(): Promise<void>;
  /** Ends every call that is under way and every stream. */
  close(): void;
}

export interface DockerCallOptions {
  /** The request timeout unless given; Infinity means none. */
  timeoutMs?: number;
  signal?: AbortSignal;
}

export interface OpenDockerOptions {
  /** Absolute path of the daemon's unix socket. */
  socketPath: string;
  /** Deadline of an ordinary call in ms. */
  requestTimeoutMs: number;
  clock?: Clock;
}

/**
 * Connects to the daemon at a socket and learns what it is. Loads dockerode, which nobody else does.
 *
 * Rejects with Unavailable if nobody answers, Invalid if what answers cannot be used (too old, not Linux).
 */
export async function openDocker(options: OpenDockerOptions): Promise<DockerClient> {
  const { socketPath, requestTimeoutMs, clock = systemClock } = options;
  const docker = await loadDockerode(socketPath);
  const closeConnections = useOwnTransport(docker);
  const closed = new AbortController();
  const call: DockerClient["call"] = async (what, run, callOptions = {}) =>
    await callWithDeadline(what, run, {
      timeoutMs: callOptions.timeoutMs ?? requestTimeoutMs,
      caller: callOptions.signal,
      closed: closed.signal,
      clock,
    });
  const close = () => {
    closed.abort();
    closeConnections();
  };
  const learn = async (): Promise<DaemonInfo> => {
    const get = async (what: string, path: string, modem: Docker["modem"]) =>
      await call(`${what} of the Docker daemon`, async (abortSignal) => await ask(modem, path, abortSignal));
    // Without a version in the path: the one before may be none that this daemon speaks. Other calls keep it meanwhile.
    const unversioned = Object.assign(Object.create(docker.modem) as Docker["modem"], { version: undefined });
    const version = await get("version", "/version", unversioned);
    Object.assign(docker.modem, { version: `v${negotiateVersion(version)}` });
    return readDaemonInfo(version, await get("information", "/info", docker.modem));
  };
  try {
    let daemon = await learn();
    return {
      docker,
      call,
      get daemon() {
        return daemon;
      },
      refresh: async () => {
        daemon = await learn();
      },
      close,
    };
  } catch (err) {
    close();
    throw err;
  }
}

async function loadDockerode(socketPath: string): Promise<Docker> {
  const { default: Dockerode } = await import("dockerode");
  try {
    // All of these are named, since what is left out is taken from DOCKER_HOST and its like.
    const options = { socketPath, host: undefined, protocol: "http", ca: undefined, cert: undefined, key: undefined };
    return new Dockerode({ ...options, timeout: undefined } as unknown as Docker.DockerOptions);
  } catch (err) {
    const message = `the Docker client does not start; is DOCKER_HOST in its environment? ${messageOf(err)}`;
    throw new AgentError("Invalid", message, { cause: err });
  }
}

/** A plain GET whose answer its reader parses; for use inside `call`. */
export async function ask(modem: Docker["modem"], path: string, abortSignal: AbortSignal): Promise<unknown> {
  const { promise, resolve, reject } = Promise.withResolvers<unknown>();
  const options = { path, method: "GET", abortSignal, statusCodes: { 200: true } };
  modem.dial(options, (err, data) => (err === null ? resolve(data) : reject(err)));
  return await promise;
}

interface DeadlineOptions {
  timeoutMs: number;
  caller: AbortSignal | undefined;
  closed: AbortSignal;
  clock: Clock;
}

async function callWithDeadline<T>(
  what: string,
  run: (signal: AbortSignal) => Promise<T>,
  { timeoutMs, caller, closed, clock }: DeadlineOptions,
): Promise<T> {
  const deadline = new AbortController();
  const timer = Number.isFinite(timeoutMs) ? clock.after(timeoutMs, () => deadline.abort()) : undefined;
  const signal = AbortSignal.any([deadline.signal, closed, ...(caller === undefined ? [] : [caller])]);
  try {
    return await settleWith(run, signal);
  } catch (err) {
    if (deadline.signal.aborted) {
      const message = `${what}: the Docker daemon did not answer within ${timeoutMs / 1000} s`;
      throw new AgentError("DeadlineExceeded", message, { cause: err });
    }
    if (signal.aborted) throw new AgentError("Canceled", `${what}: canceled`, { cause: err });
    throw translateDockerError(err, what);
  } finally {
    timer?.cancel();
  }
}

/** The call's outcome, or a rejection as soon as the signal aborts, whether the call heeds it or not. */
async function settleWith<T>(run: (signal: AbortSignal) => Promise<T>, signal: AbortSignal): Promise<T> {
  signal.throwIfAborted();
  const { promise: aborted, reject } = Promise.withResolvers<never>();
  using _listener = addAbortListener(signal, () => reject(signal.reason as Error));
  return await Promise.race([run(signal), aborted]);
}
