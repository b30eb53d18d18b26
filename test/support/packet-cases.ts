import type { Service, ServiceSpec } from "../../agent/kube/types.ts";
import type { Packet } from "./packet-tracer.ts";
import type { makeSlice } from "./service-objects.ts";

/** What becomes of a packet: `ip:port` it is sent on to (` m`: masqueraded), or the verdict. */
export type Fate = string;

/** A Service on node n1, and packets to it. The rows of a service proxy's behaviour, whatever the mode. */
export interface PacketCase {
  readonly name: string;
  readonly spec?: Partial<ServiceSpec>;
  readonly extra?: Partial<Service>;
  readonly endpoints?: Parameters<typeof makeSlice>[1];
  /** What decides rules beyond the services. */
  readonly about?: {
    readonly masqueradeAll?: boolean;
    /** Whether local pods can be told from others; they are 10.244.0.0/16. Default: true. */
    readonly hasDetector?: boolean;
    /** Addresses that accept node ports. Default: all local ones. */
    readonly nodePortIPs?: readonly string[];
    readonly serviceCIDRs?: readonly string[];
  };
  /** `nftables`: another fate in that mode. These are all its differences. */
  readonly packets: readonly (readonly [packet: Partial<Packet>, want: Fate, nftables?: Fate])[];
}

export const caseAddresses = {
  clusterIP: "10.96.0.10",
  nodeIP: "192.0.2.1",
  vip: "203.0.113.1",
  externalIP: "198.51.100.1",
  pod: "10.244.1.2",
} as const;
/** This machine's, as the tracers need to know them. */
export const caseLocalIPs = ["127.0.0.1", caseAddresses.nodeIP];

const { nodeIP, vip, externalIP, pod } = caseAddresses;
const remotePod = "10.244.9.9";
const here = { nodeName: "n1" };
const there = { nodeName: "n2" };
const going = { conditions: { ready: false, serving: true, terminating: true } };
const unready = { conditions: { ready: false, serving: false } };
const fromPod = { src: pod, iface: "veth1" };
const fromNode = { src: nodeIP };
const fromOutside = { src: "192.0.2.99", iface: "eth0" };
const nodePort: Partial<ServiceSpec> = { type: "NodePort", ports: [{ name: "p80", port: 80, nodePort: 30_080 }] };
const toNodePort = { dst: nodeIP, dport: 30_080 };
const loadBalancer: Partial<ServiceSpec> = { ...nodePort, type: "LoadBalancer" };
const withVIP = { status: { loadBalancer: { ingress: [{ ip: vip }] } } };
const one = ["10.244.1.5"];
const both = [
  { address: "10.244.1.5", ...here },
  { address: remotePod, ...there },
];

export const packetCases: readonly PacketCase[] = [
  {
    name: "a cluster IP",
    endpoints: one,
    packets: [
      [fromPod, "10.244.1.5:8080"],
      [fromNode, "10.244.1.5:8080 m"],
      [fromOutside, "10.244.1.5:8080 m"],
      [{ ...fromPod, src: "10.244.1.5" }, "10.244.1.5:8080 m"],
      // A port that the service does not have.
      [{ ...fromPod, dport: 81 }, "ACCEPT", "REJECT"],
      [{ ...fromNode, dport: 81 }, "ACCEPT", "REJECT"],
      [{ ...fromPod, proto: "udp" }, "ACCEPT", "REJECT"],
      // No service at all.
      [{ ...fromPod, dst: "10.96.0.11" }, "ACCEPT"],
      [{ ...fromOutside, dst: "203.0.113.77", dport: 443 }, "ACCEPT"],
    ],
  },
  {
    name: "an address that no service has, once the range is known",
    endpoints: one,
    about: { serviceCIDRs: ["10.96.0.0/16"] },
    packets: [
      [{ ...fromPod, dst: "10.96.0.11" }, "ACCEPT", "DROP"],
      [fromPod, "10.244.1.5:8080"],
    ],
  },
  ...(["udp", "sctp"] as const).map((proto) => ({
    name: `a cluster IP, ${proto}`,
    spec: { ports: [{ name: "p80", port: 80, protocol: proto === "udp" ? ("UDP" as const) : ("SCTP" as const) }] },
    packets: [[{ ...fromPod, proto }, "REJECT"] as const],
  })),
  {
    name: "no endpoints",
    endpoints: [],
    packets: [
      [fromPod, "REJECT"],
      [fromNode, "REJECT"],
      [fromOutside, "REJECT"],
    ],
  },
  { name: "masqueradeAll", endpoints: one, about: { masqueradeAll: true }, packets: [[fromPod, "10.244.1.5:8080 m"]] },
  {
    name: "no detector of local pods",
    spec: { ...nodePort, externalTrafficPolicy: "Local" },
    endpoints: both,
    about: { hasDetector: false },
    packets: [
      [fromNode, `${remotePod}:8080`],
      // Pods cannot be told from strangers.
      [{ ...fromPod, ...toNodePort }, "10.244.1.5:8080"],
    ],
  },
  {
    name: "an endpoint elsewhere that reaches itself by way of this node",
    endpoints: both,
    packets: [[{ ...fromPod, src: remotePod }, `${remotePod}:8080 m`, `${remotePod}:8080`]],
  },
  {
    name: "an endpoint elsewhere that reaches itself by an external address of this node",
    spec: { ...nodePort, externalTrafficPolicy: "Local" },
    endpoints: [{ address: remotePod, nodeName: "n2" }],
    packets: [[{ ...fromPod, ...toNodePort, src: remotePod }, `${remotePod}:8080 m`]],
  },
  {
    name: "session affinity",
    spec: { sessionAffinity: "ClientIP", sessionAffinityConfig: { clientIP: { timeoutSeconds: 60 } } },
    endpoints: one,
    packets: [
      [fromPod, "10.244.1.5:8080"],
      [fromOutside, "10.244.1.5:8080 m"],
    ],
  },
  {
    name: "session affinity on a node port with a Local policy",
    spec: { ...nodePort, sessionAffinity: "ClientIP", externalTrafficPolicy: "Local" },
    endpoints: both,
    packets: [[{ ...fromOutside, ...toNodePort }, "10.244.1.5:8080"]],
  },
  {
    name: "internal policy Local",
    spec: { internalTrafficPolicy: "Local" },
    endpoints: both,
    packets: [
      [fromPod, "10.244.1.5:8080"],
      [fromNode, "10.244.1.5:8080 m"],
    ],
  },
  {
    name: "internal policy Local, none here",
    spec: { internalTrafficPolicy: "Local" },
    endpoints: [{ address: remotePod, ...there }],
    packets: [
      [fromPod, "DROP"],
      [fromNode, "DROP"],
    ],
  },
  {
    name: "internal policy Local, none anywhere",
    spec: { internalTrafficPolicy: "Local" },
    endpoints: [{ address: remotePod, ...there, ...unready }],
    packets: [[fromPod, "REJECT"]],
  },
  {
    name: "internal policy Local does not concern node ports",
    spec: { ...nodePort, internalTrafficPolicy: "Local" },
    endpoints: [{ address: remotePod, ...there }],
    packets: [[{ ...fromOutside, ...toNodePort }, `${remotePod}:8080 m`]],
  },
  {
    name: "a node port",
    spec: nodePort,
    endpoints: one,
    packets: [
      [{ ...fromOutside, ...toNodePort }, "10.244.1.5:8080 m"],
      [{ ...fromPod, ...toNodePort }, "10.244.1.5:8080 m"],
      [{ ...fromNode, ...toNodePort }, "10.244.1.5:8080 m"],
      // There it is the relay that answers.
      [{ src: "127.0.0.1", dst: "127.0.0.1", dport: 30_080 }, "10.244.1.5:8080 m", "ACCEPT"],
      [{ ...fromOutside, dst: "203.0.113.77", dport: 30_080 }, "ACCEPT"],
      [{ ...fromOutside, ...toNodePort, dport: 30_081 }, "ACCEPT"],
      [{ ...fromOutside, ...toNodePort, proto: "udp" }, "ACCEPT"],
    ],
  },
  {
    name: "a node port, no endpoints",
    spec: nodePort,
    packets: [
      [{ ...fromOutside, ...toNodePort }, "REJECT"],
      [{ ...fromPod, ...toNodePort }, "REJECT"],
    ],
  },
  {
    name: "a node port on some addresses",
    spec: nodePort,
    endpoints: one,
    about: { nodePortIPs: ["192.0.2.2"] },
    packets: [
      [{ ...fromOutside, ...toNodePort }, "ACCEPT"],
      [{ ...fromOutside, ...toNodePort, dst: "192.0.2.2" }, "10.244.1.5:8080 m"],
    ],
  },
  {
    name: "external policy Local",
    spec: { ...loadBalancer, externalTrafficPolicy: "Local", healthCheckNodePort: 31_000, externalIPs: [externalIP] },
    extra: withVIP,
    endpoints: both,
    packets: [
      ...[toNodePort, { dst: vip }, { dst: externalIP }].flatMap((to) => [
        [{ ...fromOutside, ...to }, "10.244.1.5:8080"] as const,
        [{ ...fromPod, ...to }, `${remotePod}:8080`] as const,
        [{ ...fromNode, ...to }, `${remotePod}:8080 m`] as const,
      ]),
      [{ ...fromOutside, dst: nodeIP, dport: 31_000 }, "ACCEPT"],
    ],
  },
  {
    name: "external policy Local, none here",
    spec: { ...loadBalancer, externalTrafficPolicy: "Local", externalIPs: [externalIP] },
    extra: withVIP,
    endpoints: [{ address: remotePod, ...there }],
    packets: [toNodePort, { dst: vip }, { dst: externalIP }].flatMap((to) => [
      [{ ...fromOutside, ...to }, "DROP"] as const,
      [{ ...fromPod, ...to }, `${remotePod}:8080`] as const,
      [{ ...fromNode, ...to }, `${remotePod}:8080 m`] as const,
    ]),
  },
  {
    name: "external addresses",
    spec: { ...loadBalancer, externalIPs: [externalIP] },
    extra: withVIP,
    endpoints: one,
    packets: [{ dst: vip }, { dst: externalIP }].flatMap((to) => [
      [{ ...fromOutside, ...to }, "10.244.1.5:8080 m"] as const,
      [{ ...fromPod, ...to }, "10.244.1.5:8080 m"] as const,
      [{ ...fromNode, ...to }, "10.244.1.5:8080 m"] as const,
    ]),
  },
  {
    name: "external addresses, no endpoints",
    spec: { ...loadBalancer, externalIPs: [externalIP] },
    extra: withVIP,
    packets: [{ dst: vip }, { dst: externalIP }].flatMap((to) => [
      [{ ...fromOutside, ...to }, "REJECT"] as const,
      [{ ...fromPod, ...to }, "REJECT"] as const,
      // kube-proxy's iptables mode looks at external addresses of what comes in and passes, not of what the node sends.
      [{ ...fromNode, ...to }, "ACCEPT", "REJECT"] as const,
    ]),
  },
  {
    name: "a VIP that is the balancer's own business",
    spec: loadBalancer,
    extra: { status: { loadBalancer: { ingress: [{ ip: vip, ipMode: "Proxy" }] } } },
    endpoints: one,
    packets: [[{ ...fromOutside, dst: vip }, "ACCEPT"]],
  },
  {
    name: "source ranges",
    spec: { ...loadBalancer, loadBalancerSourceRanges: ["192.0.2.0/24", "192.0.2.128/25"] },
    extra: withVIP,
    endpoints: one,
    packets: [
      [{ ...fromOutside, dst: vip }, "10.244.1.5:8080 m"],
      [{ ...fromOutside, src: "203.0.113.50", dst: vip }, "DROP"],
      [{ ...fromPod, dst: vip }, "DROP"],
      // The node is in range; its packets to an address that is bound here carry that address.
      [{ src: vip, dst: vip }, "10.244.1.5:8080 m"],
      // Neither node ports nor the cluster IP are gated.
      [{ ...fromOutside, src: "203.0.113.50", ...toNodePort }, "10.244.1.5:8080 m"],
      [{ ...fromOutside, src: "203.0.113.50" }, "10.244.1.5:8080 m"],
    ],
  },
  {
    name: "source ranges, no endpoints",
    spec: { ...loadBalancer, loadBalancerSourceRanges: ["192.0.2.0/24"] },
    extra: withVIP,
    packets: [
      [{ ...fromOutside, dst: vip }, "REJECT"],
      // The gate stands before anything else there.
      [{ ...fromOutside, src: "203.0.113.50", dst: vip }, "REJECT", "DROP"],
    ],
  },
  {
    name: "source ranges that let everybody in",
    spec: { ...loadBalancer, loadBalancerSourceRanges: ["192.0.2.0/24", "0.0.0.0/0"] },
    extra: withVIP,
    endpoints: one,
    packets: [[{ ...fromOutside, src: "203.0.113.50", dst: vip }, "10.244.1.5:8080 m"]],
  },
  {
    name: "an endpoint that ends, and no other",
    spec: { ...nodePort, externalTrafficPolicy: "Local" },
    endpoints: [{ address: "10.244.1.5", ...here, ...going }],
    packets: [
      [fromPod, "10.244.1.5:8080"],
      [{ ...fromOutside, ...toNodePort }, "10.244.1.5:8080"],
    ],
  },
  {
    name: "an endpoint that ends here, and a ready one elsewhere",
    spec: { ...nodePort, externalTrafficPolicy: "Local" },
    endpoints: [
      { address: "10.244.1.5", ...here, ...going },
      { address: remotePod, ...there },
    ],
    packets: [
      [fromPod, `${remotePod}:8080`],
      [{ ...fromOutside, ...toNodePort }, "10.244.1.5:8080"],
    ],
  },
  {
    name: "hints for nodes",
    endpoints: [
      { address: "10.244.1.5", ...here, hints: { forNodes: [{ name: "n1" }] } },
      { address: remotePod, ...there, hints: { forNodes: [{ name: "n2" }] } },
    ],
    packets: [[fromPod, "10.244.1.5:8080"]],
  },
];
