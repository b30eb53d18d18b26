import type { AddressInfo } from "node:net";
import type { Clock } from "../lib/clock.ts";
import { messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { ignoreAbort } from "../lib/loop.ts";
import { type ConnectionTimes, connectionTimes, floodWarningMs } from "./limits.ts";
import { ListenerConnections, runListener } from "./listener.ts";
import type { RequestMetrics } from "./request-metrics.ts";
import { RequestPath } from "./request-path.ts";
import type { Route } from "./router.ts";

/** Where to listen. */
export interface Place {
  /** An IP address. A wildcard of IPv6 is also one of IPv4, unless `ipv6Only` says otherwise. */
  readonly host: string;
  readonly port: number;
  readonly ipv6Only?: boolean;
}

export interface PlainServerOptions extends Place {
  /** What the log calls it. */
  readonly name: string;
  readonly routes: readonly Route[];
  /** Undefined: requests are not counted. */
  readonly metrics?: RequestMetrics | undefined;
  /** Bounds shared with other listeners. Default: its own. */
  readonly connections?: ListenerConnections;
  /** Other than {@link connectionTimes}. */
  readonly times?: Partial<ConnectionTimes> | undefined;
  readonly clock: Clock;
  readonly log: Logger;
}

/**
 * Serves routes to anybody over plain HTTP on one address, with the limits of `limits.ts` against slow clients and many.
 * Runs until `signal` aborts; resolves when every connection is closed. Rejects when the address cannot be listened on.
 */
export async function runPlainServer(
  options: PlainServerOptions,
  signal: AbortSignal,
  onListening: (address: AddressInfo) => void = () => {},
): Promise<void> {
  const { name, host, port, ipv6Only = false, routes, metrics, clock, log } = options;
  const connections = options.connections ?? new ListenerConnections(warnOfFlood(name, clock, log));
  const path = new RequestPath({ routes, serverType: "readonly", auth: undefined, metrics, clock, log });
  const times = { ...connectionTimes, ...options.times };
  await runListener({ host, port, ipv6Only, path, connections, times, clock, log }, signal, onListening);
}

export interface RetryOptions {
  readonly retryMs: number;
  /** Hears of each failure, before the wait. */
  onFailure(err: unknown): void;
  readonly clock: Clock;
}

/** Serves again after a failure: a port that is taken now may be free in a moment. Resolves when `signal` aborts. */
export async function runRetrying(
  run: (signal: AbortSignal) => Promise<void>,
  { retryMs, onFailure, clock }: RetryOptions,
  signal: AbortSignal,
): Promise<void> {
  while (!signal.aborted) {
    try {
      await run(signal);
    } catch (err) {
      onFailure(err);
      await clock.sleep(retryMs, signal).catch(ignoreAbort);
    }
  }
}

/** One line for a person about a place that could not be listened on: which, and why. */
export function bindFailure(what: string, { host, port }: Place, err: unknown): string {
  return `failed to start ${what} on ${host.includes(":") ? `[${host}]` : host}:${port}: ${messageOf(err)}`;
}

/** @returns says in the log that connections are closed to make room, but not for each of them */
export function warnOfFlood(name: string, clock: Clock, log: Logger): () => void {
  let warnedAtMs = Number.NEGATIVE_INFINITY;
  return () => {
    if (clock.monotonic() - warnedAtMs < floodWarningMs) return;
    warnedAtMs = clock.monotonic();
    log.warn({ listener: name }, "many connections of strangers: closing the oldest of the address that has most");
  };
}
