import { describe, expect, test } from "vitest";
import { checkFeatureGate, isGateOn } from "../../../agent/config/feature-gates.ts";
import { kubeletWith, problemsOf, runCommand } from "./support.ts";

const refused: [fields: string, line: string][] = [
  ["systemCgroups: /system", "systemCgroups needs cgroupRoot"],
  ["cgroupsPerQOS: false", 'enforceNodeAllocatable must be ["none"] or [] when cgroupsPerQOS is false'],
  ["enforceNodeAllocatable: [none, pods]", "enforceNodeAllocatable must have nothing beside none"],
  ["enforceNodeAllocatable: [pods, pods]", "enforceNodeAllocatable must not name anything twice"],
  [
    "systemReservedCgroup: /s\nenforceNodeAllocatable: [system-reserved, system-reserved-compressible]",
    "enforceNodeAllocatable must not have both system-reserved and system-reserved-compressible",
  ],
  [
    "enforceNodeAllocatable: [pods, kube-reserved]",
    "kubeReservedCgroup must be set when enforceNodeAllocatable has kube-reserved or kube-reserved-compressible",
  ],
  [
    "enforceNodeAllocatable: [system-reserved-compressible]",
    "systemReservedCgroup must be set when enforceNodeAllocatable has system-reserved or system-reserved-compressible",
  ],
  [
    "enforceNodeAllocatable: [nodes]",
    'enforceNodeAllocatable[0] must be one of none, pods, system-reserved, system-reserved-compressible, kube-reserved, kube-reserved-compressible, not "nodes"',
  ],
  [
    "featureGates: {CustomCPUCFSQuotaPeriod: false}\ncpuCFSQuotaPeriod: 50ms",
    "cpuCFSQuotaPeriod must be 100ms without feature gate CustomCPUCFSQuotaPeriod",
  ],
  [
    "imageGCHighThresholdPercent: 50\nimageGCLowThresholdPercent: 50",
    "imageGCLowThresholdPercent must be less than imageGCHighThresholdPercent (50), not 50",
  ],
  ["imageMaximumGCAge: 1m", "imageMaximumGCAge must be 0s or more than imageMinimumGCAge"],
  [
    "maxParallelImagePulls: 2\nserializeImagePulls: true",
    "maxParallelImagePulls must be 1 or unset when serializeImagePulls is true",
  ],
  ["maxParallelImagePulls: 0", "maxParallelImagePulls must be 1 or more, not 0"],
  [
    "preloadedImagesVerificationAllowlist: [a]",
    "preloadedImagesVerificationAllowlist must be empty unless imagePullCredentialsVerificationPolicy is NeverVerifyAllowlistedImages",
  ],
  [
    "imagePullCredentialsVerificationPolicy: NeverVerifyAllowlistedImages\npreloadedImagesVerificationAllowlist: ['reg:5000/a/*', 'a:latest']",
    'preloadedImagesVerificationAllowlist[1] must be an image without tag and digest, or end in /*, not "a:latest"',
  ],
  [
    "featureGates: {RotateKubeletServerCertificate: false}\nserverTLSBootstrap: true",
    "serverTLSBootstrap needs feature gate RotateKubeletServerCertificate",
  ],
  ["runOnce: true", "runOnce must be false"],
  ["tlsCertFile: /c.pem", "tlsPrivateKeyFile must be set, because its other half is"],
  ["tlsPrivateKeyFile: /k.pem", "tlsCertFile must be set, because its other half is"],
  ["tlsCurvePreferences: [29, 30]", "tlsCurvePreferences[1] must be one of 23, 24, 25, 29, 4587, 4588, 4589, not 30"],
  [
    "authentication: {webhook: {enabled: false}}",
    "authentication must leave a way to use the kubelet API: set x509.clientCAFile, webhook.enabled or anonymous.enabled",
  ],
  [
    "registerWithTaints: [{key: a/b/c, effect: NoExecute}]",
    'registerWithTaints[0].key must be like name or example.com/name, not "a/b/c"',
  ],
  [
    "registerWithTaints: [{key: a, value: b c, effect: NoExecute}]",
    'registerWithTaints[0].value must be letters, digits, "-", "_", "." (63 at most), not "b c"',
  ],
  [
    "registerWithTaints: [{key: a, value: x, effect: NoExecute}, {key: a, value: z, effect: NoExecute}]",
    "registerWithTaints[1] must not repeat a:NoExecute",
  ],
  [
    "registerWithTaints: [{key: a, effect: NoExecute, timeAdded: now}]",
    "registerWithTaints[0].timeAdded is not a known field",
  ],
  ["shutdownGracePeriod: 500ms", "shutdownGracePeriod must be 0s, or 1s or more"],
  ["shutdownGracePeriodCriticalPods: 10s", "shutdownGracePeriodCriticalPods must be at most shutdownGracePeriod"],
  [
    "shutdownGracePeriod: 30s\nshutdownGracePeriodByPodPriority: [{priority: 0, shutdownGracePeriodSeconds: 1}]",
    "shutdownGracePeriodByPodPriority must be empty when shutdownGracePeriod or shutdownGracePeriodCriticalPods is set",
  ],
  [
    "featureGates: {GracefulNodeShutdown: false}\nshutdownGracePeriod: 30s",
    "shutdownGracePeriod needs feature gate GracefulNodeShutdown",
  ],
  ["reservedSystemCPUs: a-b", 'reservedSystemCPUs must be a CPU list such as 0-1,4, not "a-b"'],
  ["reservedSystemCPUs: 3-4", 'reservedSystemCPUs must be CPUs that are online (0,1,2,3), not "3-4"'],
  [
    "reservedSystemCPUs: '0'\nkubeReservedCgroup: /k",
    "reservedSystemCPUs must not be used with systemReservedCgroup or kubeReservedCgroup",
  ],
  [
    "reservedMemory: [{numaNode: 0, limits: {cpu: 1}}]",
    "reservedMemory[0].limits.cpu must be memory or hugepages-<size>",
  ],
  [
    "reservedMemory: [{numaNode: 0, limits: {memory: 0}}]",
    'reservedMemory[0].limits.memory must be more than 0, not "0"',
  ],
  [
    "reservedMemory: [{numaNode: 0, limits: {memory: 1Gi}}, {numaNode: 0, limits: {memory: 2Gi}}]",
    "reservedMemory[1].limits.memory must be given once for NUMA node 0",
  ],
  ["userNamespaces: {idsPerPod: 70000}", "userNamespaces.idsPerPod must be a multiple of 65536"],
  ["userNamespaces: {idsPerPod: 1}", "userNamespaces.idsPerPod must be from 65536 to 4294967295, not 1"],
  ["memoryThrottlingFactor: 0", "memoryThrottlingFactor must be more than 0 and at most 1, not 0"],
  ["memoryReservationPolicy: TieredReservation", "memoryReservationPolicy must be None without feature gate MemoryQoS"],
  ["qosReserved: {memory: 50%}", "qosReserved must be empty without feature gate QOSReserved"],
  [
    "enableSystemLogQuery: true\nenableSystemLogHandler: false",
    "enableSystemLogQuery must be false when enableSystemLogHandler is false",
  ],
  ["containerLogMaxFiles: 1", "containerLogMaxFiles must be 2 or more, not 1"],
  ["containerLogMonitorInterval: 1s", 'containerLogMonitorInterval must be 3s or more, not "1s"'],
  [
    "podLogsDir: /var/../log",
    'podLogsDir must be an absolute path of ASCII letters without ., .. or //, not "/var/../log"',
  ],
  [
    "evictionSoft: {memory.available: 1Gi}",
    "evictionSoftGracePeriod.memory.available must be more than 0s, because evictionSoft has memory.available",
  ],
  ["oomScoreAdj: 1001", "oomScoreAdj must be from -1000 to 1000, not 1001"],
  ["nodeLeaseDurationSeconds: -1", "nodeLeaseDurationSeconds must be 1 or more, not -1"],
  [
    "memorySwap: {swapBehavior: UnlimitedSwap}",
    'memorySwap.swapBehavior must be one of "", NoSwap, LimitedSwap, not "UnlimitedSwap"',
  ],
  [
    "featureGates: {SidecarContainer: true}",
    'featureGates.SidecarContainer is not a known feature gate (did you mean "SidecarContainers"?)',
  ],
  [
    "featureGates: {SidecarContainers: false}",
    "featureGates.SidecarContainers is locked to true and cannot be switched off",
  ],
  [
    "featureGates: {GitRepoVolumeDriver: true}",
    "featureGates.GitRepoVolumeDriver is locked to false and cannot be switched on",
  ],
];
test.each(refused)("refuses %s", (fields, line) => {
  expect(problemsOf(() => kubeletWith(fields))).toContainEqual(`/etc/k.yaml: ${line}`);
});

const accepted: string[] = [
  "systemCgroups: /system\ncgroupRoot: /",
  "cgroupsPerQOS: false\nenforceNodeAllocatable: []",
  "cgroupsPerQOS: false\nenforceNodeAllocatable: [none]",
  "cpuCFSQuotaPeriod: 50ms",
  "imageMaximumGCAge: 3m",
  "shutdownGracePeriod: 30s\nshutdownGracePeriodCriticalPods: 10s",
  "featureGates: {SidecarContainers: true, GitRepoVolumeDriver: false, AllAlpha: true, AllBeta: false}",
  "featureGates: {MemoryQoS: true}\nmemoryReservationPolicy: TieredReservation",
  "registerWithTaints: [{key: a, effect: NoExecute}, {key: a, effect: NoSchedule}]",
  "systemReserved: {cpu: 100m, memory: 1Gi, ephemeral-storage: 1Gi, pid: '1000'}",
];
test.each(accepted)("accepts %s", (fields) => expect(problemsOf(() => kubeletWith(fields))).toEqual([]));

test("a flag's fault is the flag's", () => {
  expect(problemsOf(() => kubeletWith("", ["--image-gc-low-threshold=90"]))).toEqual([
    "--image-gc-low-threshold: imageGCLowThresholdPercent must be less than imageGCHighThresholdPercent (85), not 90",
  ]);
  expect(problemsOf(() => kubeletWith("", ["--container-runtime-endpoint="]))).toEqual([
    "--container-runtime-endpoint: containerRuntimeEndpoint must not be empty",
  ]);
});

describe("cgroup v1", () => {
  test("is refused unless asked for", () => {
    const v1 = { cgroupV2: false };
    expect(problemsOf(() => kubeletWith("", [], v1))).toEqual([
      "/etc/k.yaml: failCgroupV1 must be false to run on this host, which has cgroup v1",
    ]);
    expect(problemsOf(() => kubeletWith("", ["--fail-cgroupv1=false"], v1))).toEqual([]);
    expect(problemsOf(() => kubeletWith("failCgroupV1: false\nsingleProcessOOMKill: false", [], v1))).toEqual([
      "/etc/k.yaml: singleProcessOOMKill must not be false on cgroup v1",
    ]);
  });
});

describe("flags without a field", () => {
  const cases: [args: string[], ...lines: string[]][] = [
    [["--cloud-provider=aws"], '--cloud-provider: must be one of "", external, not "aws"'],
    [
      ["--node-labels=kubernetes.io/role=x"],
      '--node-labels: "kubernetes.io/role" may not be set by a node; see the kubernetes.io label rules',
    ],
    [
      ["--node-labels=a.k8s.io/b=x"],
      '--node-labels: "a.k8s.io/b" may not be set by a node; see the kubernetes.io label rules',
    ],
    [["--node-labels=a b=c"], '--node-labels: "a b=c" is not a valid label'],
    [["--node-labels=topology.kubernetes.io/zone=a,x.node.kubernetes.io/y=b,mykubernetes.io/z=c"]],
    [["--node-ip=host"], '--node-ip: must be one IP address, or one IPv4 and one IPv6 address, not "host"'],
    [
      ["--node-ip=10.0.0.1,10.0.0.2"],
      '--node-ip: must be one IP address, or one IPv4 and one IPv6 address, not "10.0.0.1,10.0.0.2"',
    ],
    [["--node-ip=0.0.0.0,::"], '--node-ip: must be one IP address, or one IPv4 and one IPv6 address, not "0.0.0.0,::"'],
    [["--node-ip=::"]],
    [["--node-ip=fd00::1,10.0.0.1"]],
    [
      ["--image-credential-provider-bin-dir=/b"],
      "--image-credential-provider-config: must be used together with --image-credential-provider-bin-dir",
    ],
    [["--exit-on-lock-contention"], "--exit-on-lock-contention: must be used together with --lock-file"],
  ];
  test.each(cases)("%j", (args, ...lines) => expect(problemsOf(() => runCommand(args))).toEqual(lines));
});

describe("feature gates", () => {
  const cases: [set: Record<string, boolean>, gate: string, on: boolean][] = [
    [{}, "SidecarContainers", true],
    [{}, "GracefulNodeShutdown", true],
    [{}, "MemoryQoS", false],
    [{ MemoryQoS: true }, "MemoryQoS", true],
    [{ AllAlpha: true }, "MemoryQoS", true],
    [{ AllAlpha: true, MemoryQoS: false }, "MemoryQoS", false],
    [{ AllBeta: false }, "GracefulNodeShutdown", false],
    [{ AllBeta: true }, "ClusterTrustBundle", true],
    [{ AllAlpha: true }, "GitRepoVolumeDriver", false],
    [{ AllBeta: false }, "AllowServiceExternalIPs", true],
    [{ AllowServiceExternalIPs: false }, "AllowServiceExternalIPs", false],
    [{}, "NeverHeardOf", false],
  ];
  test.each(cases)("%j: %s is %s", (set, gate, on) => expect(isGateOn(set, gate)).toBe(on));

  test("those of the libraries are known, too", () => {
    expect(checkFeatureGate("NativeHistograms", false)).toBeUndefined();
  });
});
