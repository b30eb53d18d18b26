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
function hasPinnedFlows(service: ServiceDescription): boolean {
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

/** Endpoints that serve, as `ip:port`, by where clients reach them: `protocol ip:port`, or `protocol port` for a node port. */
export type Targets = ReadonlyMap<string, ReadonlySet<string>>;

/** Where a service's ports with pinned flows can be reached. Pure. */
export function targetsOf(service: ServiceDescription): Targets {
  const targets = new Map<string, ReadonlySet<string>>();
  for (const port of service.ports) {
    if (!pinnedProtocols.includes(port.protocol)) continue;
    const serving = new Set(port.serving);
    for (const ip of [port.clusterIP, ...port.externalIPs, ...port.loadBalancerVIPs]) {
      targets.set(`${port.protocol} ${hostPort(ip, port.port)}`, serving);
    }
    if (port.nodePort !== 0) targets.set(`${port.protocol} ${port.nodePort}`, serving);
  }
  return targets;
}

/**
 * Tells flows to a service that no endpoint of it answers any more: the endpoint went, or the flow began when there
 * was none. A service without endpoints counts, too; otherwise its flows would stay with the last endpoint for ever.
 * So do flows to an address that the service gave up, as long as they lead to what was behind it.
 * Pure; made once for a list of services, then asked for each flow.
 *
 * @param localIPs this machine's addresses: a node port means a flow only if it goes to one of them
 * @param former what could be reached before, and who answered there; not what somebody has now
 */
export function staleFlowTest(
  services: Iterable<ServiceDescription>,
  localIPs: readonly string[],
  former: Targets = new Map(),
): (flow: Flow) => boolean {
  const servingByTarget = new Map<string, ReadonlySet<string>>();
  const isLocal = new Set(localIPs.map(canonical));
  for (const service of services) {
    for (const [target, serving] of targetsOf(service)) servingByTarget.set(target, serving);
  }
  return (flow) => {
    const { protocol, dstIP, dstPort } = flow;
    const find = (targets: Targets) =>
      targets.get(`${protocol} ${hostPort(dstIP, dstPort)}`) ??
      (isLocal.has(dstIP) ? targets.get(`${protocol} ${dstPort}`) : undefined);
    const reply = hostPort(flow.replyIP, flow.replyPort);
    const serving = find(servingByTarget);
    return serving === undefined ? find(former)?.has(reply) === true : !serving.has(reply);
  };
}

/** Removes flows that pin traffic to dead endpoints, with the `conntrack` command. */
export class ConntrackCleaner {
  readonly #commands: Commands;
  readonly #family: Family;
  readonly #log: Logger;
  #isMissing = false;
  /** By service: where it could be reached when it was looked at last. A new agent knows of none, and removes what it can tell only. */
  readonly #targets = new Map<string, Targets>();

  constructor(commands: Commands, family: Family, log: Logger) {
    this.#commands = commands;
    this.#family = family;
    this.#log = log;
  }

  /** Whether flows may have to be removed after a change of this service. */
  concerns(service: ServiceDescription): boolean {
    return hasPinnedFlows(service) || this.#targets.has(service.key);
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
    const former = this.#former(services);
    const isStale = staleFlowTest(services, localIPs, former);
    const stale = new Map<string, Flow>();
    const used = new Set<string>(services.flatMap((service) => service.ports.map((port) => port.protocol)));
    for (const target of former.keys()) used.add(target.split(" ", 1)[0] ?? "");
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
    for (const service of services) {
      const targets = targetsOf(service);
      if (targets.size === 0) this.#targets.delete(service.key);
      else this.#targets.set(service.key, targets);
    }
    return removed;
  }

  /** What these services gave up, and nobody else has taken. */
  #former(services: readonly ServiceDescription[]): Map<string, ReadonlySet<string>> {
    const former = new Map<string, ReadonlySet<string>>();
    for (const { key } of services) {
      for (const [target, serving] of this.#targets.get(key) ?? []) former.set(target, serving);
    }
    if (former.size === 0) return former;
    const isLookedAt = new Set(services.map(({ key }) => key));
    for (const [key, targets] of this.#targets) {
      if (!isLookedAt.has(key)) for (const target of targets.keys()) former.delete(target);
    }
    for (const service of services) for (const target of targetsOf(service).keys()) former.delete(target);
    return former;
  }

  #common(protocol: Protocol): string[] {
    return ["-f", this.#family === "IPv4" ? "ipv4" : "ipv6", "-p", protocol];
  }
}

function canonical(text: string): string {
  const ip = parseIP(text);
  return ip === undefined ? text : formatIP(ip);
}
