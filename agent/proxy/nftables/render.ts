import { type Endpoint, hairpinEndpoints, isExternallyAccessible, reachability } from "../endpoints.ts";
import { type Family, formatCIDR, hostPort, type Prefix, parseCIDR, parseIP } from "../ip.ts";
import type { ServiceDescription, ServicePort } from "../model.ts";
import { endpointBase, portBase } from "./names.ts";

/** What the rules of services depend on, beyond the services. One value for a whole sync. */
export interface RenderContext {
  readonly family: Family;
  /** `0x…` of the masquerade bit. */
  readonly mark: string;
  /** What matches packets of this node's pods; undefined: cannot be told. */
  readonly fromLocalPods: string | undefined;
}

/** An element of a set or map, as one service wants it. */
export interface Element {
  /** The service's key. */
  readonly owner: string;
  /** The set's or map's name. */
  readonly set: string;
  readonly key: string;
  /** "" in a set. */
  readonly value: string;
  /** For people, "" for none; not looked at when elements are compared. */
  readonly comment: string;
}

/** All that one service puts into the table. */
export interface RenderedService {
  readonly elements: readonly Element[];
  /** Rules by chain; chains that others go to come first. */
  readonly chains: ReadonlyMap<string, readonly string[]>;
  /** Seconds by the name of a set that remembers the clients of one endpoint. */
  readonly affinitySets: ReadonlyMap<string, number>;
  /** The numbers of endpoints whose shared chain and map it uses. */
  readonly counts: readonly number[];
}

/** The words in which nft speaks of a family. */
export function familyWords(family: Family): { ip: string; addressType: string } {
  return family === "IPv4" ? { ip: "ip", addressType: "ipv4_addr" } : { ip: "ip6", addressType: "ipv6_addr" };
}

/** Marks a packet for masquerading; leaves the other bits alone. */
export function markForMasquerade(mark: string): string {
  return `meta mark set meta mark or ${mark}`;
}

/**
 * Renders one service. Pure and byte-stable.
 *
 * Most services are cluster IPs without anything special. They have no chain at all: their address leads to a chain that all
 * services with as many endpoints share, and that looks the endpoint up by address and a random number:
 *
 *     service-ips { 10.96.0.10 . tcp . 80 : goto count-2 }     endpoints-2 { 10.96.0.10 . tcp . 80 . 0 : 10.244.0.1 . 8080, … }
 *
 * What has more than one address to it, policies or session affinity gets kube-proxy's chains:
 *
 *     ─▶ external-BASE (mark, policies) ─▶ service-BASE (all endpoints)   ─▶ endpoint-EPBASE (only with affinity)
 *                                       └▶ local-BASE (those of this node)
 */
export function renderService(service: ServiceDescription, context: RenderContext): RenderedService {
  const rendered = {
    elements: new Map<string, Element>(),
    chains: new Map<string, readonly string[]>(),
    affinitySets: new Map<string, number>(),
    counts: new Set<number>(),
  };
  for (const port of service.ports) renderPort(service.key, port, context, rendered);
  const { elements, chains, affinitySets, counts } = rendered;
  // Kept for every service, of which most have none of these.
  return {
    elements: [...elements.values()],
    chains: chains.size === 0 ? none : chains,
    affinitySets: affinitySets.size === 0 ? none : affinitySets,
    counts: [...counts],
  };
}

const none: ReadonlyMap<string, never> = new Map<string, never>();

interface Rendering {
  readonly elements: Map<string, Element>;
  readonly chains: Map<string, readonly string[]>;
  readonly affinitySets: Map<string, number>;
  readonly counts: Set<number>;
}

function renderPort(serviceKey: string, port: ServicePort, context: RenderContext, out: Rendering): void {
  const { protocol, endpoints } = port;
  const { hasAny } = endpoints;
  const isExternal = isExternallyAccessible(port);
  const isPlain = !isExternal && port.affinitySeconds === undefined;
  const base = isPlain ? "" : portBase(serviceKey, port); // chains are what the others have
  const { internal, external } = reachability(port);
  const refusal = hasAny ? "drop" : "goto reject-chain";
  const add = (set: string, key: string, value = "", comment = "") => {
    out.elements.set(`${set} ${key}`, { owner: serviceKey, set, key, value, comment });
  };
  const address = (ip: string) => concatenated(ip, protocol, port.port);

  add("cluster-ips", port.clusterIP);
  const internalList = port.isInternalPolicyLocal ? endpoints.local : endpoints.cluster;
  if (!internal) add("no-endpoint-services", address(port.clusterIP), refusal, port.name);
  else if (isPlain) {
    const count = internalList.length;
    out.counts.add(count);
    const map = `endpoints-${count}`;
    for (const [at, endpoint] of internalList.entries()) {
      const key = concatenated(port.clusterIP, protocol, port.port, at);
      add(map, key, concatenated(endpoint.ip, endpoint.port));
    }
    // What the shared chain does not tell: whose address it is.
    add("service-ips", address(port.clusterIP), `goto count-${count}`, port.name);
  } else {
    add("service-ips", address(port.clusterIP), `goto ${port.isInternalPolicyLocal ? "local" : "service"}-${base}`);
  }
  for (const ip of [...port.externalIPs, ...port.loadBalancerVIPs]) {
    if (hasAny) add("service-ips", address(ip), `goto external-${base}`);
    if (!external) add("no-endpoint-services", address(ip), refusal, port.name);
  }
  if (port.nodePort !== 0) {
    const key = concatenated(protocol, port.nodePort);
    if (hasAny) add("service-nodeports", key, `goto external-${base}`);
    if (!external) add("no-endpoint-nodeports", key, refusal, port.name);
  }
  if (port.loadBalancerVIPs.length > 0 && port.sourceRanges.length > 0) {
    out.chains.set(`firewall-${base}`, [firewallRule(port, context.family)]);
    for (const ip of port.loadBalancerVIPs) add("firewall-ips", address(ip), `goto firewall-${base}`);
  }
  for (const endpoint of hairpinEndpoints(port, context.fromLocalPods !== undefined)) {
    add("hairpin-connections", concatenated(endpoint.ip, endpoint.ip, protocol, endpoint.port));
  }
  if (isPlain) return;
  renderEndpoints(serviceKey, port, context, out);
  if (endpoints.cluster.length > 0) {
    out.chains.set(`service-${base}`, balancingRules(serviceKey, port, endpoints.cluster, context));
  }
  if (endpoints.local.length > 0) {
    out.chains.set(`local-${base}`, balancingRules(serviceKey, port, endpoints.local, context));
  }
  if (hasAny && isExternal) out.chains.set(`external-${base}`, externalRules(port, base, external, context));
}

/**
 * Parts of a key or value, as nft writes them. Hundreds of thousands are kept: `join` makes one string of it, where V8 keeps the
 * parts of what is put together in other ways, each with a header of its own.
 */
function concatenated(...parts: readonly (string | number)[]): string {
  return parts.join(" . ");
}

/** With session affinity each endpoint has a chain, which remembers its clients. */
function renderEndpoints(serviceKey: string, port: ServicePort, context: RenderContext, out: Rendering): void {
  if (port.affinitySeconds === undefined) return;
  const { ip } = familyWords(context.family);
  for (const endpoint of port.endpoints.reachable) {
    const name = endpointBase(serviceKey, port, endpoint);
    out.affinitySets.set(`affinity-${name}`, port.affinitySeconds);
    out.chains.set(`endpoint-${name}`, [
      `update @affinity-${name} { ${ip} saddr }`,
      `meta l4proto ${port.protocol} dnat to ${hostPort(endpoint.ip, endpoint.port)}`,
    ]);
  }
}

function balancingRules(
  serviceKey: string,
  port: ServicePort,
  list: readonly Endpoint[],
  { family }: RenderContext,
): string[] {
  const { ip } = familyWords(family);
  const choice = (what: (endpoint: Endpoint) => string) =>
    list.map((endpoint, at) => `${at} : ${what(endpoint)}`).join(", ");
  if (port.affinitySeconds === undefined) {
    const addresses = choice((endpoint) => `${endpoint.ip} . ${endpoint.port}`);
    return [
      `meta l4proto ${port.protocol} dnat ${ip} addr . port to numgen random mod ${list.length} map { ${addresses} }`,
    ];
  }
  const nameOf = (endpoint: Endpoint) => endpointBase(serviceKey, port, endpoint);
  return [
    ...list.map((endpoint) => `${ip} saddr @affinity-${nameOf(endpoint)} goto endpoint-${nameOf(endpoint)}`),
    `numgen random mod ${list.length} vmap { ${choice((endpoint) => `goto endpoint-${nameOf(endpoint)}`)} }`,
  ];
}

function externalRules(port: ServicePort, base: string, hasEndpoints: boolean, context: RenderContext): string[] {
  const { cluster } = port.endpoints;
  const toAll = cluster.length > 0 ? [`goto service-${base}`] : [];
  // The reply must come back through this node, whatever the client's address.
  if (!port.isExternalPolicyLocal) return [markForMasquerade(context.mark), ...toAll];
  const rules: string[] = [];
  if (context.fromLocalPods !== undefined) rules.push(...toAll.map((go) => `${context.fromLocalPods} ${go}`));
  rules.push(`fib saddr type local ${markForMasquerade(context.mark)}`);
  rules.push(...toAll.map((go) => `fib saddr type local ${go}`));
  // Local policy and endpoints elsewhere only: not translated, and dropped by no-endpoint-services.
  if (hasEndpoints) rules.push(`goto local-${base}`);
  return rules;
}

function firewallRule(port: ServicePort, family: Family): string {
  // The node's own connections to a VIP that is bound here carry the VIP itself as their source.
  const texts = port.sourceRangesIncludeNode ? [...port.sourceRanges, ...port.loadBalancerVIPs] : port.sourceRanges;
  return `${familyWords(family).ip} saddr != { ${withoutOverlaps(texts).join(", ")} } drop`;
}

/** Leaves out what lies inside another range: nft refuses overlaps. Sorted. Pure. */
export function withoutOverlaps(texts: readonly string[]): string[] {
  const prefixes = texts.flatMap((text): Prefix[] => {
    const prefix = text.includes("/") ? parseCIDR(text) : parseIP(text);
    return prefix === undefined ? [] : [prefix];
  });
  const sorted = prefixes.sort((a, b) => (a.bits < b.bits ? -1 : a.bits > b.bits ? 1 : 0));
  const kept: Prefix[] = [];
  for (const prefix of sorted) {
    // A prefix sorts before all that lies in it.
    const last = kept.at(-1);
    if (last === undefined || !prefix.bits.startsWith(last.bits)) kept.push(prefix);
  }
  return kept.map(formatCIDR);
}
