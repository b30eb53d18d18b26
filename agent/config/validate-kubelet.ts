import { isIPv4, isIPv6 } from "node:net";
import { parseQuantity } from "../kube/quantity.ts";
import { parseCPUSet } from "./cpuset.ts";
import { checkFeatureGate, isGateOn } from "./feature-gates.ts";
import type { ConfigHost } from "./host.ts";
import type { KubeletConfiguration } from "./kubelet-config.ts";
import { isAllowedNodeLabel, type KubeletFlags } from "./kubelet-flags.ts";
import { isLabelKey, isLabelValue } from "./labels.ts";
import type { Problem } from "./problems.ts";
import { checkTls } from "./tls.ts";

type Rule = (config: KubeletConfiguration, host: ConfigHost) => Problem[];

/** What is wrong with fields taken together, with gates, or with this machine; what one field may be, its kind says. */
export function validateKubelet(config: KubeletConfiguration, host: ConfigHost): Problem[] {
  return rules.flatMap((rule) => rule(config, host));
}

const rules: Rule[] = [
  checkFeatureGates,
  checkCgroups,
  checkNodeAllocatable,
  checkReservations,
  checkImages,
  checkNode,
  checkPods,
  checkEviction,
  checkShutdown,
  checkServer,
  checkTls,
  checkAuthentication,
];

/** The featureGates of either configuration. */
export function checkFeatureGates({ featureGates }: { featureGates: Readonly<Record<string, boolean>> }): Problem[] {
  return Object.entries(featureGates).flatMap(([gate, value]) =>
    problemIf(`featureGates.${gate}`, checkFeatureGate(gate, value)),
  );
}

function checkCgroups(config: KubeletConfiguration, host: ConfigHost): Problem[] {
  const gate = (name: string) => isGateOn(config.featureGates, name);
  const { memoryThrottlingFactor: factor } = config;
  const isV2 = host.isCgroupV2();
  return [
    ...when(config.failCgroupV1 && !isV2, "failCgroupV1", "must be false to run on this host, which has cgroup v1"),
    ...when(config.singleProcessOOMKill === false && !isV2, "singleProcessOOMKill", "must not be false on cgroup v1"),
    ...when(config.systemCgroups !== "" && config.cgroupRoot === "", "systemCgroups", "needs cgroupRoot"),
    ...when(
      config.cpuCFSQuotaPeriod !== 100 && !gate("CustomCPUCFSQuotaPeriod"),
      "cpuCFSQuotaPeriod",
      "must be 100ms without feature gate CustomCPUCFSQuotaPeriod",
    ),
    ...when(factor <= 0 || factor > 1, "memoryThrottlingFactor", `must be more than 0 and at most 1, not ${factor}`),
    ...when(
      config.memoryReservationPolicy === "TieredReservation" && !gate("MemoryQoS"),
      "memoryReservationPolicy",
      "must be None without feature gate MemoryQoS",
    ),
    ...when(
      Object.keys(config.qosReserved).length > 0 && !gate("QOSReserved"),
      "qosReserved",
      "must be empty without feature gate QOSReserved",
    ),
  ];
}

function checkNodeAllocatable(config: KubeletConfiguration): Problem[] {
  const enforced = config.enforceNodeAllocatable;
  const has = (word: (typeof enforced)[number]) => enforced.includes(word);
  const path = "enforceNodeAllocatable";
  return [
    ...when(
      !config.cgroupsPerQOS && enforced.some((word) => word !== "none"),
      path,
      'must be ["none"] or [] when cgroupsPerQOS is false',
    ),
    ...when(new Set(enforced).size < enforced.length, path, "must not name anything twice"),
    ...when(has("none") && enforced.length > 1, path, "must have nothing beside none"),
    ...(["system-reserved", "kube-reserved"] as const).flatMap((word) => [
      ...when(has(word) && has(`${word}-compressible`), path, `must not have both ${word} and ${word}-compressible`),
    ]),
    ...when(
      (has("system-reserved") || has("system-reserved-compressible")) && config.systemReservedCgroup === "",
      "systemReservedCgroup",
      `must be set when ${path} has system-reserved or system-reserved-compressible`,
    ),
    ...when(
      (has("kube-reserved") || has("kube-reserved-compressible")) && config.kubeReservedCgroup === "",
      "kubeReservedCgroup",
      `must be set when ${path} has kube-reserved or kube-reserved-compressible`,
    ),
  ];
}

function checkReservations(config: KubeletConfiguration, host: ConfigHost): Problem[] {
  return [...checkReservedCPUs(config, host), ...checkReservedMemory(config)];
}

function checkReservedCPUs(config: KubeletConfiguration, host: ConfigHost): Problem[] {
  const path = "reservedSystemCPUs";
  if (config.reservedSystemCPUs === "") return [];
  const cpus = parseCPUSet(config.reservedSystemCPUs);
  if (cpus === undefined) {
    return [{ path, message: `must be a CPU list such as 0-1,4, not "${config.reservedSystemCPUs}"` }];
  }
  const online = host.onlineCPUs();
  return [
    ...when(
      config.systemReservedCgroup !== "" || config.kubeReservedCgroup !== "",
      path,
      "must not be used with systemReservedCgroup or kubeReservedCgroup",
    ),
    ...when(
      online !== undefined && [...cpus].some((cpu) => !online.has(cpu)),
      path,
      `must be CPUs that are online (${[...(online ?? [])].join(",")}), not "${config.reservedSystemCPUs}"`,
    ),
  ];
}

function checkReservedMemory({ reservedMemory }: KubeletConfiguration): Problem[] {
  const seen = new Set<string>();
  return reservedMemory.flatMap(({ numaNode, limits }, i) =>
    Object.entries(limits).flatMap(([type, amount]) => {
      const path = `reservedMemory[${i}].limits.${type}`;
      const key = `${numaNode}/${type}`;
      const isDouble = seen.has(key);
      seen.add(key);
      return [
        ...when(type !== "memory" && !type.startsWith("hugepages-"), path, "must be memory or hugepages-<size>"),
        ...when((parseQuantity(amount) ?? 0n) <= 0n, path, `must be more than 0, not "${amount}"`),
        ...when(isDouble, path, `must be given once for NUMA node ${numaNode}`),
      ];
    }),
  );
}

function checkImages(config: KubeletConfiguration): Problem[] {
  const { imageGCHighThresholdPercent: high, imageGCLowThresholdPercent: low } = config;
  const { imagePullCredentialsVerificationPolicy: policy, preloadedImagesVerificationAllowlist: allowlist } = config;
  return [
    ...when(
      low >= high,
      "imageGCLowThresholdPercent",
      `must be less than imageGCHighThresholdPercent (${high}), not ${low}`,
    ),
    ...when(
      config.imageMaximumGCAge > 0 && config.imageMaximumGCAge <= config.imageMinimumGCAge,
      "imageMaximumGCAge",
      "must be 0s or more than imageMinimumGCAge",
    ),
    ...when(
      (config.maxParallelImagePulls ?? 1) > 1 && config.serializeImagePulls,
      "maxParallelImagePulls",
      "must be 1 or unset when serializeImagePulls is true",
    ),
    ...when(
      allowlist.length > 0 && policy !== "NeverVerifyAllowlistedImages",
      "preloadedImagesVerificationAllowlist",
      "must be empty unless imagePullCredentialsVerificationPolicy is NeverVerifyAllowlistedImages",
    ),
    ...allowlist.flatMap((image, i) =>
      when(
        !/^[A-Za-z0-9][A-Za-z0-9._/-]*(?::\d+\/[A-Za-z0-9._/-]+)?(?:\/\*)?$/.test(image),
        `preloadedImagesVerificationAllowlist[${i}]`,
        `must be an image without tag and digest, or end in /*, not "${image}"`,
      ),
    ),
    ...when(config.containerRuntimeEndpoint === "", "containerRuntimeEndpoint", "must not be empty"),
  ];
}

function checkNode({ registerWithTaints, serverTLSBootstrap, featureGates }: KubeletConfiguration): Problem[] {
  const seen = new Set<string>();
  return [
    ...registerWithTaints.flatMap(({ key, value, effect }, i) => {
      const path = `registerWithTaints[${i}]`;
      const isDouble = seen.has(`${key}:${effect}`);
      seen.add(`${key}:${effect}`);
      return [
        ...when(!isLabelKey(key), `${path}.key`, `must be like name or example.com/name, not "${key}"`),
        ...when(
          !isLabelValue(value),
          `${path}.value`,
          `must be letters, digits, "-", "_", "." (63 at most), not "${value}"`,
        ),
        ...when(isDouble, path, `must not repeat ${key}:${effect}`),
      ];
    }),
    ...when(
      serverTLSBootstrap && !isGateOn(featureGates, "RotateKubeletServerCertificate"),
      "serverTLSBootstrap",
      "needs feature gate RotateKubeletServerCertificate",
    ),
  ];
}

function checkPods(config: KubeletConfiguration): Problem[] {
  const { podLogsDir } = config;
  const isCleanPath = /^\/[\x20-\x7e]*$/.test(podLogsDir) && !/\/\/|\/\.{1,2}(\/|$)|.\/$/.test(podLogsDir);
  return [
    ...when(
      !isCleanPath,
      "podLogsDir",
      `must be an absolute path of ASCII letters without ., .. or //, not "${podLogsDir}"`,
    ),
    ...when(config.userNamespaces.idsPerPod % 65536 !== 0, "userNamespaces.idsPerPod", "must be a multiple of 65536"),
    ...when(config.runOnce, "runOnce", "must be false"),
  ];
}

function checkEviction({ evictionSoft, evictionSoftGracePeriod }: KubeletConfiguration): Problem[] {
  return Object.keys(evictionSoft).flatMap((signal) =>
    when(
      !((evictionSoftGracePeriod[signal] ?? 0) > 0),
      `evictionSoftGracePeriod.${signal}`,
      `must be more than 0s, because evictionSoft has ${signal}`,
    ),
  );
}

function checkShutdown(config: KubeletConfiguration): Problem[] {
  const { shutdownGracePeriod: all, shutdownGracePeriodCriticalPods: critical, featureGates } = config;
  const byPriority = config.shutdownGracePeriodByPodPriority.length > 0;
  const isOddPeriod = (ms: number) => ms !== 0 && ms < 1000;
  return [
    ...when(isOddPeriod(all), "shutdownGracePeriod", "must be 0s, or 1s or more"),
    ...when(isOddPeriod(critical), "shutdownGracePeriodCriticalPods", "must be 0s, or 1s or more"),
    ...when(critical > all, "shutdownGracePeriodCriticalPods", "must be at most shutdownGracePeriod"),
    ...when(
      byPriority && (all > 0 || critical > 0),
      "shutdownGracePeriodByPodPriority",
      "must be empty when shutdownGracePeriod or shutdownGracePeriodCriticalPods is set",
    ),
    ...when(
      (all > 0 || critical > 0) && !isGateOn(featureGates, "GracefulNodeShutdown"),
      "shutdownGracePeriod",
      "needs feature gate GracefulNodeShutdown",
    ),
    ...when(
      byPriority && !isGateOn(featureGates, "GracefulNodeShutdownBasedOnPodPriority"),
      "shutdownGracePeriodByPodPriority",
      "needs feature gate GracefulNodeShutdownBasedOnPodPriority",
    ),
  ];
}

function checkServer({ enableSystemLogQuery, enableSystemLogHandler }: KubeletConfiguration): Problem[] {
  return when(
    enableSystemLogQuery && !enableSystemLogHandler,
    "enableSystemLogQuery",
    "must be false when enableSystemLogHandler is false",
  );
}

function checkAuthentication({ enableServer, authentication, ...config }: KubeletConfiguration): Problem[] {
  const { x509, webhook, anonymous } = authentication;
  return [
    ...when(
      (config.tlsCertFile === "") !== (config.tlsPrivateKeyFile === ""),
      config.tlsCertFile === "" ? "tlsCertFile" : "tlsPrivateKeyFile",
      "must be set, because its other half is",
    ),
    ...when(
      enableServer && x509.clientCAFile === "" && !webhook.enabled && !anonymous.enabled,
      "authentication",
      "must leave a way to use the kubelet API: set x509.clientCAFile, webhook.enabled or anonymous.enabled",
    ),
  ];
}

/** What is wrong with flags that have no field. Paths are flags. */
export function validateKubeletFlags(flags: KubeletFlags): Problem[] {
  const { imageCredentialProviderConfig, imageCredentialProviderBinDir } = flags;
  return [
    ...Object.entries(flags.nodeLabels).flatMap(([key, value]) => [
      ...when(!isLabelKey(key) || !isLabelValue(value), "--node-labels", `"${key}=${value}" is not a valid label`),
      ...when(
        !isAllowedNodeLabel(key),
        "--node-labels",
        `"${key}" may not be set by a node; see the kubernetes.io label rules`,
      ),
    ]),
    ...checkNodeIPs(flags.nodeIP),
    ...when(
      (imageCredentialProviderConfig === "") !== (imageCredentialProviderBinDir === ""),
      "--image-credential-provider-config",
      "must be used together with --image-credential-provider-bin-dir",
    ),
    ...when(
      flags.exitOnLockContention && flags.lockFile === "",
      "--exit-on-lock-contention",
      "must be used together with --lock-file",
    ),
  ];
}

function checkNodeIPs(ips: readonly string[]): Problem[] {
  const [first, second, ...more] = ips;
  if (first === undefined) return [];
  const isAddress = (text: string) => isIPv4(text) || isIPv6(text);
  const isWildcard = (text: string) => text === "0.0.0.0" || text === "::";
  const isPair =
    second === undefined || (isIPv4(first) !== isIPv4(second) && !isWildcard(first) && !isWildcard(second));
  return when(
    !ips.every(isAddress) || !isPair || more.length > 0,
    "--node-ip",
    `must be one IP address, or one IPv4 and one IPv6 address, not "${ips.join(",")}"`,
  );
}

/** The problem, if `isWrong`. */
export function when(isWrong: boolean, path: string, message: string): Problem[] {
  return isWrong ? [{ path, message }] : [];
}

function problemIf(path: string, message: string | undefined): Problem[] {
  return message === undefined ? [] : [{ path, message }];
}
