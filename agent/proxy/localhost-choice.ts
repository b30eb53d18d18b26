import type { Clock } from "../lib/clock.ts";
import type { ServiceDescription } from "./model.ts";

/** Where one node port's traffic goes. */
export interface RelayTarget {
  /** `namespace/name:port`. */
  readonly name: string;
  readonly protocol: "tcp" | "udp";
  readonly nodePort: number;
  readonly endpoints: readonly { readonly ip: string; readonly port: number; readonly address: string }[];
  /** Undefined: no session affinity. All clients on loopback are one client. */
  readonly affinitySeconds: number | undefined;
}

/** Node ports of a service that loopback is to answer. None without endpoints: then nobody listens, and clients are refused. Pure. */
export function relayTargets(service: ServiceDescription): RelayTarget[] {
  return service.ports.flatMap(({ name, protocol, nodePort, endpoints, affinitySeconds }): RelayTarget[] => {
    // The node itself reaches all endpoints, also under a Local policy. There are no SCTP sockets in Node.js.
    if (nodePort === 0 || protocol === "sctp" || endpoints.cluster.length === 0) return [];
    return [{ name, protocol, nodePort, endpoints: endpoints.cluster, affinitySeconds }];
  });
}

/** Picks endpoints of one node port: by chance, or the one of last time while affinity lasts. */
export class EndpointChoice {
  target: RelayTarget;
  readonly #clock: Clock;
  readonly #random: () => number;
  #last: { address: string; atMs: number } | undefined;

  constructor(target: RelayTarget, clock: Clock, random: () => number) {
    this.target = target;
    this.#clock = clock;
    this.#random = random;
  }

  next(): RelayTarget["endpoints"][number] | undefined {
    const { endpoints, affinitySeconds } = this.target;
    const nowMs = this.#clock.monotonic();
    const last = this.#last;
    const isRemembered =
      affinitySeconds !== undefined && last !== undefined && nowMs - last.atMs < affinitySeconds * 1_000;
    const known = isRemembered ? endpoints.find(({ address }) => address === last.address) : undefined;
    const chosen = known ?? endpoints[Math.floor(this.#random() * endpoints.length)];
    if (chosen !== undefined) this.#last = { address: chosen.address, atMs: nowMs };
    return chosen;
  }

  has(address: string): boolean {
    return this.target.endpoints.some((endpoint) => endpoint.address === address);
  }
}
