import type { KubeletSettings } from "../config/load-kubelet.ts";
import { isGateOn } from "../config/feature-gates.ts";
import { type Amounts, amountsOf, cpuPeriodUsDefault, type ResourceContext } from "../kube/pod-resources.ts";
import { nodeCapacity } from "../node/capacity.ts";
import type { CgroupDriver } from "../node/cgroup-names.ts";
import type { CgroupOptions } from "../node/cgroups.ts";
import type { NodeFacts } from "../node/facts.ts";
import type { ImageGarbagePolicy } from "../node/image-garbage.ts";
import type { NodeSettings } from "../node/registration.ts";
import { crashBackoffDefaults, type CrashBackoffLimits, crashBackoffReduced } from "../pods/crash-backoff.ts";
import type { PodSettings } from "../pods/port.ts";
import { readResolvConf } from "../pods/resolv-conf.ts";
import type { VerificationPolicy } from "../runtime/images-records.ts";
import { kubeletVersion } from "../version.ts";

/** The configuration in the words of the parts that it is for. Pure. */

/** Where links to containers' logs are, whatever the root directory is: log collectors look there. */
export const containerLogsDir = "/var/log/containers";

/** The node's name: what it is told to be called or the machine's name, in lower case. */
export function nodeNameOf(hostnameOverride: string, hostname: string): string {
  return (hostnameOverride === "" ? hostname : hostnameOverride).trim().toLowerCase();
}

/** What the Node object says. */
export function nodeSettings({ flags, config }: KubeletSettings, nodeName: string): NodeSettings {
  return {
    nodeName,
    hostname: nodeName,
    nodeLabels: flags.nodeLabels,
    registerNode: config.registerNode,
    registerWithTaints: config.registerWithTaints,
    cloudProvider: flags.cloudProvider,
    providerID: config.providerID,
    enableControllerAttachDetach: config.enableControllerAttachDetach,
    nodeIPs: flags.nodeIP,
    maxPods: config.maxPods,
    podsPerCore: config.podsPerCore,
    localStorageCapacityIsolation: config.localStorageCapacityIsolation,
    reservations: {
      reserved: reservedAmounts(config),
      evictionHard: config.evictionHard,
      ignoreEviction: flags.experimentalAllocatableIgnoreEviction,
    },
    kubeletVersion,
    kubeletPort: config.port,
    statusUpdateMs: config.nodeStatusUpdateFrequency,
    statusReportMs: config.nodeStatusReportFrequency,
    imagesMax: config.nodeStatusMaxImages,
    declaredFeatures: declaredFeatures(config) ?? [],
    resetExtendedResources: true,
  };
}

/** Which cgroups pods live in. */
export function cgroupOptions(
  { config }: KubeletSettings,
  settings: NodeSettings,
  facts: NodeFacts,
  driver: CgroupDriver | undefined,
): CgroupOptions {
  const isEnforced = config.enforceNodeAllocatable.includes("pods");
  return {
    driver: driver ?? config.cgroupDriver,
    cgroupRoot: config.cgroupRoot,
    cgroupsPerQOS: config.cgroupsPerQOS,
    capacity: nodeCapacity(facts, settings),
    enforcedReserved: isEnforced ? settings.reservations.reserved : {},
    pidsMax: facts.pidsMax,
    cpuCFSQuota: config.cpuCFSQuota && facts.cpuCFSQuotaSupported,
    cpuPeriodUs: config.cpuCFSQuotaPeriod * 1_000,
    podPidsLimit: config.podPidsLimit,
    hugePageSizes: facts.hugePages.map(({ pageBytes }) => pageBytes),
  };
}

// Features whose presence the control plane asks nodes about, and that are all there is of them here.
const declarable = [
  "ExtendWebSocketsToKubelet",
  "InPlacePodLevelResourcesVerticalScaling",
  "InPlacePodVerticalScalingInitContainers",
  "RestartAllContainersOnContainerExits",
];

/** What the node says that it can do, and takes pods by; undefined: by configuration, it says nothing. */
export function declaredFeatures({ featureGates }: KubeletSettings["config"]): string[] | undefined {
  if (!isGateOn(featureGates, "NodeDeclaredFeatures")) return undefined;
  return declarable.filter((gate) => isGateOn(featureGates, gate));
}

/** What pod workers go by. `selinuxEnabled` and `resources` are the machine's. */
export function podSettings(
  { flags, config }: KubeletSettings,
  { selinuxEnabled, resources }: { selinuxEnabled: boolean; resources: ResourceContext },
): PodSettings {
  const isOn = (gate: string) => isGateOn(config.featureGates, gate);
  return {
    rootDir: flags.rootDir,
    podLogsDir: config.podLogsDir,
    containerLogsDir,
    clusterDNS: config.clusterDNS,
    clusterDomain: config.clusterDomain,
    readResolvConf: () => readResolvConf(config.resolvConf),
    seccompDefault: config.seccompDefault,
    resources,
    staticPolicies: {
      hasStaticCPUs: config.cpuManagerPolicy === "static",
      hasStaticMemory: config.memoryManagerPolicy === "Static",
    },
    crashBackoff: crashBackoff(config),
    deadContainers: {
      perContainer: flags.maximumDeadContainersPerContainer,
      total: flags.maximumDeadContainers,
      ageMsMin: flags.minimumContainerTTLDuration,
    },
    selinuxEnabled,
    userNamespaceIDs: config.userNamespaces.idsPerPod,
    envFiles: isOn("EnvFiles"),
    stopSignals: isOn("ContainerStopSignals"),
    readyToStartCondition: isOn("PodReadyToStartContainersCondition"),
    imageVolumeWithDigest: isOn("ImageVolumeWithDigest"),
  };
}

function crashBackoff({ featureGates, crashLoopBackOff }: KubeletSettings["config"]): CrashBackoffLimits {
  const isReduced = isGateOn(featureGates, "ReduceDefaultCrashLoopBackOffDecay");
  const defaults = isReduced ? crashBackoffReduced : crashBackoffDefaults;
  // The configured value has a default of its own, which counts even where the other gate wants less.
  const hasOwnMax = isGateOn(featureGates, "KubeletCrashLoopBackOffMax");
  return { ...defaults, ...(hasOwnMax ? { maxMs: crashLoopBackOff.maxContainerRestartPeriod } : {}) };
}

/** What decides about containers' resources. */
export function resourceContext(
  { config }: KubeletSettings,
  facts: NodeFacts,
  machine: { cgroupVersion: 1 | 2; swapControllerAvailable: boolean },
): ResourceContext {
  return {
    ...machine,
    memoryCapacityBytes: facts.memoryBytes,
    cpuCFSQuota: config.cpuCFSQuota && facts.cpuCFSQuotaSupported,
    cpuPeriodUs: config.cpuCFSQuota ? config.cpuCFSQuotaPeriod * 1_000 : cpuPeriodUsDefault,
    hugePageSizes: facts.hugePages.map(({ pageBytes }) => pageBytes),
    // The kernel kills single processes on cgroup v1, whatever anybody wants.
    singleProcessOOMKill: config.singleProcessOOMKill ?? machine.cgroupVersion === 1,
    swapBehavior: config.memorySwap.swapBehavior === "LimitedSwap" ? "LimitedSwap" : "NoSwap",
    swapCapacityBytes: facts.swapBytes,
  };
}

/** Which images that nobody uses may go. */
export function imageGarbagePolicy({ config }: Pick<KubeletSettings, "config">): ImageGarbagePolicy {
  return {
    minAgeMs: config.imageMinimumGCAge,
    maxAgeMs: config.imageMaximumGCAge,
    highPercent: config.imageGCHighThresholdPercent,
    lowPercent: config.imageGCLowThresholdPercent,
  };
}

/** Who may use an image that is already there; undefined: anybody. */
export function pullVerification({ config }: KubeletSettings): VerificationPolicy | undefined {
  const { imagePullCredentialsVerificationPolicy: kind, preloadedImagesVerificationAllowlist: allowlist } = config;
  if (!isGateOn(config.featureGates, "KubeletEnsureSecretPulledImages")) return undefined;
  return kind === "NeverVerifyAllowlistedImages" ? { kind, allowlist } : { kind };
}

function reservedAmounts(config: KubeletSettings["config"]): Amounts {
  const sum = amountsOf(config.systemReserved);
  for (const [name, amount] of Object.entries(amountsOf(config.kubeReserved))) sum[name] = (sum[name] ?? 0) + amount;
  return sum;
}
