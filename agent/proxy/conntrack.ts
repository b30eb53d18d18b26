import type { Clock } from "../lib/clock.ts";
import { AgentError } from "../lib/errors.ts";
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
// All that one look at the flows may take, removals included. What is left then comes with the next look.
export const cleanTimeoutMs = 120_000;
// Each removal walks the whole table in the kernel: more of them at a time only wait for each other.
const removalsAtOnce = 4;
// conntrack ends at the first flow that went by itself between being listed and being removed, and leaves those behind it. As often as the
// reference reads an interrupted listing again.
export const removalAttemptsMax = 5;
/** Protocols whose flows outlive the endpoint they lead to. TCP clients notice and connect anew. */
const pinnedProtocols: readonly Protocol[] = ["udp", "sctp"];
// Protocol, and of both directions what is needed. conntrack prints them in this order, with other words between.
const flowRE =
  /(?:^| )(tcp|udp|sctp) .*?\bsrc=\S+ dst=(\S+) sport=\d+ dport=(\d+) (?:.*? )??src=(\S+) dst=\S+ sport=(\d+) /;

/** Reads one line of `conntrack -L`; undefined if it is no complete flow of a known protocol. Pure. */
export function parseFlow(line: string): Flow | undefined {
  const [, protocol, dstIP = "", dstPort, replyIP = "", replyPort] = flowRE.exec(line) ?? [];
  if (protocol !== "tcp" && protocol !== "udp" && protocol !== "sctp") return undefined;
  return {
    protocol,
    dstIP: canonical(dstIP),
    dstPort: Number(dstPort),
    replyIP: canonical(replyIP),
    replyPort: Number(replyPort),
  };
}

/**
 * Of one service, endpoints that flows may stay with, as `ip:port`, by where clients reach them: `protocol ip:port`, or
 * `protocol port` for a node port.
 */
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
 * Pure; made once, then asked for each flow.
 *
 * @param localIPs this machine's addresses: a node port means a flow only if it goes to one of them
 * @param former what could be reached before, and who answered there; not what somebody has now
 */
export function staleFlowTest(
  services: Iterable<Targets>,
  localIPs: readonly string[],
  former: Targets = new Map(),
): (flow: Flow) => boolean {
  const servingByTarget = new Map<string, ReadonlySet<string>>();
  const isLocal = new Set(localIPs.map(canonical));
  for (const service of services) {
    for (const [target, serving] of service) servingByTarget.set(target, serving);
  }
  return (flow) => {
    const reply = hostPort(flow.replyIP, flow.replyPort);
    const serving = servingOf(flow, servingByTarget, isLocal);
    return serving === undefined ? servingOf(flow, former, isLocal)?.has(reply) === true : !serving.has(reply);
  };
}

/** Whether an endpoint of one of these services answers the flow. Pure. */
export function isServed(flow: Flow, services: Iterable<Targets>, localIPs: readonly string[]): boolean {
  const isLocal = new Set(localIPs.map(canonical));
  const reply = hostPort(flow.replyIP, flow.replyPort);
  for (const service of services) if (servingOf(flow, service, isLocal)?.has(reply) === true) return true;
  return false;
}

function servingOf(
  { protocol, dstIP, dstPort }: Flow,
  targets: Targets,
  isLocal: ReadonlySet<string>,
): ReadonlySet<string> | undefined {
  return (
    targets.get(`${protocol} ${hostPort(dstIP, dstPort)}`) ??
    (isLocal.has(dstIP) ? targets.get(`${protocol} ${dstPort}`) : undefined)
  );
}

interface ConntrackCleanerDeps {
  readonly commands: Commands;
  readonly family: Family;
  readonly clock: Pick<Clock, "monotonic">;
  readonly log: Logger;
}

/** Removes flows that pin traffic to dead endpoints, with the `conntrack` command. */
export class ConntrackCleaner {
  readonly #deps: ConntrackCleanerDeps;
  #isMissing = false;
  /**
   * By service: where it could be reached since it was looked at last. A new agent knows of none, and removes what it can tell
   * only.
   */
  readonly #targets = new Map<string, Targets>();

  constructor(deps: ConntrackCleanerDeps) {
    this.#deps = deps;
  }

  /** Whether this service could be reached since it was looked at last, at something that flows are pinned to. */
  knows(key: string): boolean {
    return this.#targets.has(key);
  }

  /** Notes where a service can be reached from now on: flows may begin before anybody looks. */
  learn(key: string, targets: Targets): void {
    if (targets.size === 0) return;
    const known = this.#targets.get(key);
    if (known === undefined) {
      this.#targets.set(key, targets);
      return;
    }
    const all = new Map(known);
    for (const [target, serving] of targets) all.set(target, new Set([...(known.get(target) ?? []), ...serving]));
    this.#targets.set(key, all);
  }

  /**
   * Looks at all flows once and removes the stale ones of these services. Rejects with an `AgentError`; some may have been removed
   * then, and the same services are to be looked at again. Without the command it warns once and does nothing.
   *
   * @param services by key, where each can be reached now
   * @param isKept asked before a flow is removed: it is not stale any more, because of a change that came since the look began
   * @returns how many flows were removed
   */
  async clean(
    services: ReadonlyMap<string, Targets>,
    localIPs: readonly string[],
    signal: AbortSignal,
    isKept: (flow: Flow) => boolean = () => false,
  ): Promise<number> {
    if (this.#isMissing) return 0;
    const deadlineMs = this.#deps.clock.monotonic() + cleanTimeoutMs;
    const known = new Map([...services.keys()].map((key) => [key, this.#targets.get(key)]));
    const stale = await this.#findStale(services, localIPs, signal);
    if (stale === undefined) return 0;
    const removed = await this.#removeAll(stale, { isKept, deadlineMs }, signal);
    for (const [key, targets] of services) {
      // What was learned meanwhile is for the next look.
      if (this.#targets.get(key) !== known.get(key)) continue;
      if (targets.size === 0) this.#targets.delete(key);
      else this.#targets.set(key, targets);
    }
    return removed;
  }

  /** @returns one for all flows to the same endpoint by the same address; undefined: there is no command to ask */
  async #findStale(
    services: ReadonlyMap<string, Targets>,
    localIPs: readonly string[],
    signal: AbortSignal,
  ): Promise<Iterable<Flow> | undefined> {
    const { commands, log } = this.#deps;
    const former = this.#former(services);
    const isStale = staleFlowTest(services.values(), localIPs, former);
    const stale = new Map<string, Flow>();
    const used = new Set<string>();
    for (const targets of [former, ...services.values()]) {
      for (const target of targets.keys()) used.add(target.slice(0, target.indexOf(" ")));
    }
    for (const protocol of pinnedProtocols) {
      if (!used.has(protocol)) continue;
      const result = await commands.lines("conntrack", ["-L", ...this.#common(protocol)], {
        timeoutMs: commandTimeoutMs,
        signal,
        onLine: (line) => {
          const flow = parseFlow(line);
          if (flow !== undefined && isStale(flow)) stale.set(JSON.stringify(flow), flow);
        },
      });
      if (result.failure === "spawn" && result.message.includes("ENOENT")) {
        this.#isMissing = true;
        log.warn({ err: result.message }, "no conntrack command: UDP clients may stay with endpoints that are gone");
        return undefined;
      }
      expectSuccess(result, `list ${protocol} flows`);
    }
    return stale.values();
  }

  async #removeAll(
    flows: Iterable<Flow>,
    { isKept, deadlineMs }: { readonly isKept: (flow: Flow) => boolean; readonly deadlineMs: number },
    signal: AbortSignal,
  ): Promise<number> {
    const { clock } = this.#deps;
    const rest = [...flows];
    const failures: unknown[] = [];
    let removed = 0;
    const removeSome = async () => {
      while (failures.length === 0) {
        const flow = rest.shift();
        if (flow === undefined) return;
        if (isKept(flow)) continue;
        try {
          const leftMs = deadlineMs - clock.monotonic();
          if (leftMs <= 0) {
            throw new AgentError(
              "Unavailable",
              `${rest.length + 1} kinds of flows are left after ${cleanTimeoutMs} ms`,
            );
          }
          const count = await this.#remove(flow, Math.min(leftMs, commandTimeoutMs), signal);
          removed += count; // others have added theirs meanwhile
        } catch (err) {
          failures.push(err);
        }
      }
    };
    await Promise.all(Array.from({ length: removalsAtOnce }, removeSome));
    if (failures.length > 0) throw failures[0];
    return removed;
  }

  /** Removes all flows to one endpoint that went by one command, whoever the clients are. @returns how many there were */
  async #remove(flow: Flow, timeoutMs: number, signal: AbortSignal): Promise<number> {
    const { protocol, dstIP, dstPort, replyIP, replyPort } = flow;
    const original = ["--orig-dst", dstIP, "--orig-port-dst", `${dstPort}`];
    const reply = ["--reply-src", replyIP, "--reply-port-src", `${replyPort}`];
    const args = ["-D", ...this.#common(protocol), ...original, ...reply];
    let removed = 0;
    for (let attempt = 1; ; attempt += 1) {
      const result = await this.#deps.commands.run("conntrack", args, { timeoutMs, signal });
      if (result.failure === "exit" && result.stderr.includes("0 flow entries")) return removed; // timed out meanwhile
      if (result.failure === "exit" && result.stderr.includes("such conntrack doesn't exist")) {
        removed += result.stdout.split("\n").filter((line) => parseFlow(line) !== undefined).length;
        if (attempt < removalAttemptsMax) continue;
      }
      expectSuccess(result, `remove ${protocol} flows to ${hostPort(replyIP, replyPort)}`);
      return removed + Number(/(\d+) flow entries have been deleted/.exec(result.stderr)?.[1] ?? 1);
    }
  }

  /** What these services gave up, and nobody else has taken. */
  #former(services: ReadonlyMap<string, Targets>): Map<string, ReadonlySet<string>> {
    const former = new Map<string, ReadonlySet<string>>();
    for (const key of services.keys()) {
      for (const [target, serving] of this.#targets.get(key) ?? []) former.set(target, serving);
    }
    if (former.size === 0) return former;
    for (const [key, targets] of this.#targets) {
      if (!services.has(key)) for (const target of targets.keys()) former.delete(target);
    }
    for (const targets of services.values()) for (const target of targets.keys()) former.delete(target);
    return former;
  }

  #common(protocol: Protocol): string[] {
    return ["-f", this.#deps.family === "IPv4" ? "ipv4" : "ipv6", "-p", protocol];
  }
}

/** conntrack prints IPv4 addresses in the one spelling that they have. */
function canonical(text: string): string {
  if (!text.includes(":")) return text;
  const ip = parseIP(text);
  return ip === undefined ? text : formatIP(ip);
}
