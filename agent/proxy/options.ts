import type { Family } from "./ip.ts";

/** How traffic of this node's own pods is told from other traffic; see KubeProxyConfiguration's detectLocalMode. */
export interface DetectLocalOptions {
  readonly mode: "ClusterCIDR" | "NodeCIDR" | "BridgeInterface" | "InterfaceNamePrefix";
  /** ClusterCIDR mode: the cluster's pod CIDRs. NodeCIDR mode: this node's. The first one of each family counts. */
  readonly cidrs: readonly string[];
  readonly bridgeInterface: string;
  readonly interfaceNamePrefix: string;
}

/** Limits of connection tracking, set once at start. 0 leaves the kernel's value alone. */
export interface ConntrackOptions {
  readonly maxPerCore: number;
  readonly min: number;
  readonly tcpEstablishedTimeoutSeconds: number;
  readonly tcpCloseWaitTimeoutSeconds: number;
  readonly tcpBeLiberal: boolean;
  readonly udpTimeoutSeconds: number;
  readonly udpStreamTimeoutSeconds: number;
}

/** What the proxy role reads from its configuration. Values are validated by the reader of the configuration. */
export interface ProxyOptions {
  /** What does the work in the kernel. */
  readonly mode: "iptables" | "nftables";
  readonly nodeName: string;
  /** This node's addresses, the primary one first. They answer `nodePortAddresses: primary` and "is the node in range?". */
  readonly nodeIPs: readonly string[];
  /** Which families to program. `undefined`: those that this machine supports. */
  readonly families: readonly Family[] | undefined;
  /** Which iptables commands to use. `undefined`: found out. */
  readonly iptablesFlavour: "nft" | "legacy" | undefined;
  /** 0-31: the bit of the packet mark that asks for masquerading. */
  readonly masqueradeBit: number;
  readonly masqueradeAll: boolean;
  readonly localhostNodePorts: boolean;
  /** False: Services' `externalIPs` count for nothing. */
  readonly allowsExternalIPs: boolean;
  /** nftables mode: also try a kernel that is too old. */
  readonly skipsKernelCheck: boolean;
  /** CIDRs, or the one word "primary". A family without an entry accepts node ports on all its addresses. */
  readonly nodePortAddresses: readonly string[];
  /** How often the rules are checked against the kernel, and the longest wait before a failed sync is repeated. */
  readonly syncPeriodMs: number;
  /** Rest between two syncs; what changes meanwhile is applied together. */
  readonly minSyncPeriodMs: number;
  readonly detectLocal: DetectLocalOptions;
  readonly conntrack: ConntrackOptions;
}

/** KubeProxyConfiguration's defaults. */
export const proxyOptionsDefault: Omit<ProxyOptions, "nodeName" | "nodeIPs"> = {
  mode: "iptables",
  families: undefined,
  iptablesFlavour: undefined,
  masqueradeBit: 14,
  masqueradeAll: false,
  localhostNodePorts: true,
  allowsExternalIPs: true,
  skipsKernelCheck: false,
  nodePortAddresses: [],
  syncPeriodMs: 30_000,
  minSyncPeriodMs: 1_000,
  detectLocal: { mode: "ClusterCIDR", cidrs: [], bridgeInterface: "", interfaceNamePrefix: "" },
  conntrack: {
    maxPerCore: 32_768,
    min: 131_072,
    tcpEstablishedTimeoutSeconds: 86_400,
    tcpCloseWaitTimeoutSeconds: 3_600,
    tcpBeLiberal: false,
    udpTimeoutSeconds: 0,
    udpStreamTimeoutSeconds: 0,
  },
};
