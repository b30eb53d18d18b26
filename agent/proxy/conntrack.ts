import type { Logger } from "../lib/log.ts";
import { type Commands, expectSuccess } from "./commands.ts";
import { type Family, formatIP, hostPort, parseIP } from "./ip.ts";
import type { ServiceDescription } from "./model.ts";
import type { Protocol } from "./service.ts";

/** One tracked flow, as far as it matters here: whom the client talks to, and who answers. */
export interface Flow {
  readonly protocol: Protocol;
  readonly dstIP: string;
  readonly dstPort: number;
  readonly replyIP: string;
  readonly replyPort: number;
}

// Reading or changing a full table of a million entries takes seconds.
const commandTimeoutMs = 60_000;
/** Protocols whose flows outlive the endpoint they lead to. TCP clients notice and connect anew. */
const pinnedProtocols: readonly Protocol[] = ["udp", "sctp"];

/** True if a service has ports whose flows may have to be cleaned up. */
export function hasPinnedFlows(service: ServiceDescription): boolean {
  return service.ports.some((port) => pinnedProtocols.includes(port.protocol));
}

/** Reads one line of `conntrack -L`; undefined if it is no complete flow of a known protocol. Pure. */
export function parseFlow(line: string): Flow | undefined {
  const protocol = pinnedProtocols.find((name) => line.startsWith(`${name} `) || line.includes(` ${name} `));
  const fields = [...line.matchAll(/\b(src|dst|sport|dport)=(\S+)/g)];
  const nth = (name: string, n: number) => fields.filter((field) => field[1] === name)[n]?.[2];
  const [dstIP, dstPort, replyIP, replyPort] = [nth("dst", 0), nth("dport", 0), nth("src", 1), nth("sport", 1)];
  if (!protocol || !dstIP || !dstPort || !replyIP || !replyPort) return undefined;
  return {
    protocol,
    dstIP: canonical(dstIP),
    dstPort: Number(dstPort),
    replyIP: canonical(replyIP),
    replyPort: Number(replyPort),
  };
}

/**
 * Tells flows to a service that no endpoint of it answers any more: the endpoint went, or the flow began when there
 * was none. A service without endpoints counts, too; otherwise its flows would stay with the last endpoint for ever.
 * Pure; made once for a list of services, then asked for each flow.
 *
 * @param localIPs this machine's addresses: a node port means a flow only if it goes to one of them
 */
export function staleFlowTest(
  services: Iterable<ServiceDescription>,
  localIPs: readonly string[],
): (flow: Flow) => boolean {
  const servingByTarget = new Map<string, ReadonlySet<string>>();
  const isLocal = new Set(localIPs.map(canonical));
  for (const service of services) {
    for (const port of service.ports) {
      if (!pinnedProtocols.includes(port.protocol)) continue;
      const serving = new Set(port.serving);
      for (const ip of [port.clusterIP, ...port.externalIPs, ...port.loadBalancerVIPs]) {
        servingByTarget.set(`${port.protocol} ${hostPort(ip, port.port)}`, serving);
      }
      if (port.nodePort !== 0) servingByTarget.set(`${port.protocol} ${port.nodePort}`, serving);
    }
  }
  return (flow) => {
    const { protocol, dstIP, dstPort } = flow;
    const serving =
      servingByTarget.get(`${protocol} ${hostPort(dstIP, dstPort)}`) ??
      (isLocal.has(dstIP) ? servingByTarget.get(`${protocol} ${dstPort}`) : undefined);
    return serving !== undefined && !serving.has(hostPort(flow.replyIP, flow.replyPort));
  };
}

/** Removes flows that pin traffic to dead endpoints, with the `conntrack` command. */
export class ConntrackCleaner {
  readonly #commands: Commands;
  readonly #family: Family;
  readonly #log: Logger;
  #isMissing = false;

  constructor(commands: Commands, family: Family, log: Logger) {
    this.#commands = commands;
    this.#family = family;
    this.#log = log;
  }

  /**
   * Looks at all flows once and removes the stale ones of these services.
   * Rejects with an `AgentError`; without the command it warns once and does nothing.
   *
   * @returns how many flows were removed
   */
  async clean(
    services: readonly ServiceDescription[],
    localIPs: readonly string[],
    signal: AbortSignal,
  ): Promise<number> {
    if (this.#isMissing) return 0;
    const isStale = staleFlowTest(services, localIPs);
    const stale = new Map<string, Flow>();
    const used = new Set(services.flatMap((service) => service.ports.map((port) => port.protocol)));
    for (const protocol of pinnedProtocols) {
      if (!used.has(protocol)) continue;
      const result = await this.#commands.lines("conntrack", ["-L", ...this.#common(protocol)], {
        timeoutMs: commandTimeoutMs,
        signal,
        onLine: (line) => {
          const flow = parseFlow(line);
          if (flow !== undefined && isStale(flow)) stale.set(JSON.stringify(flow), flow);
        },
      });
      if (result.failure === "spawn") {
        this.#isMissing = true;
        this.#log.warn(
          { err: result.message },
          "no conntrack command: UDP clients may stay with endpoints that are gone",
        );
        return 0;
      }
      expectSuccess(result, `list ${protocol} flows`);
    }
    let removed = 0;
    // All flows to one endpoint that went are removed by one command, whoever the clients are.
    for (const { protocol, dstIP, dstPort, replyIP, replyPort } of stale.values()) {
      const which = [
        "--orig-dst",
        dstIP,
        "--orig-port-dst",
        `${dstPort}`,
        "--reply-src",
        replyIP,
        "--reply-port-src",
        `${replyPort}`,
      ];
      const args = ["-D", ...this.#common(protocol), ...which];
      const result = await this.#commands.run("conntrack", args, { timeoutMs: commandTimeoutMs, signal });
      if (result.failure === "exit" && result.stderr.includes("0 flow entries")) continue; // timed out meanwhile
      expectSuccess(result, `remove ${protocol} flows to ${hostPort(replyIP, replyPort)}`);
      removed += Number(/(\d+) flow entries have been deleted/.exec(result.stderr)?.[1] ?? 1);
    }
    return removed;
  }

  #common(protocol: Protocol): string[] {
    return ["-f", this.#family === "IPv4" ? "ipv4" : "ipv6", "-p", protocol];
  }
}

function canonical(text: string): string {
  const ip = parseIP(text);
  return ip === undefined ? text : formatIP(ip);
}
