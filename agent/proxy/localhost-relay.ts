import { connect, createServer, type Server, type Socket } from "node:net";
import type { Clock } from "../lib/clock.ts";
import { errnoOf } from "../lib/errno.ts";
import { messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { Loop } from "../lib/loop.ts";
import type { Family } from "./ip.ts";
import { EndpointChoice, type RelayTarget } from "./localhost-choice.ts";
import { DatagramRelay } from "./localhost-datagrams.ts";

export interface LocalhostRelayOptions {
  readonly family: Family;
  readonly clock: Clock;
  readonly log: Logger;
  /** In [0, 1), as `Math.random`. */
  readonly random?: () => number;
  /** Connections at a time; default {@link connectionsMax}. */
  readonly connectionsMax?: number;
}

// A port that another program holds is tried again after this long: the reference's interval for its own servers.
export const listenRetryMs = 5_000;
// Connections of one family at a time; each costs two descriptors, of which systemd gives a service 524 288.
const connectionsMax = 4_096;
// An endpoint that does not answer is given up long before the kernel does (127 s): whoever is on loopback expects an answer.
export const connectTimeoutMs = 30_000;
// Go's default, which servers of the field use: a connection whose other end vanished is found out.
const keepAliveMs = 15_000;

/** A node port that is listened on. */
interface OpenPort {
  readonly choice: EndpointChoice;
  close(): void;
  /** The endpoints have changed. */
  changed(): void;
  /** @returns when to be called again (monotonic ms), if ever */
  dropIdle(nowMs: number): number | undefined;
}

/**
 * Answers node ports on 127.0.0.1 or ::1, for modes whose rules cannot: the kernel does not route packets from loopback to
 * other machines. Connections are relayed by this process, so they end with it. One relay per family.
 */
export class LocalhostRelay {
  readonly #options: LocalhostRelayOptions;
  readonly #host: string;
  readonly #loop: Loop;
  readonly #byService = new Map<string, readonly RelayTarget[]>();
  /** By protocol and port. Of two services that claim one the first by name has it. */
  readonly #open = new Map<string, OpenPort>();
  /** Keys that could not be listened on, which has been told; also the address itself. */
  readonly #told = new Set<string>();
  readonly #connections = new Set<Socket>();
  readonly #connectionsMax: number;
  #isFullTold = false;

  constructor(options: LocalhostRelayOptions) {
    this.#options = options;
    this.#connectionsMax = options.connectionsMax ?? connectionsMax;
    this.#host = options.family === "IPv4" ? "127.0.0.1" : "::1";
    this.#loop = new Loop({
      clock: options.clock,
      pass: () => this.#pass(),
      onError: (err) => options.log.error({ err: messageOf(err) }, "node ports on loopback could not be set up"),
      retryMs: () => listenRetryMs,
      resyncMs: Number.MAX_SAFE_INTEGER,
    });
  }

  /** Notes what one service wants; nothing for one that is gone. Takes effect soon. */
  set(serviceKey: string, targets: readonly RelayTarget[]): void {
    if (targets.length > 0) this.#byService.set(serviceKey, targets);
    else if (!this.#byService.delete(serviceKey)) return;
    this.#loop.wake();
  }

  /** Forgets all services but these. */
  keepOnly(serviceKeys: { has(key: string): boolean }): void {
    for (const key of this.#byService.keys()) if (!serviceKeys.has(key)) this.set(key, []);
  }

  /** Listens until `signal` aborts; then ends all connections. */
  async run(signal: AbortSignal): Promise<void> {
    await this.#loop.run(signal);
    for (const port of this.#open.values()) port.close();
    this.#open.clear();
    for (const socket of this.#connections) socket.destroy();
  }

  async #pass(): Promise<number | undefined> {
    const { clock, log } = this.#options;
    const wanted = new Map<string, RelayTarget>();
    for (const key of [...this.#byService.keys()].sort()) {
      for (const target of this.#byService.get(key) ?? []) {
        const port = `${target.protocol}/${target.nodePort}`;
        if (!wanted.has(port)) wanted.set(port, target);
      }
    }
    for (const [key, port] of this.#open) {
      if (wanted.has(key)) continue;
      port.close(); // connections that are open go on, as they do with rules
      this.#open.delete(key);
    }
    let isRetryDue = false;
    for (const [key, target] of wanted) {
      const open = this.#open.get(key);
      if (open !== undefined) {
        open.choice.target = target;
        open.changed();
        continue;
      }
      try {
        this.#open.set(key, await this.#listen(target));
        if (this.#told.delete(key)) log.info({ service: target.name, port: key }, "node port answers on loopback now");
      } catch (err) {
        isRetryDue = true;
        // Without the address all ports fail alike, which is one thing to tell.
        const trouble = errnoOf(err) === "EADDRINUSE" ? key : this.#host;
        if (this.#told.has(trouble)) continue;
        this.#told.add(trouble);
        log.warn(
          { service: target.name, port: key, err: messageOf(err) },
          "node port cannot be listened on on loopback; trying again until it can",
        );
      }
    }
    for (const key of this.#told) if (key !== this.#host && !wanted.has(key)) this.#told.delete(key);
    const nowMs = clock.monotonic();
    const waits = [...this.#open.values()].map((port) => (port.dropIdle(nowMs) ?? Number.POSITIVE_INFINITY) - nowMs);
    return Math.max(0, Math.min(...waits, isRetryDue ? listenRetryMs : Number.MAX_SAFE_INTEGER));
  }

  async #listen(target: RelayTarget): Promise<OpenPort> {
    const { clock, family, log, random = Math.random } = this.#options;
    const choice = new EndpointChoice(target, clock, random);
    if (target.protocol === "udp") {
      const about = { family, host: this.#host, port: target.nodePort, choice, clock, log };
      return await DatagramRelay.open({ ...about, onFlow: () => this.#loop.wake() });
    }
    const server = createServer({ allowHalfOpen: true, pauseOnConnect: true, noDelay: true }, (client) =>
      this.#relay(client, choice),
    );
    await listening(server, this.#host, target.nodePort);
    // An error after that is one of accepting a connection: that client has to try again.
    server.on("error", (err) =>
      log.warn({ service: target.name, err: messageOf(err) }, "a connection was not accepted"),
    );
    return { choice, close: () => void server.close(), changed: () => {}, dropIdle: () => undefined };
  }

  /** Joins a client to an endpoint: bytes at the pace of the slower one, each direction ended by itself. */
  #relay(client: Socket, choice: EndpointChoice): void {
    const { log } = this.#options;
    const endpoint = choice.next();
    if (endpoint === undefined || this.#connections.size >= this.#connectionsMax) {
      if (endpoint !== undefined && !this.#isFullTold) {
        log.warn(
          { connections: this.#connectionsMax },
          "too many connections to node ports on loopback; refusing more",
        );
      }
      this.#isFullTold ||= endpoint !== undefined;
      client.on("error", () => {}); // nobody is told twice
      client.resetAndDestroy();
      return;
    }
    const upstream = connect({ host: endpoint.ip, port: endpoint.port, allowHalfOpen: true, noDelay: true });
    const timer = this.#options.clock.after(connectTimeoutMs, () => upstream.destroy(new Error("no answer")));
    upstream.on("connect", () => {
      timer.cancel();
      client.pipe(upstream);
      upstream.pipe(client);
    });
    this.#connections.add(client);
    for (const [one, other] of [
      [client, upstream],
      [upstream, client],
    ] as const) {
      one.setKeepAlive(true, keepAliveMs);
      one.on("error", () => {}); // "close" follows
      one.on("close", (hadError) => {
        timer.cancel();
        // Whoever was cut off must not take what it has got for all there is.
        if (hadError || !one.readableEnded) {
          if (other.connecting) other.destroy();
          else other.resetAndDestroy();
        }
        this.#connections.delete(client);
        if (this.#connections.size < this.#connectionsMax / 2) this.#isFullTold = false;
      });
    }
  }
}

async function listening(server: Server, host: string, port: number): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen({ host, port }, () => {
      server.off("error", reject);
      resolve();
    });
  });
}
