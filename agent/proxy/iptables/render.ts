import { type Endpoint, hairpinEndpoints, isExternallyAccessible, reachability } from "../endpoints.ts";
import { type Family, parseIP } from "../ip.ts";
import type { ServiceDescription, ServicePort } from "../model.ts";
import { addressKey, portKey } from "./keys.ts";
import { affinityGroup, clientSetName, needsClientSets } from "./affinity.ts";
import { balance } from "./balance.ts";
import { endpointChain, hashSuffix, portSuffix } from "./names.ts";
import { nodePortMembers, rangeMember, rangeSetName, type SharedSet, sharedSetNames } from "./set-names.ts";
import type { DispatchEntry } from "./tree.ts";

/** The dispatch trees, each of which leads one kind of destination to the rules of its service. */
export type TreeName =
  | "natServices"
  | "natNodePorts"
  | "noEndpoints"
  | "noExternal"
  | "noNodePort"
  | "firewall"
  | "health";

/** How rules look, beyond what the service says. One value for a whole sync. */
export interface RenderContext {
  readonly family: Family;
  readonly masqueradeAll: boolean;
  /** Arguments that match packets of this node's pods, and of everybody else; undefined: cannot be told. */
  readonly localPods: { readonly match: string; readonly notMatch: string } | undefined;
  /**
   * Many endpoints: no comments in endpoint chains and balancing rules, which are for people and 40 % more text to load; and with sets
   * no endpoint chains where nothing else needs them. At each change of a table nf_tables walks through all rules in it.
   */
  readonly isLarge: boolean;
  /** Sets say what rules would otherwise: see {@link RenderedService.members}. */
  readonly hasSets: boolean;
  /** Sets of clients can be made; see {@link RenderedService.clientSets}. */
  readonly hasClientSets: boolean;
}

/** A member of a set, both as ipset names them. */
export interface SetMember {
  readonly set: string;
  readonly member: string;
}

/** The rules of one service. */
export interface RenderedService {
  /** nat chains of the service: rule arguments, one rule each. */
  readonly chains: ReadonlyMap<string, readonly string[]>;
  readonly entries: readonly (DispatchEntry & { readonly tree: TreeName })[];
  /** Members of sets; none without sets. */
  readonly members: readonly SetMember[];
  /** Sets of clients that the chains refer to. */
  readonly clientSets: readonly string[];
}

/**
 * Renders one service, in kube-proxy's chains and words. Pure and byte-stable.
 *
 *     dispatch ─▶ KUBE-FW-x ─▶ KUBE-EXT-x ─▶ KUBE-SVC-x (all endpoints)  ─▶ KUBE-SEP-y: DNAT
 *                (ranges)      (external)  └▶ KUBE-SVL-x (local ones only) ─▶ KUBE-SEP-z: DNAT
 *
 * In large clusters, with sets, KUBE-SVC-x and KUBE-SVL-x translate by themselves: see {@link RenderContext.isLarge}.
 */
export function renderService(service: ServiceDescription, context: RenderContext): RenderedService {
  const chains = new Map<string, readonly string[]>();
  const entries: (DispatchEntry & { tree: TreeName })[] = [];
  const members: SetMember[] = [];
  const clientSets = new Set<string>();
  const rangeSet = context.hasSets ? rangeSetName(context.family, service.key) : undefined;
  for (const port of service.ports) {
    renderDispatch(port, entries);
    if (context.hasSets) members.push(...membersOf(port, context));
    renderChains(port, context, rangeSet, chains);
    if (!hasClientSets(port, context)) continue;
    for (const endpoint of port.endpoints.reachable) clientSets.add(clientSetOf(port, endpoint, context));
  }
  const firstPort = service.ports[0];
  if (rangeSet !== undefined && firstPort !== undefined) {
    for (const range of gateOf(firstPort)) members.push({ set: rangeSet, member: rangeMember(context.family, range) });
  }
  if (firstPort !== undefined && service.healthCheckNodePort !== 0) {
    entries.push({
      tree: "health",
      key: portKey("tcp", service.healthCheckNodePort),
      rule: `${comment(`${service.key} health check node port`)} ${protocolMatch("tcp")} --dport ${service.healthCheckNodePort} -j ACCEPT`,
    });
  }
  return { chains, entries, members, clientSets: [...clientSets] };
}

function renderDispatch(port: ServicePort, entries: (DispatchEntry & { tree: TreeName })[]): void {
  const { name, protocol, endpoints } = port;
  const suffix = portSuffix(name, protocol);
  const { internal, external } = reachability(port);
  const refusal = endpoints.hasAny ? "DROP" : "REJECT";
  const why = endpoints.hasAny ? `${name} has no local endpoints` : `${name} has no endpoints`;
  const add = (tree: TreeName, ip: string, text: string, target: string) => {
    const rule = `${comment(text)} ${protocolMatch(protocol)} -d ${ip} --dport ${port.port} -j ${target}`;
    entries.push({ tree, key: addressKey(parseIP(ip)?.bits ?? "", protocol, port.port), rule });
  };

  if (internal) add("natServices", port.clusterIP, `${name} cluster IP`, internalChain(port));
  else add("noEndpoints", port.clusterIP, why, refusal);

  for (const ip of port.externalIPs) {
    if (endpoints.hasAny) add("natServices", ip, `${name} external IP`, `KUBE-EXT-${suffix}`);
    if (!external) add("noExternal", ip, why, refusal);
  }
  const hasGate = port.sourceRanges.length > 0;
  for (const ip of port.loadBalancerVIPs) {
    const target = hasGate ? `KUBE-FW-${suffix}` : `KUBE-EXT-${suffix}`;
    if (endpoints.hasAny) add("natServices", ip, `${name} loadbalancer IP`, target);
    if (endpoints.hasAny && hasGate) add("firewall", ip, `${name} source not in range`, "DROP");
    if (!external) add("noExternal", ip, why, refusal);
  }
  if (port.nodePort !== 0) {
    const key = portKey(protocol, port.nodePort);
    const match = `${protocolMatch(protocol)} --dport ${port.nodePort}`;
    if (endpoints.hasAny) {
      entries.push({ tree: "natNodePorts", key, rule: `${comment(name)} ${match} -j KUBE-EXT-${suffix}` });
    }
    if (!external) entries.push({ tree: "noNodePort", key, rule: `${comment(why)} ${match} -j ${refusal}` });
  }
}

/** What the port puts into the sets that all services share. */
function membersOf(port: ServicePort, context: RenderContext): SetMember[] {
  const { protocol, endpoints } = port;
  const { family } = context;
  const names = sharedSetNames(family);
  const members: SetMember[] = [];
  const add = (set: SharedSet, member: string) => members.push({ set: names[set], member });
  const address = (ip: string) => `${ip},${protocol}:${port.port}`;
  if (reachability(port).internal) {
    add("serviceIPs", address(port.clusterIP));
    if (masqueradedClients(context) !== undefined) add("clusterIPs", address(port.clusterIP));
  }
  if (endpoints.hasAny) {
    for (const ip of [...port.externalIPs, ...port.loadBalancerVIPs]) add("serviceIPs", address(ip));
    if (port.nodePort !== 0) {
      for (const member of nodePortMembers(family, protocol, port.nodePort)) add("nodePorts", member);
    }
  }
  for (const { ip, port: number } of hairpinEndpoints(port, context.localPods !== undefined)) {
    add("hairpins", `${ip},${protocol}:${number},${ip}`);
  }
  return members;
}

/** Sources that may reach the port's load balancer; none: all may. */
function gateOf({ loadBalancerVIPs, sourceRanges, sourceRangesIncludeNode }: ServicePort): readonly string[] {
  if (sourceRanges.length === 0 || loadBalancerVIPs.length === 0) return [];
  // The node's own connections to a VIP bound here carry the VIP itself as their source.
  return sourceRangesIncludeNode ? [...sourceRanges, ...loadBalancerVIPs] : sourceRanges;
}

/** What matches those clients of cluster IPs that are masqueraded: "" is everybody, undefined nobody. */
export function masqueradedClients({ masqueradeAll, localPods }: Pick<RenderContext, "masqueradeAll" | "localPods">) {
  return masqueradeAll ? "" : localPods?.notMatch;
}

function renderChains(
  port: ServicePort,
  context: RenderContext,
  rangeSet: string | undefined,
  chains: Map<string, readonly string[]>,
): void {
  const { name, protocol, endpoints } = port;
  const suffix = portSuffix(name, protocol);
  const { external } = reachability(port);
  // Chains first that others jump to, so that the text can be read from the inside out.
  for (const endpoint of hasEndpointChains(port, context) ? endpoints.reachable : []) {
    chains.set(endpointChain(name, protocol, endpoint.address), endpointRules(port, endpoint, context));
  }
  const addBalancing = (list: readonly Endpoint[], prefix: "KUBE-SVC-" | "KUBE-SVL-") => {
    if (list.length === 0) return;
    const chain = `${prefix}${suffix}`;
    for (const [name, rules] of balancingChains(port, list, prefix, context)) {
      const before = chain === internalChain(port) ? clusterIPMasquerade(port, context) : [];
      const remembered = name === chain ? affinityRules(port, list, prefix, context, chains) : [];
      chains.set(name, name === chain ? [...before, ...remembered, ...rules] : rules);
    }
  };
  addBalancing(endpoints.cluster, "KUBE-SVC-");
  addBalancing(endpoints.local, "KUBE-SVL-");
  if (endpoints.hasAny && isExternallyAccessible(port)) {
    chains.set(`KUBE-EXT-${suffix}`, externalRules(port, suffix, external, context));
  }
  if (endpoints.hasAny && port.loadBalancerVIPs.length > 0 && port.sourceRanges.length > 0) {
    chains.set(`KUBE-FW-${suffix}`, firewallRules(port, suffix, rangeSet));
  }
}

function internalChain(port: ServicePort): string {
  return `${port.isInternalPolicyLocal ? "KUBE-SVL-" : "KUBE-SVC-"}${portSuffix(port.name, port.protocol)}`;
}

/** Replies must come back through this node if the client is no pod here: its own route may lead past the DNAT. */
function clusterIPMasquerade(port: ServicePort, context: RenderContext): string[] {
  const clients = masqueradedClients(context);
  // With sets, one rule does this for all services before the packet gets here.
  if (clients === undefined || context.hasSets) return [];
  const match = `${comment(`${port.name} cluster IP`)} ${protocolMatch(port.protocol)} -d ${port.clusterIP} --dport ${port.port}`;
  return [[match, clients, "-j KUBE-MARK-MASQ"].filter(Boolean).join(" ")];
}

/**
 * A client that was here before goes where it went then. Among many endpoints a set for each group of them says whether it is
 * worth looking at the group's lists: a client that nobody remembers passes sixteen rules, not one for each endpoint. The sets
 * hold more clients than all lists together, so they let nobody be forgotten.
 *
 * @param chains gets the groups' chains
 */
function affinityRules(
  port: ServicePort,
  list: readonly Endpoint[],
  prefix: "KUBE-SVC-" | "KUBE-SVL-",
  context: RenderContext,
  chains: Map<string, readonly string[]>,
): string[] {
  const { name, protocol, affinitySeconds } = port;
  if (affinitySeconds === undefined) return [];
  const recall = (endpoint: Endpoint) => {
    const chain = endpointChain(name, protocol, endpoint.address);
    return `${endpointComment(port, endpoint, context)}-m recent --name ${chain} --rcheck --seconds ${affinitySeconds} --reap -j ${chain}`;
  };
  if (!context.hasClientSets || !needsClientSets(list.length)) return list.map(recall);
  const groups = Map.groupBy(list, ({ address }) => affinityGroup(address));
  return [...groups].sort(byKey).map(([group, endpoints]) => {
    const chain = `${prefix}${hashSuffix(`${name}${protocol} affinity ${group}`)}`;
    chains.set(chain, endpoints.map(recall));
    return `-m set --match-set ${clientSetName(context.family, name, protocol, group)} src -j ${chain}`;
  });
}

/** Whether clients of a port are kept in sets. Those of all its endpoints are, as an endpoint may be in two lists. */
function hasClientSets(
  { affinitySeconds, endpoints: { cluster, local } }: ServicePort,
  context: RenderContext,
): boolean {
  const count = Math.max(cluster.length, local.length);
  return context.hasClientSets && affinitySeconds !== undefined && needsClientSets(count);
}

function clientSetOf({ name, protocol }: ServicePort, { address }: Endpoint, { family }: RenderContext): string {
  return clientSetName(family, name, protocol, affinityGroup(address));
}

function byKey([a]: readonly [string, unknown], [b]: readonly [string, unknown]): number {
  return a < b ? -1 : 1;
}

function balancingChains(
  port: ServicePort,
  list: readonly Endpoint[],
  prefix: "KUBE-SVC-" | "KUBE-SVL-",
  context: RenderContext,
): [chain: string, rules: string[]][] {
  const { name, protocol } = port;
  // The first chain is kube-proxy's; groups have names of the same kind, so that either program finds and removes them.
  const chainOf = (digits: string) =>
    `${prefix}${digits === "" ? portSuffix(name, protocol) : hashSuffix(`${name}${protocol} group ${digits}`)}`;
  const chains = balance(list, ({ address }) => address, chainOf);
  return [...chains].map(([chain, choices]) => [
    chain,
    choices.map(({ target, chance }) => {
      const random = chance === 1 ? "" : `-m statistic --mode random --probability ${chance.toFixed(10)} `;
      if ("chain" in target) return `${random}-j ${target.chain}`;
      if (!hasEndpointChains(port, context)) {
        return `-p ${protocol} ${random}-j DNAT --to-destination ${target.item.address}`;
      }
      const goal = endpointChain(name, protocol, target.item.address);
      return `${endpointComment(port, target.item, context)}${random}-j ${goal}`;
    }),
  ]);
}

/** Otherwise balancing rules translate themselves. */
function hasEndpointChains({ affinitySeconds }: ServicePort, { isLarge, hasSets }: RenderContext): boolean {
  return !isLarge || !hasSets || affinitySeconds !== undefined;
}

function endpointComment({ name }: ServicePort, { address }: Endpoint, context: RenderContext): string {
  return context.isLarge ? "" : `${comment(`${name} -> ${address}`)} `;
}

function endpointRules(port: ServicePort, endpoint: Endpoint, context: RenderContext): string[] {
  const prefix = context.isLarge ? "" : `${comment(port.name)} `;
  const chain = endpointChain(port.name, port.protocol, endpoint.address);
  const affinity = port.affinitySeconds === undefined ? "" : `-m recent --name ${chain} --set `;
  const remember = hasClientSets(port, context)
    ? // A second longer than the lists: whom a list remembers, the set does, too.
      [
        `-j SET --add-set ${clientSetOf(port, endpoint, context)} src --exist --timeout ${(port.affinitySeconds ?? 0) + 1}`,
      ]
    : [];
  return [
    // Hairpin: an endpoint that reaches itself must not see its own address as the source. With sets, KUBE-POSTROUTING sees to it.
    ...(context.hasSets ? [] : [`${prefix}-s ${endpoint.ip} -j KUBE-MARK-MASQ`]),
    ...remember,
    `${prefix}${affinity}${protocolMatch(port.protocol)} -j DNAT --to-destination ${endpoint.address}`,
  ];
}

function externalRules(port: ServicePort, suffix: string, hasEndpoints: boolean, context: RenderContext): string[] {
  if (!port.isExternalPolicyLocal) {
    const rules = [`${comment(`${port.name} masquerade external traffic`)} -j KUBE-MARK-MASQ`];
    return hasEndpoints ? [...rules, `-j KUBE-SVC-${suffix}`] : rules;
  }
  const rules: string[] = [];
  if (context.localPods !== undefined) {
    rules.push(
      `${comment(`${port.name} external address, from a pod here`)} ${context.localPods.match} -j KUBE-SVC-${suffix}`,
    );
  }
  rules.push(
    `${comment(`${port.name} masquerade traffic of this node`)} -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ`,
    `${comment(`${port.name} external address, from this node`)} -m addrtype --src-type LOCAL -j KUBE-SVC-${suffix}`,
  );
  // A policy of Local with endpoints elsewhere only: fall through, to be dropped in the filter table.
  if (hasEndpoints) rules.push(`-j KUBE-SVL-${suffix}`);
  return rules;
}

function firewallRules(port: ServicePort, suffix: string, rangeSet: string | undefined): string[] {
  const about = comment(`${port.name} loadbalancer IP`);
  const matches =
    rangeSet === undefined ? gateOf(port).map((range) => `-s ${range}`) : [`-m set --match-set ${rangeSet} src`];
  const rules = matches.map((match) => `${about} ${match} -j KUBE-EXT-${suffix}`);
  return [...rules, comment(`${port.name} other sources fall through to KUBE-PROXY-FIREWALL`)];
}

function protocolMatch(protocol: string): string {
  return `-m ${protocol} -p ${protocol}`;
}

/** Quoted if it has blanks. Its parts are DNS labels and our own words: nothing to escape. */
function comment(text: string): string {
  return `-m comment --comment ${text.includes(" ") ? `"${text}"` : text}`;
}
