import { bool, duration, float, int, list, map, oneOf, orNone, string } from "./kinds.ts";
import { loggingFields } from "./kubelet-config.ts";
import { group, later, noEffect, type Section, type ValuesOf, works } from "./schema.ts";

/**
 * The fields of KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1), by topic. Names are the API's; durations are
 * milliseconds. Zero that means "not set" is replaced by the default when a file is read.
 */

const text = string();
const count = int({ min: 0 });
const markBit = int({ min: 0, max: 31 });
const second = 1000;
const minute = 60 * second;
const hour = 60 * minute;

const generalFields = {
  clientConnection: group({
    kubeconfig: works(text, "", "access to the API server; none: as in a pod, or the kubelet's", {
      flag: "kubeconfig",
    }),
    acceptContentTypes: noEffect(text, "", "nodelet speaks JSON"),
    contentType: noEffect(text, "application/vnd.kubernetes.protobuf", "nodelet speaks JSON", {
      flag: "kube-api-content-type",
    }),
    qps: works(float(), 5, "requests per second to the API server, negative for no limit", {
      flag: "kube-api-qps",
      zeroIsUnset: true,
    }),
    burst: works(count, 10, "requests at once", { flag: "kube-api-burst", zeroIsUnset: true }),
  }),
  hostnameOverride: works(text, "", "name of the node, instead of the host's"),
  configSyncPeriod: noEffect(
    duration({ min: 1e-6 }),
    15 * minute,
    "changes are taken as they come, and rules checked each syncPeriod",
  ),
  oomScoreAdj: works(int({ min: -1000, max: 1000 }), -999, "the proxy's own OOM score"),
  featureGates: works(map(bool), {}, "feature gates"),
  logging: group(loggingFields),
};

const serverFields = {
  bindAddress: works(text, "0.0.0.0", "the node's address, when not a wildcard"),
  healthzBindAddress: works(text, "0.0.0.0:10256", "address of /healthz and /livez"),
  metricsBindAddress: works(text, "127.0.0.1:10249", "address of /metrics, /configz and the like"),
  bindAddressHardFail: works(bool, false, "fail when one of these is taken, instead of trying again"),
  enableProfiling: works(bool, false, "serve /debug/pprof and /debug/flags/v", { flag: "profiling" }),
  showHiddenMetricsForVersion: works(text, "", "the previous minor version, or nothing; no metric is hidden"),
};

const iptablesFields = {
  masqueradeBit: works(markBit, 14, "bit of the packet mark that asks for masquerading", {
    flag: "iptables-masquerade-bit",
  }),
  masqueradeAll: works(bool, false, "masquerade everything sent to Services", { flag: "masquerade-all" }),
  localhostNodePorts: works(bool, true, "node ports answer on 127.0.0.1", { flag: "iptables-localhost-nodeports" }),
  syncPeriod: works(duration({ min: 1e-6 }), 30 * second, "how often the rules are checked", {
    flag: "iptables-sync-period",
  }),
  minSyncPeriod: works(duration({ min: 0 }), second, "shortest time between two changes", {
    flag: "iptables-min-sync-period",
  }),
};

const ipvsFields = {
  syncPeriod: later(duration({ min: 1e-6 }), 30 * second, "how often the rules are checked", {
    flag: "ipvs-sync-period",
  }),
  minSyncPeriod: later(duration({ min: 0 }), 0, "shortest time between two changes", { flag: "ipvs-min-sync-period" }),
  scheduler: later(text, "", "IPVS scheduler", { flag: "ipvs-scheduler" }),
  excludeCIDRs: later(list(text), [], "virtual servers never removed", { flag: "ipvs-exclude-cidrs" }),
  strictARP: later(bool, false, "answer ARP only for own addresses", { flag: "ipvs-strict-arp" }),
  tcpTimeout: later(duration(), 0, "idle TCP connections, 0s to leave it", { flag: "ipvs-tcp-timeout" }),
  tcpFinTimeout: later(duration(), 0, "TCP connections after FIN", { flag: "ipvs-tcpfin-timeout" }),
  udpTimeout: later(duration(), 0, "idle UDP flows", { flag: "ipvs-udp-timeout" }),
};

const nftablesFields = {
  masqueradeBit: works(markBit, 14, "bit of the packet mark that asks for masquerading"),
  masqueradeAll: works(bool, false, "masquerade everything sent to Services"),
  syncPeriod: works(duration({ min: 1e-6 }), 30 * second, "how often the rules are checked"),
  minSyncPeriod: works(duration({ min: 0 }), second, "shortest time between two changes"),
};

const ruleFields = {
  mode: works(orNone(oneOf("iptables", "ipvs", "nftables")), "iptables", "how packets reach endpoints; not ipvs yet", {
    flag: "proxy-mode",
  }),
  iptables: group(iptablesFields),
  ipvs: group(ipvsFields),
  nftables: group(nftablesFields),
  nodePortAddresses: works(list(text), [], "CIDRs of addresses with node ports, or primary", {
    flag: "nodeport-addresses",
  }),
  clusterCIDR: works(text, "", "the pods' addresses: one CIDR, or one of each family", { flag: "cluster-cidr" }),
  detectLocalMode: works(
    orNone(oneOf("ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix")),
    "ClusterCIDR",
    "how this node's pods are recognised",
  ),
  detectLocal: group({
    bridgeInterface: works(text, "", "bridge that pods are on", { flag: "pod-bridge-interface" }),
    interfaceNamePrefix: works(text, "", "what pods' interfaces begin with", { flag: "pod-interface-name-prefix" }),
  }),
  portRange: noEffect(text, "", "unused", { flag: false }),
};

const conntrackFields = {
  maxPerCore: works(count, 32_768, "connections tracked per CPU, 0 to leave it", { flag: "conntrack-max-per-core" }),
  min: works(count, 131_072, "fewest connections tracked", { flag: "conntrack-min" }),
  tcpEstablishedTimeout: works(duration({ min: 0 }), 24 * hour, "idle TCP connections, 0s to leave it", {
    flag: "conntrack-tcp-timeout-established",
    zeroIsUnset: false,
  }),
  tcpCloseWaitTimeout: works(duration({ min: 0 }), hour, "half-closed TCP connections, 0s to leave it", {
    flag: "conntrack-tcp-timeout-close-wait",
    zeroIsUnset: false,
  }),
  tcpBeLiberal: works(bool, false, "let packets out of the TCP window pass", { flag: "conntrack-tcp-be-liberal" }),
  udpTimeout: works(duration({ min: 0 }), 0, "unanswered UDP flows, 0s to leave it", { flag: "conntrack-udp-timeout" }),
  udpStreamTimeout: works(duration({ min: 0 }), 0, "answered UDP flows, 0s to leave it", {
    flag: "conntrack-udp-timeout-stream",
  }),
};

const conntrackGroup = { conntrack: group(conntrackFields) };

const windowsFields = {
  windowsRunAsService: noEffect(bool, false, "Windows only", { flag: false }),
  winkernel: group({
    networkName: noEffect(text, "", "Windows only"),
    sourceVip: noEffect(text, "", "Windows only"),
    enableDSR: noEffect(bool, false, "Windows only"),
    rootHnsEndpointName: noEffect(text, "", "Windows only"),
    forwardHealthCheckVip: noEffect(bool, false, "Windows only"),
  }),
};

export const proxyFields = {
  ...generalFields,
  ...serverFields,
  ...ruleFields,
  ...conntrackGroup,
  ...windowsFields,
};

/** {@link proxyFields} by topic. */
export const proxySections: readonly Section[] = [
  { title: "General", fields: generalFields },
  { title: "Addresses and servers", fields: serverFields },
  { title: "Rules", fields: ruleFields },
  { title: "Connection tracking", fields: conntrackGroup },
  { title: "Windows", fields: windowsFields },
];

/** A KubeProxyConfiguration with every default filled in. Durations are milliseconds. */
export type KubeProxyConfiguration = ValuesOf<typeof proxyFields>;

/** Flags of the proxy that are no fields, or say more than one. */
export const proxyFlagFields = {
  config: works(text, "", "KubeProxyConfiguration file; most other flags are then ignored"),
  master: works(text, "", "URL of the API server, instead of the kubeconfig's"),
  cleanup: works(bool, false, "remove all rules and leave"),
  initOnly: works(bool, false, "set up what needs privileges and leave"),
  writeConfigTo: works(text, "", "write the configuration to this file and leave"),
  healthzPort: works(int({ min: 0, max: 65535 }), 10256, "deprecated; 0: no /healthz"),
  metricsPort: works(int({ min: 0, max: 65535 }), 10249, "deprecated"),
};
