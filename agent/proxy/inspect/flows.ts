import type { Commands } from "../commands.ts";
import { type Flow, parseFlow } from "../conntrack.ts";
import { type Family, hostPort } from "../ip.ts";
import type { Entrance, PortRules, ServiceRules } from "./service-rules.ts";

// A table of a million flows takes seconds to read.
const readTimeoutMs = 60_000;

/** One port of a service: whom its flows lead to. */
interface Tally {
  readonly port: PortRules;
  /** By where clients come in, `10.96.0.10:80`, `*:30080`. */
  readonly byDestination: Map<string, number>;
  /** By endpoint, `ip:port`. */
  readonly byEndpoint: Map<string, number>;
}

/**
 * Counts the flows of services that connection tracking knows at this moment, by entrance and endpoint: for modes whose rules count
 * nothing. Feed it all flows, then ask. Pure.
 */
export class FlowTally {
  readonly #rules: readonly ServiceRules[];
  readonly #tallies = new Map<PortRules, Tally>();
  readonly #byDestination = new Map<string, Tally>();

  constructor(rules: readonly ServiceRules[]) {
    this.#rules = rules;
    for (const port of rules.flatMap(({ ports }) => ports)) {
      const endpoints = port.chains.flatMap((chain) => chain.endpoints);
      const byEndpoint = new Map(endpoints.map(({ address }) => [address, 0]));
      const tally = { port, byDestination: new Map<string, number>(), byEndpoint };
      this.#tallies.set(port, tally);
      for (const { destination } of port.entrances) {
        this.#byDestination.set(`${port.protocol} ${destination}`, tally);
        tally.byDestination.set(destination, 0);
      }
    }
  }

  add({ protocol, dstIP, dstPort, replyIP, replyPort }: Flow): void {
    const endpoint = hostPort(replyIP, replyPort);
    // A node port is one on any address of the node, so only its endpoint says that the flow is one of the service.
    for (const destination of [hostPort(dstIP, dstPort), hostPort("*", dstPort)]) {
      const tally = this.#byDestination.get(`${protocol} ${destination}`);
      const count = tally?.byEndpoint.get(endpoint);
      if (tally === undefined || count === undefined) continue;
      tally.byEndpoint.set(endpoint, count + 1);
      tally.byDestination.set(destination, (tally.byDestination.get(destination) ?? 0) + 1);
      return;
    }
  }

  /** The rules, with how many flows there are. */
  result(): ServiceRules[] {
    return this.#rules.map((rules) => ({ ...rules, ports: rules.ports.map((port) => this.#counted(port)) }));
  }

  #counted(port: PortRules): PortRules {
    const tally = this.#tallies.get(port);
    // Packets that only pass here come in elsewhere, and those that are refused are no flows.
    const endsHere = ({ leadsTo, kind }: Entrance) => kind !== "source ranges" && !/^(REJECT|DROP)$/.test(leadsTo);
    return {
      ...port,
      entrances: port.entrances.map((one) => {
        return endsHere(one) ? { ...one, flows: tally?.byDestination.get(one.destination) } : one;
      }),
      chains: port.chains.map((chain) => ({
        ...chain,
        endpoints: chain.endpoints.map((one) => ({ ...one, flows: tally?.byEndpoint.get(one.address) })),
      })),
    };
  }
}

/**
 * Reads the kernel's flows of one IP family and counts those of these services.
 *
 * @returns the rules as they were if flows cannot be read, and why
 */
export async function countFlows(
  rules: readonly ServiceRules[],
  family: Family,
  commands: Commands,
): Promise<{ readonly rules: readonly ServiceRules[]; readonly uncounted?: string }> {
  const tally = new FlowTally(rules);
  const result = await commands.lines("conntrack", ["-L", "-f", family === "IPv4" ? "ipv4" : "ipv6"], {
    timeoutMs: readTimeoutMs,
    onLine: (line) => {
      const flow = parseFlow(line);
      if (flow !== undefined) tally.add(flow);
    },
  });
  if (result.failure !== undefined) return { rules, uncounted: `flows cannot be counted: ${result.message}` };
  return { rules: tally.result() };
}
