import { AgentError } from "../agent/lib/errors.ts";
import type { CNIArgs } from "./request.ts";

/** What a pod's sandbox asks of its network, in the words of CRI. */
export interface PodNetworkRequest {
  podName: string;
  podNamespace: string;
  podUID: string;
  containerID: string;
  portMappings: readonly {
    protocol: "TCP" | "UDP" | "SCTP";
    containerPort: number;
    hostPort: number;
    /** Empty: all addresses of the node. */
    hostIP: string;
  }[];
  annotations: Readonly<Record<string, string>>;
  dns?: { servers: string[]; searches: string[]; options: string[] } | undefined;
  /** The node's pod addresses, one CIDR or one of each family. Networks that name no ranges of their own ask for them. */
  podCIDRs?: readonly string[];
  /** The pod's cgroup; plugins that limit traffic by cgroup ask for it. */
  cgroupPath?: string | undefined;
}

export const ingressBandwidthAnnotation = "kubernetes.io/ingress-bandwidth";
export const egressBandwidthAnnotation = "kubernetes.io/egress-bandwidth";

// The limits that Kubernetes sets for these annotations, in bits per second: 1k and 1P.
const bandwidthMin = 1e3;
const bandwidthMax = 1e15;
// A burst must be given with a rate. 2 Gbit is no limit in practice, and fits the plugin's 32 bits; other runtimes give the same.
const burstBits = 2 ** 31 - 1;

const multipliers: Readonly<Record<string, number>> = {
  n: 1e-9,
  u: 1e-6,
  m: 1e-3,
  "": 1,
  k: 1e3,
  M: 1e6,
  G: 1e9,
  T: 1e12,
  P: 1e15,
  E: 1e18,
  Ki: 2 ** 10,
  Mi: 2 ** 20,
  Gi: 2 ** 30,
  Ti: 2 ** 40,
  Pi: 2 ** 50,
  Ei: 2 ** 60,
};

/** The `CNI_ARGS` that plugins of Kubernetes' networks read to find the pod. Pure. */
export function podArgs({ podName, podNamespace, podUID, containerID }: PodNetworkRequest): CNIArgs {
  return [
    ["IgnoreUnknown", "1"],
    ["K8S_POD_NAMESPACE", podNamespace],
    ["K8S_POD_NAME", podName],
    ["K8S_POD_INFRA_CONTAINER_ID", containerID],
    ["K8S_POD_UID", podUID],
  ];
}

/**
 * The capability arguments of a pod; each goes to the plugins that declare it. Those that the pod does not ask for are absent.
 * Pure.
 *
 * @throws AgentError Invalid if a bandwidth annotation is no quantity or outside Kubernetes' limits
 */
export function podCapabilities(request: PodNetworkRequest): Record<string, unknown> {
  const { portMappings, annotations, dns, podCIDRs = [], cgroupPath } = request;
  const mapped = portMappings.filter(({ hostPort }) => hostPort > 0);
  const ingress = bandwidthOf(annotations, ingressBandwidthAnnotation);
  const egress = bandwidthOf(annotations, egressBandwidthAnnotation);
  const bandwidth = {
    ...(ingress === undefined ? {} : { ingressRate: ingress, ingressBurst: burstBits }),
    ...(egress === undefined ? {} : { egressRate: egress, egressBurst: burstBits }),
  };
  return {
    ...(mapped.length === 0 ? {} : { portMappings: mapped.map(portMappingOf) }),
    ...(ingress === undefined && egress === undefined ? {} : { bandwidth }),
    ...(dns === undefined ? {} : { dns }),
    ...(podCIDRs.length === 0 ? {} : { ipRanges: podCIDRs.map((subnet) => [{ subnet }]) }),
    ...(cgroupPath === undefined || cgroupPath === "" ? {} : { cgroupPath }),
  };
}

function portMappingOf({ hostPort, containerPort, protocol, hostIP }: PodNetworkRequest["portMappings"][number]) {
  return { hostPort, containerPort, protocol: protocol.toLowerCase(), ...(hostIP === "" ? {} : { hostIP }) };
}

/** Bits per second. */
function bandwidthOf(annotations: Readonly<Record<string, string>>, name: string): number | undefined {
  const text = annotations[name];
  if (text === undefined) return undefined;
  const [, digits, exponent, unit] =
    /^\+?(\d+(?:\.\d*)?|\.\d+)(?:[eE]([+-]?\d+)|([numkMGTPE]|[KMGTPE]i)?)$/.exec(text) ?? [];
  const factor = exponent === undefined ? multipliers[unit ?? ""] : 10 ** Number(exponent);
  const rate = digits === undefined || factor === undefined ? Number.NaN : Math.ceil(Number(digits) * factor);
  if (Number.isNaN(rate)) throw new AgentError("Invalid", `annotation ${name}: "${text}" is no quantity, such as 10M`);
  if (rate < bandwidthMin || rate > bandwidthMax) {
    throw new AgentError("Invalid", `annotation ${name}: "${text}" must be between 1k and 1P bits per second`);
  }
  return rate;
}
