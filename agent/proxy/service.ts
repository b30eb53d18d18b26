import type { Service, ServicePort as ApiServicePort } from "../kube/types.ts";
import { type Family, formatCIDR, formatIP, type Prefix, parseCIDR, parseIP } from "./ip.ts";

/** Transport protocols of a service port, as netfilter's tools spell them. */
export type Protocol = "tcp" | "udp" | "sctp";

/** What a Service says about one of its ports, for one IP family. Everything in it is canonical and safe to render. */
export interface ServicePortSpec {
  /** `namespace/name:port`, or `namespace/name` for an unnamed port. The protocol is no part of it. */
  readonly name: string;
  /** Name inside the service; "" if unnamed. Endpoint slices are matched by it. */
  readonly portName: string;
  readonly protocol: Protocol;
  readonly clusterIP: string;
  readonly port: number;
  /** 0: none. */
  readonly nodePort: number;
  readonly externalIPs: readonly string[];
  readonly loadBalancerVIPs: readonly string[];
  /** CIDRs that may reach the load balancer VIPs; empty: all may. */
  readonly sourceRanges: readonly string[];
  /** True if one of the source ranges contains one of this node's addresses. */
  readonly sourceRangesIncludeNode: boolean;
  /** Undefined: no session affinity. */
  readonly affinitySeconds: number | undefined;
  readonly isInternalPolicyLocal: boolean;
  readonly isExternalPolicyLocal: boolean;
}

/** A Service as one IP family's proxy sees it. */
export interface ServiceSpecResult {
  readonly ports: readonly ServicePortSpec[];
  /** 0: none. */
  readonly healthCheckNodePort: number;
  /** What was malformed and therefore left out; one line for people each. */
  readonly warnings: readonly string[];
}

/** Services with this label belong to another proxy. Use as a label selector `!…` on the server's side too. */
export const serviceProxyNameLabel = "service.kubernetes.io/service-proxy-name";

// The API server's default for sessionAffinityConfig.clientIP.timeoutSeconds.
const affinitySecondsDefault = 10_800;
// The API's upper limit of that field: one day.
const affinitySecondsMax = 86_400;
// DNS-1035/1123 labels, the API's rule for these names. Nothing else ever reaches a rule's comment.
const nameRE = /^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$/i;
const labelLengthMax = 63;
const protocols: Readonly<Record<string, Protocol>> = { TCP: "tcp", UDP: "udp", SCTP: "sctp" };

/**
 * Derives the service ports of one family. Pure. A malformed part is left out with a warning, the rest goes on.
 * No ports for services the proxy has nothing to do with: headless, ExternalName, another proxy's, another family's.
 *
 * @param nodeIPs this node's addresses; only asked whether a source range contains one
 */
export function describeService(service: Service, family: Family, nodeIPs: readonly Prefix[]): ServiceSpecResult {
  const warnings: string[] = [];
  const { metadata, spec } = service;
  const none: ServiceSpecResult = { ports: [], healthCheckNodePort: 0, warnings };
  if (spec === undefined || spec === null) return none;
  if (metadata.labels?.[serviceProxyNameLabel] !== undefined || spec.type === "ExternalName") return none;
  if (spec.clusterIP === undefined || spec.clusterIP === "" || spec.clusterIP === "None") return none;
  const key = `${metadata.namespace ?? ""}/${metadata.name}`;
  if (!isLabel(metadata.namespace) || !isLabel(metadata.name)) {
    return { ...none, warnings: [`service ${JSON.stringify(key)} is ignored: its name is no DNS label`] };
  }
  const clusterIP = clusterIPOf(service, family, warnings);
  if (clusterIP === undefined) return none;

  const warn = (text: string) => warnings.push(`service ${key}: ${text}`);
  const externalIPs = addressesOf(listOf(spec.externalIPs), family, (ip) =>
    warn(`external IP ${ip} is ignored: no IP`),
  );
  const vips = addressesOf(
    listOf(service.status?.loadBalancer?.ingress)
      .filter((ingress) => ingress.ipMode === undefined || ingress.ipMode === "VIP")
      .flatMap((ingress) => (ingress.ip === undefined ? [] : [ingress.ip])),
    family,
    (ip) => warn(`load balancer address ${ip} is ignored: no IP`),
  );
  const ranges = sourceRangesOf(listOf(spec.loadBalancerSourceRanges), family, warn);
  const isExternallyReachableKind =
    spec.type === "LoadBalancer" || spec.type === "NodePort" || listOf(spec.externalIPs).length > 0;
  const common = {
    clusterIP,
    externalIPs,
    loadBalancerVIPs: vips,
    sourceRanges: ranges.map(formatCIDR),
    sourceRangesIncludeNode: ranges.some((range) =>
      nodeIPs.some((ip) => ip.family === range.family && ip.bits.startsWith(range.bits)),
    ),
    affinitySeconds: spec.sessionAffinity === "ClientIP" ? affinitySeconds(service) : undefined,
    isInternalPolicyLocal: spec.internalTrafficPolicy === "Local",
    isExternalPolicyLocal: isExternallyReachableKind && spec.externalTrafficPolicy === "Local",
  };
  const ports: ServicePortSpec[] = [];
  const seen = new Set<string>();
  for (const port of listOf(spec.ports)) {
    const problem = portProblem(port);
    if (problem !== undefined) {
      warn(`port ${JSON.stringify(port.name ?? port.port)} is ignored: ${problem}`);
      continue;
    }
    const portName = port.name ?? "";
    const protocol = protocols[port.protocol ?? "TCP"] ?? "tcp";
    if (seen.has(`${portName}/${protocol}`)) {
      warn(`port ${JSON.stringify(portName)} is ignored: there is another of that name and protocol`);
      continue;
    }
    seen.add(`${portName}/${protocol}`);
    const name = portName === "" ? key : `${key}:${portName}`;
    ports.push({ ...common, name, portName, protocol, port: port.port, nodePort: port.nodePort ?? 0 });
  }
  const isLocalLoadBalancer = spec.type === "LoadBalancer" && common.isExternalPolicyLocal;
  const healthCheckNodePort =
    isLocalLoadBalancer && isPort(spec.healthCheckNodePort) ? (spec.healthCheckNodePort ?? 0) : 0;
  if (isLocalLoadBalancer && healthCheckNodePort === 0 && ports.length > 0) {
    warn("has no healthCheckNodePort: load balancers cannot tell that a node has none of its endpoints");
  }
  return { ports, healthCheckNodePort, warnings };
}

/** False for a Service that plainly has no address of the family. Cheap; malformed ones may have. Pure. */
export function mayHaveFamily({ spec }: Service, family: Family): boolean {
  const families = listOf(spec?.ipFamilies);
  if (families.length > 0) return families.includes(family);
  const clusterIP: unknown = spec?.clusterIP;
  const ip = typeof clusterIP === "string" ? parseIP(clusterIP) : undefined;
  return ip === undefined || ip.family === family;
}

function clusterIPOf(service: Service, family: Family, warnings: string[]): string | undefined {
  const { clusterIP = "", clusterIPs, ipFamilies } = service.spec ?? {};
  let text: string | undefined = clusterIP;
  if (listOf(ipFamilies).length > 0) {
    const index = listOf(ipFamilies).indexOf(family);
    text = index < 0 ? undefined : (clusterIPs?.[index] ?? (index === 0 ? clusterIP : undefined));
  }
  if (text === undefined || text === "") return undefined;
  const ip = typeof text === "string" ? parseIP(text) : undefined;
  if (ip === undefined) {
    const { namespace, name } = service.metadata;
    warnings.push(`service ${namespace}/${name} is ignored: its cluster IP ${JSON.stringify(text)} is no IP`);
    return undefined;
  }
  return ip.family === family ? formatIP(ip) : undefined;
}

function addressesOf(texts: readonly string[], family: Family, onBad: (text: string) => void): string[] {
  const found = new Set<string>();
  for (const text of texts) {
    if (typeof text === "string" && text.trim() === "") continue;
    const ip = typeof text === "string" ? parseIP(text) : undefined;
    if (ip === undefined) onBad(JSON.stringify(text));
    else if (ip.family === family) found.add(formatIP(ip));
  }
  return [...found];
}

function sourceRangesOf(texts: readonly string[], family: Family, warn: (text: string) => void): Prefix[] {
  const ranges = new Map<string, Prefix>();
  for (const text of texts) {
    const range = typeof text === "string" ? parseCIDR(text.trim()) : undefined;
    if (range === undefined) {
      if (typeof text === "string" && text.trim() === "") continue;
      warn(`source range ${JSON.stringify(text)} is ignored: no CIDR`);
      continue;
    }
    if (range.family !== family) continue;
    if (range.bits === "") return []; // "everybody": no gate at all
    ranges.set(formatCIDR(range), range);
  }
  return [...ranges.values()];
}

function affinitySeconds(service: Service): number {
  const seconds = service.spec?.sessionAffinityConfig?.clientIP?.timeoutSeconds;
  if (typeof seconds !== "number" || !Number.isInteger(seconds) || seconds < 1) return affinitySecondsDefault;
  return Math.min(seconds, affinitySecondsMax);
}

function portProblem(port: ApiServicePort): string | undefined {
  if (typeof port !== "object" || port === null) return "it is no object";
  if (!isPort(port.port) || port.port === 0) return `port number ${JSON.stringify(port.port)} is not in 1-65535`;
  if (!isPort(port.nodePort)) return `node port ${JSON.stringify(port.nodePort)} is not in 1-65535`;
  if (port.name !== undefined && port.name !== "" && !isLabel(port.name)) return "its name is no DNS label";
  if (port.protocol !== undefined && protocols[port.protocol] === undefined) {
    return `protocol ${JSON.stringify(port.protocol)} is none of TCP, UDP, SCTP`;
  }
  return undefined;
}

/** Undefined and null count as 0: "none". */
function isPort(value: unknown): boolean {
  const number = value ?? 0;
  return typeof number === "number" && Number.isInteger(number) && number >= 0 && number <= 65_535;
}

function isLabel(text: unknown): boolean {
  return typeof text === "string" && text.length <= labelLengthMax && nameRE.test(text);
}

/** JSON arrays may be null or, in a malformed object, anything. */
function listOf<T>(value: readonly T[] | null | undefined): readonly T[] {
  return isList(value) ? value : [];
}

function isList<T>(value: readonly T[] | null | undefined): value is readonly T[] {
  return Array.isArray(value);
}
