import type { Endpoint, Service, ServicePort } from "../../agent/kube/types.ts";
import { contains, parseCIDR, parseIP } from "../../agent/proxy/ip.ts";
import type { Packet } from "./packet-tracer.ts";

/** A Service and its endpoints. */
export interface ServiceWithEndpoints {
  readonly service: Service;
  /** By their first addresses; all of them answer on port 8080. */
  readonly endpoints: readonly Endpoint[];
}

/** The node that packets come to, and what decides beyond the services. */
export interface FateContext {
  readonly nodeName: string;
  readonly zone: string;
  readonly nodeIP: string;
  readonly localIPs: readonly string[];
  /** Pods' addresses; undefined: pods cannot be told from others. */
  readonly podCIDR: string | undefined;
  readonly masqueradeAll: boolean;
}

type Target = "clusterIP" | "externalIP" | "vip" | "nodePort";

/** One port, and who may get its packets. */
interface Choice {
  readonly service: Service;
  readonly port: ServicePort;
  readonly vips: readonly string[];
  readonly cluster: readonly Endpoint[];
  readonly local: readonly Endpoint[];
  readonly hasAny: boolean;
  readonly isInternalLocal: boolean;
  readonly isExternalLocal: boolean;
}

/**
 * What may become of a connection's first packet in kube-proxy's iptables mode, by its rules of behaviour and not by any rules of
 * ours: `ip:port` (` m`: masqueraded) of each endpoint that may get it, or the one verdict.
 */
export function fatesOf(world: readonly ServiceWithEndpoints[], packet: Packet, context: FateContext): Set<string> {
  const choices = world.flatMap(({ service, endpoints }) =>
    (service.spec?.ports ?? [])
      .filter(({ protocol = "TCP" }) => protocol.toLowerCase() === packet.proto)
      .map((port) => choose(service, port, endpoints, context)),
  );
  const found = findTarget(choices, packet, context);
  if (found === undefined) return new Set(["ACCEPT"]);
  const { choice, target } = found;
  const sent = send(choice, target, packet, context);
  return sent.size > 0 ? sent : new Set([refusal(choice, target, packet, context)]);
}

function choose(service: Service, port: ServicePort, all: readonly Endpoint[], context: FateContext): Choice {
  const { externalIPs = [], externalTrafficPolicy, internalTrafficPolicy } = service.spec ?? {};
  const ingress = service.status?.loadBalancer?.ingress ?? [];
  const vips = ingress.flatMap(({ ip, ipMode = "VIP" }) => (ip !== undefined && ipMode === "VIP" ? [ip] : []));
  const isExternal = (port.nodePort ?? 0) !== 0 || vips.length > 0 || (externalIPs ?? []).length > 0;
  const isInternalLocal = internalTrafficPolicy === "Local";
  const isExternalLocal = externalTrafficPolicy === "Local" && isExternal;
  const ready = all.filter(({ conditions }) => conditions?.ready ?? true);
  const ending = all.filter(({ conditions }) => (conditions?.serving ?? true) && (conditions?.terminating ?? false));
  const isHere = ({ nodeName }: Endpoint) => nodeName === context.nodeName;
  const near = nearest(ready, context);
  const usesCluster = !isInternalLocal || isExternal;
  const usesLocal = isInternalLocal || isExternalLocal;
  const cluster = !usesCluster ? [] : near.length > 0 ? near : ending;
  const local = !usesLocal ? [] : (ready.some(isHere) ? ready : ending).filter(isHere);
  const hasAny = cluster.length > 0 || (usesLocal && ready.length + ending.length > 0);
  return { service, port, vips, cluster, local, hasAny, isInternalLocal, isExternalLocal };
}

/** By hints: those for this node if all have such hints, else those for its zone if all have those, else all. */
function nearest(ready: readonly Endpoint[], { nodeName, zone }: FateContext): readonly Endpoint[] {
  for (const [kind, wanted] of [
    ["forNodes", nodeName],
    ["forZones", zone],
  ] as const) {
    const names = (one: Endpoint) => (one.hints?.[kind] ?? []).map(({ name }) => name);
    const near = ready.filter((one) => names(one).includes(wanted));
    if (near.length > 0 && ready.every((one) => names(one).length > 0)) return near;
  }
  return ready;
}

function findTarget(choices: readonly Choice[], { dst, dport }: Packet, { localIPs }: FateContext) {
  for (const choice of choices) {
    const { clusterIP, externalIPs } = choice.service.spec ?? {};
    if (choice.port.port !== dport) continue;
    const targets: readonly (readonly [Target, boolean])[] = [
      ["clusterIP", clusterIP === dst],
      ["externalIP", externalIPs?.includes(dst) === true],
      ["vip", choice.vips.includes(dst)],
    ];
    const target = targets.find(([, isIt]) => isIt)?.[0];
    if (target !== undefined) return { choice, target };
  }
  const choice = localIPs.includes(dst) ? choices.find(({ port }) => port.nodePort === dport) : undefined;
  return choice === undefined ? undefined : { choice, target: "nodePort" as const };
}

function send(choice: Choice, target: Target, { src }: Packet, context: FateContext): Set<string> {
  const { cluster, local, isInternalLocal, isExternalLocal } = choice;
  const isPod = context.podCIDR !== undefined && isIn(src, context.podCIDR);
  const fates = (endpoints: readonly Endpoint[], isMasqueraded: boolean) =>
    new Set(
      endpoints.map(({ addresses: [ip] }) => `${ip}:8080${isMasqueraded || ip === src ? " m" : ""}`), // ip === src: to itself
    );
  if (target === "clusterIP") {
    const isMasqueraded = context.masqueradeAll || (context.podCIDR !== undefined && !isPod);
    return fates(isInternalLocal ? local : cluster, isMasqueraded);
  }
  if (target === "vip" && !isAdmitted(choice, src, context)) return new Set();
  if (!isExternalLocal) return fates(cluster, true);
  if (isPod) return fates(cluster, false);
  return context.localIPs.includes(src) ? fates(cluster, true) : fates(local, false);
}

/** The load balancer's ranges of this family; a VIP itself is the node's own source where a range has the node. */
function rangesOf({ service }: Choice): string[] {
  const ranges = (service.spec?.loadBalancerSourceRanges ?? []).filter((range) => !range.includes(":"));
  return ranges.some((range) => range.endsWith("/0")) ? [] : ranges;
}

function isAdmitted(choice: Choice, src: string, { nodeIP }: FateContext): boolean {
  const ranges = rangesOf(choice);
  const has = (ip: string) => ranges.some((range) => isIn(ip, range));
  return ranges.length === 0 || has(src) || (has(nodeIP) && choice.vips.includes(src));
}

function refusal(choice: Choice, target: Target, packet: Packet, { localIPs }: FateContext): string {
  const { hasAny, isInternalLocal, isExternalLocal, local } = choice;
  const hook = packet.iface === undefined ? "OUTPUT" : localIPs.includes(packet.dst) ? "INPUT" : "FORWARD";
  if (target === "vip" && hasAny && rangesOf(choice).length > 0) return "DROP";
  const isLocalOnly = target === "clusterIP" ? isInternalLocal : isExternalLocal;
  const isRefused = !hasAny || (isLocalOnly && local.length === 0);
  const isLookedAt = target === "clusterIP" ? hook !== "INPUT" : hook !== "OUTPUT";
  return isRefused && isLookedAt ? (hasAny ? "DROP" : "REJECT") : "ACCEPT";
}

function isIn(ip: string, cidr: string): boolean {
  const [address, prefix] = [parseIP(ip), parseCIDR(cidr)];
  return address !== undefined && prefix !== undefined && contains(prefix, address);
}
