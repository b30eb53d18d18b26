import { createSocket, type Socket } from "node:dgram";
import type { Clock } from "../lib/clock.ts";
import { messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import type { Family } from "./ip.ts";
import type { EndpointChoice } from "./localhost-choice.ts";

export interface DatagramRelayOptions {
  readonly family: Family;
  readonly host: string;
  readonly port: number;
  readonly choice: EndpointChoice;
  readonly clock: Clock;
  readonly log: Logger;
  /** There is a first flow: `dropIdle` has something to do. */
  readonly onFlow: () => void;
}

// The kernel forgets a flow that went both ways after this long (nf_conntrack_udp_timeout_stream).
export const flowIdleMs = 120_000;
// Flows of one node port at a time, each a descriptor; the one that was idle longest makes room.
export const flowsMax = 1_024;
// Datagrams that wait while a flow's socket is made ready. More than a client sends before it gets an answer.
const waitingMax = 64;

/** One client's address, and the socket that its datagrams go on by. */
interface Flow {
  readonly socket: Socket;
  readonly address: string;
  usedAtMs: number;
  /** Datagrams before the socket was ready; undefined afterwards. */
  waiting: Buffer[] | undefined;
}

/** Relays datagrams to one node port on loopback. Each client stays with its endpoint until the flow was idle for long or the endpoint goes. */
export class DatagramRelay {
  readonly choice: EndpointChoice;
  readonly #options: DatagramRelayOptions;
  readonly #socket: Socket;
  /** By client port; those used last come last. */
  readonly #flows = new Map<number, Flow>();

  private constructor(options: DatagramRelayOptions, socket: Socket) {
    this.#options = options;
    this.choice = options.choice;
    this.#socket = socket;
    socket.on("message", (message, { port }) => this.#forward(message, port));
    // Of a reply that could not be sent, or a lack of memory: a lost datagram.
    socket.on("error", (err) => options.log.debug({ err: messageOf(err) }, "a datagram on loopback was lost"));
  }

  /** Rejects if the port cannot be had. */
  static async open(options: DatagramRelayOptions): Promise<DatagramRelay> {
    const socket = createSocket({ type: typeOf(options.family) });
    try {
      await new Promise<void>((resolve, reject) => {
        socket.once("error", reject);
        socket.bind({ address: options.host, port: options.port, exclusive: true }, () => {
          socket.off("error", reject);
          resolve();
        });
      });
    } catch (err) {
      socket.close();
      throw err;
    }
    return new DatagramRelay(options, socket);
  }

  close(): void {
    this.#socket.close();
    for (const port of this.#flows.keys()) this.#end(port);
  }

  /** Ends flows to endpoints that are gone: their clients would never find out by themselves. */
  changed(): void {
    for (const [port, { address }] of this.#flows) if (!this.choice.has(address)) this.#end(port);
  }

  /** @returns when the next flow may have been idle for long (monotonic ms); undefined: there is none */
  dropIdle(nowMs: number): number | undefined {
    for (const [port, { usedAtMs }] of this.#flows) {
      if (usedAtMs + flowIdleMs > nowMs) return usedAtMs + flowIdleMs;
      this.#end(port);
    }
    return undefined;
  }

  #forward(message: Buffer, clientPort: number): void {
    const flow = this.#flows.get(clientPort) ?? this.#begin(clientPort);
    if (flow === undefined) return;
    this.#touch(clientPort, flow);
    if (flow.waiting === undefined) flow.socket.send(message);
    else if (flow.waiting.length < waitingMax) flow.waiting.push(message);
  }

  #begin(clientPort: number): Flow | undefined {
    const endpoint = this.choice.next();
    if (endpoint === undefined) return undefined;
    const [oldest] = this.#flows.keys();
    if (oldest !== undefined && this.#flows.size >= flowsMax) this.#end(oldest);
    const socket = createSocket({ type: typeOf(this.#options.family) });
    const flow: Flow = { socket, address: endpoint.address, usedAtMs: 0, waiting: [] };
    const endIfOurs = () => {
      if (this.#flows.get(clientPort) === flow) this.#end(clientPort);
    };
    // Refused, or no way there: the next datagram tries another endpoint.
    socket.on("error", endIfOurs);
    socket.on("message", (reply) => {
      this.#touch(clientPort, flow);
      this.#socket.send(reply, clientPort, this.#options.host);
    });
    socket.once("connect", () => {
      const waiting = flow.waiting ?? [];
      flow.waiting = undefined;
      for (const one of waiting) socket.send(one);
    });
    socket.connect(endpoint.port, endpoint.ip);
    if (this.#flows.size === 0) this.#options.onFlow();
    return flow;
  }

  #touch(clientPort: number, flow: Flow): void {
    flow.usedAtMs = this.#options.clock.monotonic();
    this.#flows.delete(clientPort);
    this.#flows.set(clientPort, flow);
  }

  #end(clientPort: number): void {
    this.#flows.get(clientPort)?.socket.close();
    this.#flows.delete(clientPort);
  }
}

function typeOf(family: Family): "udp4" | "udp6" {
  return family === "IPv4" ? "udp4" : "udp6";
}
