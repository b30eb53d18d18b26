import { isDeepStrictEqual } from "node:util";
import {
  bool,
  duration,
  float,
  flushDuration,
  int,
  ip,
  list,
  map,
  oneOf,
  quantity,
  quantityString,
  string,
} from "./kinds.ts";
import { group, later, noEffect, partly, type Section, type ValuesOf, works } from "./schema.ts";
import {
  evictionReclaims,
  evictionThresholds,
  headers,
  ints,
  perSignal,
  qosReservations,
  reservations,
  reservedMemory,
  shutdownByPriority,
  taints,
  texts,
  vmodule,
} from "./structured-kinds.ts";

/**
 * The fields of KubeletConfiguration (kubelet.config.k8s.io/v1beta1), by topic. Names are the API's; durations are
 * milliseconds; quantities stay text. Zero that means "not set" is replaced by the default when a file is read.
 */

const count = int({ min: 0 });
const port = int({ min: 0, max: 65535 });
const percent = int({ min: 0, max: 100 });
const strings = list(string());
const second = 1000;
const minute = 60 * second;

/** Thresholds that count when a configuration file does not say `evictionHard`. */
export const defaultEvictionHard: Readonly<Record<string, string>> = {
  "memory.available": "100Mi",
  "nodefs.available": "10%",
  "nodefs.inodesFree": "5%",
  "imagefs.available": "15%",
  "imagefs.inodesFree": "5%",
};

const apiServerFields = {
  registerNode: works(bool, true, "create the Node object"),
  registerWithTaints: works(taints, [], "taints of a newly created Node"),
  providerID: works(string(), "", "spec.providerID of a newly created Node", { flagStays: true }),
  podCIDR: works(string(), "", "pod addresses, only without an API server"),
  nodeStatusUpdateFrequency: works(duration(), 10 * second, "how often the node's status is computed"),
  nodeStatusReportFrequency: works(duration(), 5 * minute, "how often an unchanged status is sent", { flag: false }),
  nodeLeaseDurationSeconds: works(int({ min: 1 }), 40, "how long the Lease is valid", {
    flag: false,
    zeroIsUnset: true,
  }),
  nodeStatusMaxImages: works(int({ min: -1 }), 50, "most images in the node's status, -1 for all"),
  contentType: noEffect(string(), "application/vnd.kubernetes.protobuf", "wire format; nodelet speaks JSON", {
    flag: "kube-api-content-type",
  }),
  kubeAPIQPS: works(count, 50, "requests per second to the API server, 0 for 5", { flag: "kube-api-qps" }),
  kubeAPIBurst: works(count, 100, "requests at once to the API server", { flag: "kube-api-burst", zeroIsUnset: true }),
  eventRecordQPS: works(count, 50, "events per second, 0 for 5", { flag: "event-qps" }),
  eventBurst: works(count, 100, "events at once", { zeroIsUnset: true }),
  rotateCertificates: works(bool, false, "renew the client certificate"),
  serverTLSBootstrap: works(bool, false, "request the serving certificate from the API server", {
    flag: "rotate-server-certificates",
  }),
};

const podFields = {
  maxPods: works(count, 110, "most pods on this node", { zeroIsUnset: true }),
  podsPerCore: works(count, 0, "most pods per CPU, 0 for no limit"),
  podPidsLimit: works(int({ min: -1 }), -1, "most processes per pod, -1 for no limit", { flag: "pod-max-pids" }),
  podLogsDir: works(string(), "/var/log/pods", "directory of container logs", { flag: false, fileRelative: true }),
  syncFrequency: works(duration(), minute, "longest time between two looks at a pod"),
  clusterDomain: works(string(), "", "DNS domain of the cluster"),
  clusterDNS: works(list(ip), [], "name servers of pods"),
  resolvConf: works(string(), "/etc/resolv.conf", "resolver configuration that pods inherit", {
    zeroIsUnset: false,
    fileRelative: true,
  }),
  crashLoopBackOff: group({
    maxContainerRestartPeriod: works(
      duration({ min: second, max: 300 * second }),
      300 * second,
      "longest wait before a crashed container is started again",
      { zeroIsUnset: false },
    ),
  }),
  configMapAndSecretChangeDetectionStrategy: works(
    oneOf("Watch", "Cache", "Get"),
    "Watch",
    "how changed configMaps and secrets are noticed",
    { flag: false },
  ),
  seccompDefault: works(bool, false, "RuntimeDefault is the seccomp profile of containers without one", {
    flag: false,
  }),
  allowedUnsafeSysctls: works(strings, [], "sysctls (or prefix*) that pods may set"),
  enableControllerAttachDetach: later(bool, true, "the controller manager attaches volumes, not the node"),
  volumePluginDir: later(
    string(),
    "/usr/libexec/kubernetes/kubelet-plugins/volume/exec/",
    "directory of flexvolume plugins",
    { fileRelative: true },
  ),
  userNamespaces: group({
    idsPerPod: works(int({ min: 65536, max: 2 ** 32 - 1 }), 65536, "user IDs of a pod with its own user namespace"),
  }),
  staticPodPath: works(string(), "", "directory or file of static pods", {
    flag: "pod-manifest-path",
    fileRelative: true,
  }),
  fileCheckFrequency: works(duration(), 20 * second, "how often static pod files are read"),
  staticPodURL: works(string(), "", "URL of static pods", { flag: "manifest-url", secret: true }),
  staticPodURLHeader: works(headers, {}, "HTTP headers for that URL", { flag: "manifest-url-header", secret: true }),
  httpCheckFrequency: works(duration(), 20 * second, "how often that URL is read"),
  runOnce: noEffect(bool, false, "must be false", { flag: "runonce" }),
};

const runtimeFields = {
  containerRuntimeEndpoint: works(
    string(),
    "unix:///run/containerd/containerd.sock",
    "socket of the container runtime, CRI or Docker; docker:// for Docker's own",
  ),
  imageServiceEndpoint: works(string(), "", "CRI socket of the image service, when another"),
  runtimeRequestTimeout: works(duration(), 2 * minute, "time limit of a CRI call"),
  serializeImagePulls: works(bool, true, "pull one image at a time"),
  maxParallelImagePulls: works(int({ min: 1 }), undefined, "most pulls at once, when not one at a time", {
    flag: false,
  }),
  registryPullQPS: works(count, 5, "pulls per second, 0 for no limit", { flag: "registry-qps" }),
  registryBurst: works(count, 10, "pulls at once", { zeroIsUnset: true }),
  imagePullCredentialsVerificationPolicy: works(
    oneOf("NeverVerifyPreloadedImages", "NeverVerify", "NeverVerifyAllowlistedImages", "AlwaysVerify"),
    "NeverVerifyPreloadedImages",
    "which present images a pod may use without proving access",
    { flag: false },
  ),
  preloadedImagesVerificationAllowlist: works(strings, [], "images excepted by that policy", { flag: false }),
  imageMinimumGCAge: works(duration(), 2 * minute, "images younger than this stay", {
    flag: "minimum-image-ttl-duration",
  }),
  imageMaximumGCAge: works(duration({ min: 0 }), 0, "unused images older than this go, 0s for never", { flag: false }),
  imageGCHighThresholdPercent: works(percent, 85, "disk usage at which images are removed", {
    flag: "image-gc-high-threshold",
  }),
  imageGCLowThresholdPercent: works(percent, 80, "disk usage down to which images are removed", {
    flag: "image-gc-low-threshold",
  }),
  containerLogMaxSize: works(quantityString, "10Mi", "size at which a container's log is rotated"),
  containerLogMaxFiles: works(int({ min: 2 }), 5, "log files kept per container"),
  containerLogMaxWorkers: works(int({ min: 1 }), 1, "log rotations at once", { flag: false }),
  containerLogMonitorInterval: works(duration({ min: 3 * second }), 10 * second, "how often log sizes are read", {
    flag: false,
  }),
};

const cgroupFields = {
  cgroupRoot: works(string(), "", "cgroup above all pods"),
  cgroupsPerQOS: works(bool, true, "one cgroup per QoS class and pod"),
  cgroupDriver: works(oneOf("cgroupfs", "systemd"), "cgroupfs", "who makes cgroups, if the runtime cannot say"),
  cpuCFSQuota: works(bool, true, "enforce CPU limits"),
  cpuCFSQuotaPeriod: works(duration({ min: 1, max: second }), 100, "period in which CPU limits are enforced"),
  failCgroupV1: works(bool, true, "refuse to run on cgroup v1", { flag: "fail-cgroupv1", flagStays: true }),
  systemReserved: works(reservations, {}, "resources kept for the system"),
  kubeReserved: works(reservations, {}, "resources kept for Kubernetes' own daemons"),
  reservedSystemCPUs: works(string(), "", "CPUs kept for the system, instead of an amount", { flag: "reserved-cpus" }),
  systemReservedCgroup: later(string(), "", "cgroup of the system's processes"),
  kubeReservedCgroup: later(string(), "", "cgroup of Kubernetes' own daemons"),
  enforceNodeAllocatable: later(
    list(
      oneOf(
        "none",
        "pods",
        "system-reserved",
        "system-reserved-compressible",
        "kube-reserved",
        "kube-reserved-compressible",
      ),
    ),
    ["pods"],
    "where reservations become cgroup limits",
    { quiet: (value) => value.every((word) => word === "none") },
  ),
  kubeletCgroups: partly(string(), "", "cgroup of the agent itself", {
    note: "statistics show this cgroup as the kubelet's, but the agent does not move into it",
  }),
  systemCgroups: partly(string(), "", "cgroup for processes that are in none", {
    note: "statistics show this cgroup as the system's, but no process is moved into it",
  }),
  qosReserved: later(qosReservations, {}, "share of requests protected from lower QoS classes"),
  singleProcessOOMKill: works(bool, undefined, "out of memory kills one process, not the container", { flag: false }),
  memoryThrottlingFactor: later(float(), 0.9, "share of the memory limit at which to throttle", { flag: false }),
  memoryReservationPolicy: later(oneOf("None", "TieredReservation"), "None", "memory.min and memory.low of pods", {
    flag: false,
  }),
  memorySwap: group({
    swapBehavior: works(oneOf("", "NoSwap", "LimitedSwap"), "", "swap that pods may use"),
  }),
  failSwapOn: later(bool, true, "refuse to run with swap on", { quiet: (value) => !value }),
  localStorageCapacityIsolation: works(bool, true, "account for ephemeral storage"),
  cpuManagerPolicy: later(oneOf("none", "static"), "none", "how CPUs are given to containers"),
  cpuManagerPolicyOptions: later(texts, {}, "options of that policy"),
  cpuManagerReconcilePeriod: later(duration(), 10 * second, "how often cpusets are checked"),
  memoryManagerPolicy: later(oneOf("None", "Static"), "None", "how NUMA memory is given to containers"),
  reservedMemory: later(reservedMemory, [], "memory kept for the system per NUMA node"),
  topologyManagerPolicy: later(
    oneOf("none", "best-effort", "restricted", "single-numa-node"),
    "none",
    "how resources are aligned to NUMA nodes",
  ),
  topologyManagerScope: later(oneOf("container", "pod"), "container", "what is aligned"),
  topologyManagerPolicyOptions: later(texts, {}, "options of that policy"),
};

const protectionFields = {
  evictionHard: partly(evictionThresholds, {}, "free resources below which pods are evicted at once", {
    note: "it lowers allocatable, but pods are not evicted yet",
    quiet: (value) =>
      isDeepStrictEqual(value, defaultEvictionHard) ||
      Object.values(value).every((amount) => amount === "0%" || amount === "100%"),
  }),
  mergeDefaultEvictionSettings: works(bool, false, "add the default thresholds that evictionHard leaves out", {
    flag: false,
  }),
  evictionSoft: later(evictionThresholds, {}, "free resources below which pods are evicted after a grace period"),
  evictionSoftGracePeriod: later(perSignal(duration()), {}, "that grace period, per signal"),
  evictionMinimumReclaim: later(evictionReclaims, {}, "how much more to free, per signal"),
  evictionPressureTransitionPeriod: later(duration(), 5 * minute, "how long a pressure condition stays"),
  evictionMaxPodGracePeriod: later(int(), 0, "most seconds that a softly evicted pod gets"),
  kernelMemcgNotification: later(bool, false, "notice memory pressure by cgroup v1 events"),
  protectKernelDefaults: later(bool, false, "fail instead of writing sysctls"),
  makeIPTablesUtilChains: works(bool, true, "keep the chains by which others see which iptables the node uses", {
    flag: "make-iptables-util-chains",
  }),
  iptablesMasqueradeBit: noEffect(int({ min: 0, max: 31 }), 14, "packet mark bit, only checked", { flag: false }),
  iptablesDropBit: noEffect(int({ min: 0, max: 31 }), 15, "packet mark bit, only checked", { flag: false }),
  hairpinMode: noEffect(
    oneOf("promiscuous-bridge", "hairpin-veth", "none"),
    "promiscuous-bridge",
    "CNI plugins decide this now",
  ),
  shutdownGracePeriod: later(duration(), 0, "how long a shutdown of the machine waits for pods", { flag: false }),
  shutdownGracePeriodCriticalPods: later(duration(), 0, "part of it that is for critical pods", { flag: false }),
  shutdownGracePeriodByPodPriority: later(shutdownByPriority, [], "such waits by pod priority", { flag: false }),
  oomScoreAdj: works(int({ min: -1000, max: 1000 }), -999, "the agent's own OOM score"),
  maxOpenFiles: works(count, 1_000_000, "the agent's own limit of open files", { zeroIsUnset: true }),
};

const serverFields = {
  enableServer: works(bool, true, "serve the kubelet API"),
  address: works(ip, "0.0.0.0", "address of the kubelet API"),
  port: works(int({ min: 1, max: 65535 }), 10250, "port of the kubelet API", { zeroIsUnset: true }),
  readOnlyPort: works(port, 0, "port of the unauthenticated part, 0 for none"),
  healthzPort: works(port, 10248, "port of /healthz, 0 for none"),
  healthzBindAddress: works(ip, "127.0.0.1", "address of /healthz"),
  tlsCertFile: works(string(), "", "serving certificate", { fileRelative: true }),
  tlsPrivateKeyFile: works(string(), "", "its key", { fileRelative: true }),
  tlsCipherSuites: works(strings, [], "cipher suites of TLS 1.2"),
  tlsMinVersion: works(
    oneOf("", "VersionTLS10", "VersionTLS11", "VersionTLS12", "VersionTLS13"),
    "",
    "lowest TLS version",
  ),
  tlsCurvePreferences: works(ints({ min: 0 }), [], "IDs of key exchange curves", { flag: false }),
  authentication: group({
    x509: group({
      clientCAFile: works(string(), "", "CA of client certificates", { flag: "client-ca-file", fileRelative: true }),
    }),
    anonymous: group({ enabled: works(bool, false, "allow anonymous requests", { flag: "anonymous-auth" }) }),
    webhook: group({
      enabled: works(bool, true, "ask the API server about tokens", { flag: "authentication-token-webhook" }),
      cacheTTL: works(duration(), 2 * minute, "how long its answers count", {
        flag: "authentication-token-webhook-cache-ttl",
      }),
    }),
  }),
  authorization: group({
    mode: works(oneOf("Webhook", "AlwaysAllow"), "Webhook", "who may do what", { flag: "authorization-mode" }),
    webhook: group({
      cacheAuthorizedTTL: works(duration(), 5 * minute, "how long a yes counts", {
        flag: "authorization-webhook-cache-authorized-ttl",
      }),
      cacheUnauthorizedTTL: works(duration(), 30 * second, "how long a no counts", {
        flag: "authorization-webhook-cache-unauthorized-ttl",
      }),
    }),
  }),
  enableDebuggingHandlers: works(bool, true, "serve exec, attach, port-forward, logs"),
  enableContentionProfiling: noEffect(bool, false, "profile lock contention", { flag: "contention-profiling" }),
  enableProfilingHandler: works(bool, true, "serve /debug/pprof", { flag: false }),
  enableDebugFlagsHandler: works(bool, true, "serve /debug/flags/v", { flag: false }),
  enableSystemLogHandler: works(bool, true, "serve /logs/", { flag: false }),
  enableSystemLogQuery: works(bool, false, "serve queries of system logs", { flag: false }),
  streamingConnectionIdleTimeout: noEffect(duration(), 240 * minute, "has no effect"),
  volumeStatsAggPeriod: works(duration(), minute, "how often volume usage is measured"),
  showHiddenMetricsForVersion: later(
    string((text) => (/^\d+\.\d+$/.test(text) ? undefined : "must be a version such as 1.35")),
    "",
    "show metrics hidden since this version",
    { flag: false },
  ),
  tracing: group({
    endpoint: later(string(), undefined, "OTLP collector"),
    samplingRatePerMillion: later(int({ min: 0, max: 1_000_000 }), undefined, "share of traces sent"),
  }),
};

const logOutputFields = {
  splitStream: noEffect(bool, false, "errors to stderr, the rest to stdout"),
  infoBufferSize: noEffect(quantity, "0", "buffer of the latter"),
};

/** Fields of `logging`, which kubelet and kube-proxy share. */
export const loggingFields = {
  format: works(oneOf("text", "json"), "text", "nodelet always writes JSON lines", {
    flag: "logging-format",
  }),
  flushFrequency: noEffect(flushDuration, 5 * second, "nodelet does not buffer", {
    flag: "log-flush-frequency",
    flagStays: true,
  }),
  verbosity: works(int({ min: 0 }), 0, "0-3 info, 4-5 debug, 6 and more trace", {
    flag: "v",
    shorthand: "v",
    flagStays: true,
  }),
  vmodule: later(vmodule, [], "verbosity per file", { flag: "vmodule", flagStays: true }),
  options: group({
    text: group({
      splitStream: { ...logOutputFields.splitStream, options: { flag: "log-text-split-stream" } },
      infoBufferSize: { ...logOutputFields.infoBufferSize, options: { flag: "log-text-info-buffer-size" } },
    }),
    json: group({
      splitStream: { ...logOutputFields.splitStream, options: { flag: "log-json-split-stream" } },
      infoBufferSize: { ...logOutputFields.infoBufferSize, options: { flag: "log-json-info-buffer-size" } },
    }),
  }),
};

const generalFields = {
  featureGates: works(map(bool), {}, "feature gates"),
  logging: group(loggingFields),
};

export const kubeletFields = {
  ...apiServerFields,
  ...podFields,
  ...runtimeFields,
  ...cgroupFields,
  ...protectionFields,
  ...serverFields,
  ...generalFields,
};

/** {@link kubeletFields} by topic. */
export const kubeletSections: readonly Section[] = [
  { title: "Node and API server", fields: apiServerFields },
  { title: "Pods", fields: podFields },
  { title: "Runtime and images", fields: runtimeFields },
  { title: "Resources", fields: cgroupFields },
  { title: "Protection of the node", fields: protectionFields },
  { title: "Kubelet API", fields: serverFields },
  { title: "General", fields: generalFields },
];

/** A KubeletConfiguration with every default filled in. Durations are milliseconds, quantities text. */
export type KubeletConfiguration = ValuesOf<typeof kubeletFields>;
