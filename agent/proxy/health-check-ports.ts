import type { EventRecorder } from "../kube/port.ts";
import type { Clock } from "../lib/clock.ts";
import { messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { Loop } from "../lib/loop.ts";
import { type Answer, healthHeaders } from "./health.ts";
import { hostPort, type Family } from "./ip.ts";
import type { HealthCheckedService } from "./service-notes.ts";

/** An address that answers health checks. */
export interface HealthCheckPlace {
  readonly host: string;
  readonly port: number;
  /** A wildcard of IPv6 leaves IPv4 alone: that is the other family's. */
  readonly ipv6Only: boolean;
}

/**
 * Answers every request on one address until `signal` aborts; resolves when all is closed. Calls `onListening` once it accepts
 * connections; rejects if it cannot.
 */
export type ServeHealthChecks = (
  place: HealthCheckPlace,
  answer: () => Answer,
  signal: AbortSignal,
  onListening: () => void,
) => Promise<void>;

export interface HealthCheckPortsOptions {
  readonly family: Family;
  /** Local addresses to listen on, asked for whenever services changed; undefined: all of the family. */
  readonly hosts: () => readonly string[] | undefined;
  /** The Service's UID, for events about it; undefined if it is gone. */
  readonly uidOf: (key: string) => string | undefined;
  readonly isProxyHealthy: () => boolean;
  readonly serve: ServeHealthChecks;
  readonly recorder: EventRecorder | undefined;
  readonly clock: Clock;
  readonly log: Logger;
}

/** One address of one service that is listened on, or that could not be. */
interface Server {
  readonly stop: AbortController;
  readonly stopped: Promise<void>;
}

// A port that could not be had is tried again at each sync. An event is told again after this time, as long as it lasts: the
// API server forgets events after an hour.
const toldAgainMs = 1_800_000;
// Backs the syncs, each of which wakes us.
const resyncMs = 300_000;

/** The answer of a service's health check. Pure. @param key `namespace/name` */
export function healthCheckAnswer(key: string, localReady: number, isProxyHealthy: boolean): Answer {
  const [namespace = "", name = ""] = key.split("/");
  const body = { service: { namespace, name }, localEndpoints: localReady, serviceProxyHealthy: isProxyHealthy };
  return {
    status: localReady > 0 && isProxyHealthy ? 200 : 503,
    headers: { ...healthHeaders, "X-Load-Balancing-Endpoint-Weight": String(localReady) },
    body: JSON.stringify(body, undefined, "\t"),
  };
}

/**
 * The servers of one IP family that tell load balancers whether this node has endpoints of a Service: one for each
 * Service with a healthCheckNodePort. They answer from what was settled last; a change of endpoints opens and closes nothing.
 */
export class HealthCheckPorts {
  readonly #options: HealthCheckPortsOptions;
  readonly #loop: Loop;
  #wanted: ReadonlyMap<string, HealthCheckedService> = new Map();
  /** By service, host and port. */
  readonly #servers = new Map<string, Server>();
  readonly #told = new Map<string, { message: string; atMs: number }>();

  constructor(options: HealthCheckPortsOptions) {
    this.#options = options;
    this.#loop = new Loop({
      clock: options.clock,
      pass: (signal) => this.#pass(signal),
      onError: (err) => options.log.error({ err: messageOf(err) }, "health check ports could not be looked after"),
      retryMs: () => resyncMs,
      resyncMs,
    });
  }

  /** Says which services have such a port now, by `namespace/name`. Ports that could not be had are tried again. */
  update(services: ReadonlyMap<string, HealthCheckedService>): void {
    this.#wanted = services;
    if (services.size > 0 || this.#servers.size > 0) this.#loop.wake();
  }

  /** Listens as told until `signal` aborts; resolves when all is closed. */
  async run(signal: AbortSignal): Promise<void> {
    await this.#loop.run(signal);
    await this.#close([...this.#servers.keys()]);
  }

  async #pass(signal: AbortSignal): Promise<undefined> {
    const { family, hosts } = this.#options;
    const wanted = new Map<string, { key: string; place: HealthCheckPlace }>();
    const isV6 = family === "IPv6";
    const all = this.#wanted.size === 0 ? [] : (hosts() ?? [isV6 ? "::" : "0.0.0.0"]);
    for (const [key, { port }] of this.#wanted) {
      for (const host of all) wanted.set(`${key} ${host} ${port}`, { key, place: { host, port, ipv6Only: isV6 } });
    }
    // First, since a port may have gone from one service to another.
    await this.#close([...this.#servers.keys()].filter((id) => !wanted.has(id)));
    for (const id of this.#told.keys()) if (!wanted.has(id)) this.#told.delete(id);
    for (const [id, { key, place }] of wanted) {
      if (!this.#servers.has(id) && !signal.aborted) await this.#open(id, key, place);
    }
    return undefined;
  }

  async #open(id: string, key: string, place: HealthCheckPlace): Promise<void> {
    const { serve, isProxyHealthy, log } = this.#options;
    const stop = new AbortController();
    const listening = Promise.withResolvers<void>();
    const answer = () => healthCheckAnswer(key, this.#wanted.get(key)?.localReady ?? 0, isProxyHealthy());
    const served = serve(place, answer, stop.signal, listening.resolve);
    const stopped = served.then(
      () => undefined,
      (err: unknown) => {
        this.#servers.delete(id);
        listening.resolve();
        this.#tell(id, key, place, err);
      },
    );
    this.#servers.set(id, { stop, stopped });
    await listening.promise;
    if (!this.#servers.has(id)) return;
    this.#told.delete(id);
    log.info({ service: key, address: hostPort(place.host, place.port) }, "health check port is listening");
  }

  #tell(id: string, key: string, place: HealthCheckPlace, err: unknown): void {
    const { recorder, uidOf, clock, log } = this.#options;
    const [namespace = "", name = ""] = key.split("/");
    const address = hostPort(place.host, place.port);
    const message = `node port ${place.port} for health checks of service ${key} cannot be listened on at ${address}: ${messageOf(err)}`;
    const told = this.#told.get(id);
    const nowMs = clock.monotonic();
    if (told?.message === message && nowMs - told.atMs < toldAgainMs) return;
    this.#told.set(id, { message, atMs: nowMs });
    log.error(
      { service: key, address, err: messageOf(err) },
      "health check port cannot be served; trying at each sync",
    );
    const about = { kind: "Service", namespace, name, uid: uidOf(key) ?? key };
    recorder?.event(about, "Warning", "FailedToStartServiceHealthcheck", message, "Listen");
  }

  async #close(ids: readonly string[]): Promise<void> {
    const servers = ids.flatMap((id) => this.#servers.get(id) ?? []);
    for (const { stop } of servers) stop.abort();
    await Promise.all(servers.map(({ stopped }) => stopped));
    for (const id of ids) this.#servers.delete(id);
  }
}
