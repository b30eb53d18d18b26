import { expect, test } from "vitest";
import { parseCommandLine } from "../../../agent/config/load.ts";
import type { KubeletSettings } from "../../../agent/config/load-kubelet.ts";
import type { ProxySettings } from "../../../agent/config/load-proxy.ts";
import {
  cgroupOptions,
  nodeNameOf,
  nodeSettings,
  podSettings,
  pullVerification,
  resourceContext,
} from "../../../agent/roles/kubelet-settings.ts";
import { proxyOptions } from "../../../agent/roles/proxy.ts";
import type { NodeFacts } from "../../../agent/node/facts.ts";

const facts: NodeFacts = {
  machineID: "m",
  systemUUID: "s",
  bootID: "b",
  kernelVersion: "6.1",
  osImage: "Debian",
  architecture: "amd64",
  cpuCount: 4,
  memoryBytes: 8 * 2 ** 30,
  swapBytes: 2 ** 30,
  hugePages: [{ pageBytes: 2 ** 21, count: 0 }],
  rootFilesystemBytes: 10 ** 11,
  pidsMax: 4_194_304,
  cpuCFSQuotaSupported: true,
  isAppArmorEnabled: false,
};

function host(file: string) {
  return {
    readFile: () => file,
    filesBelow: () => [],
    isCgroupV2: () => true,
    onlineCPUs: () => new Set([0, 1, 2, 3]),
  };
}

function kubelet(lines: string[], flags: string[] = []): KubeletSettings {
  const file = ["apiVersion: kubelet.config.k8s.io/v1beta1", "kind: KubeletConfiguration", ...lines].join("\n");
  const command = parseCommandLine(["--config", "kubelet.yaml", ...flags], host(file));
  if (command.kind !== "run") throw new Error(command.kind);
  return command.kubelet;
}

function proxy(lines: string[]): ProxySettings["config"] {
  const file = ["apiVersion: kubeproxy.config.k8s.io/v1alpha1", "kind: KubeProxyConfiguration", ...lines].join("\n");
  const command = parseCommandLine(["proxy", "--config", "kube-proxy.yaml"], host(file));
  if (command.kind !== "proxy") throw new Error(command.kind);
  return command.proxy.config;
}

test("the node is called as told, else as the machine, in lower case", () => {
  expect(nodeNameOf("", "Worker-1")).toBe("worker-1");
  expect(nodeNameOf(" Node.Example ", "worker-1")).toBe("node.example");
});

test("reservations of both kinds add up, and count for the node and its cgroups", () => {
  const settings = kubelet(["systemReserved: {cpu: 500m, memory: 1Gi}", "kubeReserved: {cpu: '1'}"]);
  const ofNode = nodeSettings(settings, "n1");
  expect(ofNode.reservations.reserved).toEqual({ cpu: 1_500, memory: 2 ** 30 });
  expect(cgroupOptions(settings, ofNode, facts, undefined).enforcedReserved).toEqual({ cpu: 1_500, memory: 2 ** 30 });
  const lax = kubelet(["systemReserved: {cpu: 500m}", "enforceNodeAllocatable: [none]"]);
  expect(cgroupOptions(lax, nodeSettings(lax, "n1"), facts, undefined).enforcedReserved).toEqual({});
});

test("the runtime's cgroup driver wins over the configured one", () => {
  const settings = kubelet(["cgroupDriver: cgroupfs"]);
  const ofNode = nodeSettings(settings, "n1");
  expect(cgroupOptions(settings, ofNode, facts, "systemd").driver).toBe("systemd");
  expect(cgroupOptions(settings, ofNode, facts, undefined).driver).toBe("cgroupfs");
});

test("durations reach the parts in their own units", () => {
  const settings = kubelet([
    "nodeStatusUpdateFrequency: 20s",
    "nodeStatusReportFrequency: 2m",
    "cpuCFSQuotaPeriod: 50ms",
    "crashLoopBackOff: {maxContainerRestartPeriod: 60s}",
  ]);
  expect(nodeSettings(settings, "n1")).toMatchObject({ statusUpdateMs: 20_000, statusReportMs: 120_000 });
  const resources = resourceContext(settings, facts, { cgroupVersion: 2, swapControllerAvailable: true });
  expect(resources).toMatchObject({ cpuPeriodUs: 50_000, cpuCFSQuota: true, swapBehavior: "NoSwap" });
  const pods = podSettings(settings, { selinuxEnabled: false, resources });
  expect(pods.crashBackoff).toEqual({ initialMs: 10_000, maxMs: 60_000 });
});

test("feature gates reach what they are about", () => {
  const of = (...gates: string[]) => {
    const settings = kubelet([`featureGates: {${gates.join(", ")}}`]);
    const resources = resourceContext(settings, facts, { cgroupVersion: 2, swapControllerAvailable: true });
    return podSettings(settings, { selinuxEnabled: false, resources });
  };
  expect(of()).toMatchObject({ envFiles: true, stopSignals: false, readyToStartCondition: true });
  const other = ["EnvFiles: false", "ContainerStopSignals: true", "PodReadyToStartContainersCondition: false"];
  expect(of(...other)).toMatchObject({ envFiles: false, stopSignals: true, readyToStartCondition: false });
  const [reduced, fixed] = ["ReduceDefaultCrashLoopBackOffDecay: true", "KubeletCrashLoopBackOffMax: false"];
  expect(of(reduced).crashBackoff).toEqual({ initialMs: 1_000, maxMs: 300_000 });
  expect(of(reduced, fixed).crashBackoff).toEqual({ initialMs: 1_000, maxMs: 60_000 });
  expect(of(fixed).crashBackoff).toEqual({ initialMs: 10_000, maxMs: 300_000 });
});

test("without CFS quota in the kernel no CPU limit is asked for", () => {
  const settings = kubelet([]);
  const poor = { ...facts, cpuCFSQuotaSupported: false };
  expect(cgroupOptions(settings, nodeSettings(settings, "n1"), poor, undefined).cpuCFSQuota).toBe(false);
});

test("out of memory kills whole containers on cgroup v2, single processes on v1", () => {
  const machine = { swapControllerAvailable: false };
  expect(resourceContext(kubelet([]), facts, { ...machine, cgroupVersion: 2 }).singleProcessOOMKill).toBe(false);
  expect(resourceContext(kubelet([]), facts, { ...machine, cgroupVersion: 1 }).singleProcessOOMKill).toBe(true);
});

test("the image policy is in force unless its gate is off", () => {
  expect(pullVerification(kubelet([]))).toEqual({ kind: "NeverVerifyPreloadedImages" });
  const listed = kubelet([
    "imagePullCredentialsVerificationPolicy: NeverVerifyAllowlistedImages",
    "preloadedImagesVerificationAllowlist: [registry.example/base/*]",
  ]);
  expect(pullVerification(listed)).toEqual({
    kind: "NeverVerifyAllowlistedImages",
    allowlist: ["registry.example/base/*"],
  });
  expect(pullVerification(kubelet(["featureGates: {KubeletEnsureSecretPulledImages: false}"]))).toBeUndefined();
});

test("the proxy's settings: seconds, CIDRs of both families, local pods", () => {
  const config = proxy([
    "clusterCIDR: 10.244.0.0/16,fd00:244::/56",
    "conntrack: {tcpEstablishedTimeout: 2h, udpTimeout: 30s}",
    "iptables: {minSyncPeriod: 500ms, masqueradeBit: 15}",
  ]);
  expect(proxyOptions(config, "n1", ["192.0.2.1"])).toMatchObject({
    nodeName: "n1",
    nodeIPs: ["192.0.2.1"],
    minSyncPeriodMs: 500,
    syncPeriodMs: 30_000,
    masqueradeBit: 15,
    detectLocal: { mode: "ClusterCIDR", cidrs: ["10.244.0.0/16", "fd00:244::/56"] },
    conntrack: { tcpEstablishedTimeoutSeconds: 7_200, tcpCloseWaitTimeoutSeconds: 3_600, udpTimeoutSeconds: 30 },
  });
});

test("the proxy leaves external IPs out where the feature gate says so", () => {
  expect(proxyOptions(proxy([]), "n1", []).allowsExternalIPs).toBe(true);
  const config = proxy(["featureGates: {AllowServiceExternalIPs: false}"]);
  expect(proxyOptions(config, "n1", []).allowsExternalIPs).toBe(false);
});

const addressCases = [
  { bind: "0.0.0.0", node: ["192.0.2.1", "2001:db8::1"], want: ["192.0.2.1", "2001:db8::1"] },
  { bind: "192.0.2.9", node: ["192.0.2.1", "2001:db8::1"], want: ["192.0.2.9", "2001:db8::1"] },
  { bind: "2001:db8::9", node: ["192.0.2.1"], want: ["2001:db8::9", "192.0.2.1"] },
  { bind: "0.0.0.0", node: [], want: ["127.0.0.1"] },
  { bind: "::", node: [], want: ["::1"] },
];
for (const { bind, node, want } of addressCases) {
  test(`the proxy bound to ${bind} on a node with [${node.join(" ")}] takes [${want.join(" ")}] for the node's`, () => {
    expect(proxyOptions(proxy([`bindAddress: "${bind}"`]), "n1", node).nodeIPs).toEqual(want);
  });
}
