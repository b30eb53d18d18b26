import type { EndpointSlice, Endpoint as ApiEndpoint } from "../kube/types.ts";
import { canonicalIP, type Family, hostPort } from "./ip.ts";
import type { Protocol, ServicePortSpec } from "./service.ts";

/** One `ip:port` behind a service port. */
export interface Endpoint {
  readonly ip: string;
  readonly port: number;
  /** `ip:port`; what endpoints are told apart and sorted by. */
  readonly address: string;
  /** On this node. */
  readonly isLocal: boolean;
  /** Known to be on another node. An endpoint of which nobody says where it is may be here. */
  readonly isElsewhere: boolean;
  readonly isReady: boolean;
  readonly isServing: boolean;
  readonly isTerminating: boolean;
  /** Undefined: no hint. */
  readonly zoneHints: ReadonlySet<string> | undefined;
  readonly nodeHints: ReadonlySet<string> | undefined;
}

/** Which endpoints get which traffic of one service port. All lists are sorted by address. */
export interface EndpointSets {
  /** For traffic under the Cluster policy. Empty also if no traffic of the port falls under it. */
  readonly cluster: readonly Endpoint[];
  /** For traffic under the Local policy. Empty also if no traffic of the port falls under it. */
  readonly local: readonly Endpoint[];
  /** All that some traffic of the port may reach. */
  readonly reachable: readonly Endpoint[];
  /** Some endpoint on some node could answer. */
  readonly hasAny: boolean;
}

/** Where the proxy runs. */
export interface Topology {
  readonly nodeName: string;
  /** The node's `topology.kubernetes.io/zone`. */
  readonly zone: string | undefined;
}

/** The label that ties a slice to its service. */
export const serviceNameLabel = "kubernetes.io/service-name";
/** Slices with this label are of no interest. Use as a label selector `!…` on the server's side too. */
export const headlessLabel = "service.kubernetes.io/headless";

const sliceProtocols: Readonly<Record<string, Protocol>> = { TCP: "tcp", UDP: "udp", SCTP: "sctp" };

/** `namespace/name` of the service that a slice belongs to, or undefined if the proxy ignores the slice. Pure. */
export function serviceKeyOfSlice(slice: EndpointSlice, family: Family): string | undefined {
  const { namespace, name, labels } = slice.metadata;
  const service = labels?.[serviceNameLabel];
  if (slice.addressType !== family || labels?.[headlessLabel] !== undefined) return undefined;
  if (service === undefined || service === "" || !namespace || !name) return undefined;
  return `${namespace}/${service}`;
}

/**
 * Merges the slices of a service to the endpoints of each of its ports, by `endpointsKey`. Pure.
 *
 * A running endpoint beats a terminating one of the same address, which is how a re-used pod IP looks. Between
 * equals, the slice that comes later by name wins, so that the result does not depend on the order of events.
 */
export function mergeSlices(
  slices: readonly EndpointSlice[],
  family: Family,
  nodeName: string,
): { byPort: Map<string, Endpoint[]>; warnings: string[] } {
  const merged = new Map<string, Map<string, Endpoint>>();
  const warnings: string[] = [];
  const sorted = [...slices].sort((a, b) => compare(a.metadata.name, b.metadata.name));
  for (const slice of sorted) {
    const parsed = (Array.isArray(slice.endpoints) ? slice.endpoints : []).flatMap((endpoint) => {
      const found = parseEndpoint(endpoint, family, nodeName);
      if (typeof found !== "string") return [found];
      warnings.push(
        `endpoint slice ${slice.metadata.namespace}/${slice.metadata.name}: an endpoint is ignored: ${found}`,
      );
      return [];
    });
    for (const port of Array.isArray(slice.ports) ? slice.ports : []) {
      const number = port?.port;
      // The API server fills in the empty name and TCP. A port that has no name even so is no service's.
      const name: unknown = port?.name;
      const protocol = sliceProtocols[port?.protocol ?? "TCP"];
      if (typeof number !== "number" || !Number.isInteger(number) || number < 1 || number > 65_535) continue;
      if (protocol === undefined || typeof name !== "string") continue;
      const key = endpointsKey(name, protocol);
      let endpoints = merged.get(key);
      if (endpoints === undefined) merged.set(key, (endpoints = new Map<string, Endpoint>()));
      for (const endpoint of parsed) {
        const address = hostPort(endpoint.ip, number);
        if (endpoint.isTerminating && endpoints.has(address)) continue;
        endpoints.set(address, { ...endpoint, port: number, address });
      }
    }
  }
  const byPort = new Map<string, Endpoint[]>();
  for (const [key, endpoints] of merged) {
    byPort.set(
      key,
      [...endpoints.values()].sort((a, b) => compare(a.address, b.address)),
    );
  }
  return { byPort, warnings };
}

/** How `mergeSlices` names the endpoints of one service port. */
export function endpointsKey(portName: string, protocol: Protocol): string {
  return `${portName}/${protocol}`;
}

/** True if the port can be reached from outside the cluster: by node port, load balancer VIP or external IP. */
export function isExternallyAccessible(port: ServicePortSpec): boolean {
  return port.nodePort !== 0 || port.loadBalancerVIPs.length > 0 || port.externalIPs.length > 0;
}

/** Whether traffic from inside and from outside has somewhere to go under the port's policies. Pure. */
export function reachability(port: ServicePortSpec & { readonly endpoints: EndpointSets }): {
  internal: boolean;
  external: boolean;
} {
  const { hasAny, local } = port.endpoints;
  const under = (isLocalOnly: boolean) => hasAny && !(isLocalOnly && local.length === 0);
  return { internal: under(port.isInternalPolicyLocal), external: under(port.isExternalPolicyLocal) };
}

/**
 * Endpoints that may reach themselves by way of this node, and must not see their own address as the source then. A pod of another node
 * asks by way of that node; only for external addresses it may ask this one, and a Local policy lets pods come as they are. Pure.
 *
 * @param tellsPods packets of pods can be told from others
 */
export function hairpinEndpoints(
  port: ServicePortSpec & { readonly endpoints: EndpointSets },
  tellsPods: boolean,
): readonly Endpoint[] {
  const { reachable } = port.endpoints;
  const othersCome = tellsPods && port.isExternalPolicyLocal && isExternallyAccessible(port);
  return othersCome ? reachable : reachable.filter(({ isElsewhere }) => !isElsewhere);
}

/** Chooses the endpoints for each kind of traffic: readiness, termination fallback, policies, topology hints. Pure. */
export function selectEndpoints(port: ServicePortSpec, all: readonly Endpoint[], topology: Topology): EndpointSets {
  const isExternal = isExternallyAccessible(port);
  // Even under a Local external policy, pods and the node itself reach external addresses by all endpoints.
  const usesCluster = !port.isInternalPolicyLocal || isExternal;
  const usesLocal = port.isInternalPolicyLocal || (port.isExternalPolicyLocal && isExternal);
  const isUsableWhileTerminating = (endpoint: Endpoint) => endpoint.isServing && endpoint.isTerminating;

  const ready = all.filter((endpoint) => endpoint.isReady);
  const filter = topologyFilter(ready, topology);
  let cluster: readonly Endpoint[] = [];
  if (usesCluster) {
    cluster = filter === undefined ? ready : ready.filter(filter);
    if (cluster.length === 0) cluster = all.filter(isUsableWhileTerminating);
  }
  if (!usesLocal) return { cluster, local: [], reachable: cluster, hasAny: cluster.length > 0 };

  let local: readonly Endpoint[] = ready.filter((endpoint) => endpoint.isLocal);
  if (local.length === 0) local = all.filter((endpoint) => endpoint.isLocal && isUsableWhileTerminating(endpoint));
  const hasAny = cluster.length > 0 || ready.length > 0 || all.some(isUsableWhileTerminating);
  if (!usesCluster) return { cluster, local, reachable: local, hasAny };
  const union = new Map([...cluster, ...local].map((endpoint) => [endpoint.address, endpoint]));
  const reachable = [...union.values()].sort((a, b) => compare(a.address, b.address));
  return { cluster, local, reachable, hasAny };
}

/** Hints count only if every ready endpoint has one of the kind and one of them names us; node before zone. */
function topologyFilter(ready: readonly Endpoint[], { nodeName, zone }: Topology) {
  if (ready.length === 0) return undefined;
  const namesNode = (endpoint: Endpoint) => endpoint.nodeHints?.has(nodeName) === true;
  if (ready.every((endpoint) => endpoint.nodeHints !== undefined) && ready.some(namesNode)) return namesNode;
  if (zone === undefined) return undefined;
  const namesZone = (endpoint: Endpoint) => endpoint.zoneHints?.has(zone) === true;
  if (ready.every((endpoint) => endpoint.zoneHints !== undefined) && ready.some(namesZone)) return namesZone;
  return undefined;
}

/** The endpoint, or why it is left out. */
function parseEndpoint(endpoint: ApiEndpoint, family: Family, nodeName: string) {
  const text: unknown = endpoint?.addresses?.[0];
  if (typeof text !== "string") return "it has no address";
  const address = canonicalIP(text);
  if (address?.family !== family) return `${JSON.stringify(text)} is no ${family} address`;
  const { ready, serving, terminating } = endpoint.conditions ?? {};
  return {
    ip: address.ip,
    isLocal: nodeName !== "" && endpoint.nodeName === nodeName,
    isElsewhere: (endpoint.nodeName ?? "") !== "" && endpoint.nodeName !== nodeName,
    isReady: ready ?? true,
    isServing: serving ?? true,
    isTerminating: terminating ?? false,
    zoneHints: hintSet(endpoint.hints?.forZones),
    nodeHints: hintSet(endpoint.hints?.forNodes),
  };
}

function hintSet(hints: readonly { name: string }[] | undefined): ReadonlySet<string> | undefined {
  return hints === undefined || hints === null || hints.length === 0
    ? undefined
    : new Set(hints.map((hint) => hint.name));
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
