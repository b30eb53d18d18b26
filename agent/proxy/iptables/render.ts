import { isExternallyAccessible, type Endpoint } from "../endpoints.ts";
import { type Family, parseIP } from "../ip.ts";
import type { ServiceDescription, ServicePort } from "../model.ts";
import { addressKey, portKey } from "./keys.ts";
import { affinityGroup, clientSetName, needsClientSets } from "./affinity.ts";
import { balance } from "./balance.ts";
import { endpointChain, hashSuffix, portSuffix } from "./names.ts";
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
  /** Comments in endpoint chains and balancing rules: for people, at 40 % more text to load. */
  readonly withEndpointComments: boolean;
  /** Sets of clients can be made; see {@link RenderedService.clientSets}. */
  readonly hasClientSets: boolean;
}

/** The rules of one service. */
export interface RenderedService {
  /** nat chains of the service: rule arguments, one rule each. */
  readonly chains: ReadonlyMap<string, readonly string[]>;
  readonly entries: readonly (DispatchEntry & { readonly tree: TreeName })[];
  /** Members of the set of service addresses, `ip,proto:port`. */
  readonly members: readonly string[];
  /** Sets of clients that the chains refer to. */
  readonly clientSets: readonly string[];
}

/**
 * Renders one service, in kube-proxy's chains and words. Pure and byte-stable.
 *
 *     dispatch ─▶ KUBE-FW-x ─▶ KUBE-EXT-x ─▶ KUBE-SVC-x (all endpoints)  ─▶ KUBE-SEP-y: DNAT
 *                (ranges)      (external)  └▶ KUBE-SVL-x (local ones only) ─▶ KUBE-SEP-z: DNAT
 */
export function renderService(service: ServiceDescription, context: RenderContext): RenderedService {
  const chains = new Map<string, readonly string[]>();
  const entries: (DispatchEntry & { tree: TreeName })[] = [];
  const members: string[] = [];
  const clientSets = new Set<string>();
  for (const port of service.ports) {
    renderDispatch(port, entries, members);
    renderChains(port, context, chains);
    if (!hasClientSets(port, context)) continue;
    for (const endpoint of port.endpoints.reachable) clientSets.add(clientSetOf(port, endpoint, context));
  }
  const firstPort = service.ports[0];
  if (firstPort !== undefined && service.healthCheckNodePort !== 0) {
    entries.push({
      tree: "health",
      key: portKey("tcp", service.healthCheckNodePort),
      rule: `${comment(`${service.key} health check node port`)} ${protocolMatch("tcp")} --dport ${service.healthCheckNodePort} -j ACCEPT`,
    });
  }
  return { chains, entries, members, clientSets: [...clientSets] };
}

function renderDispatch(port: ServicePort, entries: (DispatchEntry & { tree: TreeName })[], members: string[]): void {
  const { name, protocol, endpoints } = port;
  const suffix = portSuffix(name, protocol);
  const { internal, external } = reachability(port);
  const refusal = endpoints.hasAny ? "DROP" : "REJECT";
  const why = endpoints.hasAny ? `${name} has no local endpoints` : `${name} has no endpoints`;
  const add = (tree: TreeName, ip: string, text: string, target: string) => {
    const rule = `${comment(text)} ${protocolMatch(protocol)} -d ${ip} --dport ${port.port} -j ${target}`;
    entries.push({ tree, key: addressKey(parseIP(ip)?.bits ?? "", protocol, port.port), rule });
    if (tree === "natServices") members.push(`${ip},${protocol}:${port.port}`);
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

function renderChains(port: ServicePort, context: RenderContext, chains: Map<string, readonly string[]>): void {
  const { name, protocol, endpoints } = port;
  const suffix = portSuffix(name, protocol);
  const { external } = reachability(port);
  // Chains first that others jump to, so that the text can be read from the inside out.
  for (const endpoint of endpoints.reachable) {
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
    chains.set(`KUBE-FW-${suffix}`, firewallRules(port, suffix));
  }
}

/** Whether traffic from inside and from outside has somewhere to go under the service's policies. */
function reachability({ endpoints, isInternalPolicyLocal, isExternalPolicyLocal }: ServicePort) {
  const under = (isLocalOnly: boolean) => endpoints.hasAny && !(isLocalOnly && endpoints.local.length === 0);
  return { internal: under(isInternalPolicyLocal), external: under(isExternalPolicyLocal) };
}

function internalChain(port: ServicePort): string {
  return `${port.isInternalPolicyLocal ? "KUBE-SVL-" : "KUBE-SVC-"}${portSuffix(port.name, port.protocol)}`;
}

/** Replies must come back through this node if the client is no pod here: its own route may lead past the DNAT. */
function clusterIPMasquerade(port: ServicePort, context: RenderContext): string[] {
  const match = `${comment(`${port.name} cluster IP`)} ${protocolMatch(port.protocol)} -d ${port.clusterIP} --dport ${port.port}`;
  if (context.masqueradeAll) return [`${match} -j KUBE-MARK-MASQ`];
  if (context.localPods === undefined) return [];
  return [`${match} ${context.localPods.notMatch} -j KUBE-MARK-MASQ`];
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
      const goal = endpointChain(name, protocol, target.item.address);
      return `${endpointComment(port, target.item, context)}${random}-j ${goal}`;
    }),
  ]);
}

function endpointComment({ name }: ServicePort, { address }: Endpoint, context: RenderContext): string {
  return context.withEndpointComments ? `${comment(`${name} -> ${address}`)} ` : "";
}

function endpointRules(port: ServicePort, endpoint: Endpoint, context: RenderContext): string[] {
  const prefix = context.withEndpointComments ? `${comment(port.name)} ` : "";
  const chain = endpointChain(port.name, port.protocol, endpoint.address);
  const affinity = port.affinitySeconds === undefined ? "" : `-m recent --name ${chain} --set `;
  const remember = hasClientSets(port, context)
    ? // A second longer than the lists: whom a list remembers, the set does, too.
      [
        `-j SET --add-set ${clientSetOf(port, endpoint, context)} src --exist --timeout ${(port.affinitySeconds ?? 0) + 1}`,
      ]
    : [];
  return [
    // Hairpin: an endpoint that reaches itself must not see its own address as the source.
    `${prefix}-s ${endpoint.ip} -j KUBE-MARK-MASQ`,
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

function firewallRules(port: ServicePort, suffix: string): string[] {
  const about = comment(`${port.name} loadbalancer IP`);
  const rules = port.sourceRanges.map((range) => `${about} -s ${range} -j KUBE-EXT-${suffix}`);
  // The node's own connections to a VIP bound here carry the VIP itself as their source.
  if (port.sourceRangesIncludeNode) {
    for (const vip of port.loadBalancerVIPs) rules.push(`${about} -s ${vip} -j KUBE-EXT-${suffix}`);
  }
  return [...rules, comment(`${port.name} other sources fall through to KUBE-PROXY-FIREWALL`)];
}

function protocolMatch(protocol: string): string {
  return `-m ${protocol} -p ${protocol}`;
}

/** Quoted if it has blanks. Its parts are DNS labels and our own words: nothing to escape. */
function comment(text: string): string {
  return `-m comment --comment ${text.includes(" ") ? `"${text}"` : text}`;
}
