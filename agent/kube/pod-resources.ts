import type { LinuxResources } from "../runtime/port.ts";
import { quantityMilli, quantityValue } from "./quantity.ts";
import type { Container, Pod, QOSClass, ResourceList, Volume } from "./types.ts";

/**
 * What a pod asks for and what that means to the kernel: QoS class, effective requests and limits, CPU shares and
 * quota, OOM score, CRI resources. Everything here is pure.
 */

/** Amounts by resource name: `cpu` in milli-CPU, everything else in whole units (bytes, pieces). */
export type Amounts = Record<string, number>;

// The kernel's limits of cpu.shares; 2 is also what a container without a CPU request gets.
export const cpuSharesMin = 2;
export const cpuSharesMax = 262_144;
// The kernel refuses a CFS quota below 1 ms.
const cpuQuotaUsMin = 1_000;
/** Period of the CFS quota when the configuration says nothing: 100 ms, the kernel's and Kubernetes' default. */
export const cpuPeriodUsDefault = 100_000;

// OOM scores of Kubernetes: -997 keeps a Guaranteed container behind the agent (-999), 1000 dies first.
const oomScoreGuaranteed = -997;
const oomScoreBestEffort = 1_000;
// Burstable lies strictly between the two: above any Guaranteed container's badness, below BestEffort's.
const oomScoreBurstableMin = 1_000 + oomScoreGuaranteed;
const oomScoreBurstableMax = oomScoreBestEffort - 1;

// scheduling.k8s.io: priorities from here on belong to system-cluster-critical and system-node-critical.
const systemCriticalPriority = 2_000_000_000;

/** Where a pod came from: `api`, `file` or `http`. */
export const configSourceAnnotation = "kubernetes.io/config.source";
/** On a static pod: what its mirror pod is told apart by. */
export const configHashAnnotation = "kubernetes.io/config.hash";
/** When the node first saw the pod. */
export const configSeenAnnotation = "kubernetes.io/config.seen";
/** On a mirror pod: the hash of its static pod. */
export const configMirrorAnnotation = "kubernetes.io/config.mirror";

/** A pod's UID. Objects from the API server always have one; the empty string keeps malformed ones harmless. */
export function uidOf(pod: Pod): string {
  return pod.metadata.uid ?? "";
}

/** A pod's namespace; the API's default for a pod that names none. */
export function namespaceOf(pod: Pod): string {
  return pod.metadata.namespace ?? "default";
}

/** Volumes that some container mounts or has as a device; no other is set up, even if it could not be. */
export function usedVolumes(pod: Pod): Volume[] {
  const names = new Set(allContainers(pod).flatMap(volumeNamesOf));
  return (pod.spec.volumes ?? []).filter(({ name }) => names.has(name));
}

/** Names of the volumes that a container mounts or has as a device. */
export function volumeNamesOf({ volumeMounts = [], volumeDevices = [] }: Container): string[] {
  return [...volumeMounts, ...volumeDevices].map(({ name }) => name);
}

/** Name of the claim behind a volume: the one it names, or the one that is made for the pod. Undefined: it is no claim. */
export function claimNameOf(pod: Pod, { name, persistentVolumeClaim, ephemeral }: Volume): string | undefined {
  if (typeof persistentVolumeClaim?.claimName === "string") return persistentVolumeClaim.claimName;
  return ephemeral === undefined || ephemeral === null ? undefined : `${pod.metadata.name}-${name}`;
}

/** True for an init container that keeps running beside the main ones (restartPolicy Always). */
export function isSidecar(container: Container): boolean {
  return container.restartPolicy === "Always";
}

/** Init, regular and ephemeral containers, in this order. */
export function allContainers(pod: Pod): Container[] {
  return [...(pod.spec.initContainers ?? []), ...pod.spec.containers, ...(pod.spec.ephemeralContainers ?? [])];
}

/** True for a pod that came from a file or URL on this node and not from the API server. */
export function isStaticPod(pod: Pod): boolean {
  const source = pod.metadata.annotations?.[configSourceAnnotation];
  return source !== undefined && source !== "api";
}

/** True for the API object that stands for a static pod. */
export function isMirrorPod(pod: Pod): boolean {
  return pod.metadata.annotations?.[configMirrorAnnotation] !== undefined;
}

/** True for pods that are admitted and kept at the cost of others: static, mirror, or of a system priority. */
export function isCriticalPod(pod: Pod): boolean {
  return isStaticPod(pod) || isMirrorPod(pod) || (pod.spec.priority ?? 0) >= systemCriticalPriority;
}

/** True for a critical pod of class system-node-critical. */
export function isNodeCriticalPod(pod: Pod): boolean {
  return isCriticalPod(pod) && pod.spec.priorityClassName === "system-node-critical";
}

/** The QoS class: what the API server wrote, else as it would compute it. It never changes during a pod's life. */
export function qosClass(pod: Pod): QOSClass {
  return pod.status?.qosClass ?? computeQOSClass(pod);
}

/** The QoS class as the spec alone says. Only cpu and memory count; ephemeral containers do not. */
export function computeQOSClass(pod: Pod): QOSClass {
  const sources = hasPodLevelResources(pod)
    ? [pod.spec.resources ?? {}]
    : [...(pod.spec.initContainers ?? []), ...pod.spec.containers].map((container) => container.resources ?? {});
  const requests: Amounts = {};
  const limits: Amounts = {};
  let everyoneIsLimited = true;
  for (const source of sources) {
    addAmounts(requests, computeAmounts(source.requests));
    const own = computeAmounts(source.limits);
    addAmounts(limits, own);
    if (own.cpu === undefined || own.memory === undefined) everyoneIsLimited = false;
  }
  if (Object.keys(requests).length === 0 && Object.keys(limits).length === 0) return "BestEffort";
  const isEqual = ["cpu", "memory"].every((name) => requests[name] === limits[name]);
  return everyoneIsLimited && isEqual ? "Guaranteed" : "Burstable";
}

/** True if the pod states resources of its own for at least one resource that may be stated at pod level. */
export function hasPodLevelResources(pod: Pod): boolean {
  const { requests = {}, limits = {} } = pod.spec.resources ?? {};
  return [...Object.keys(requests), ...Object.keys(limits)].some(isPodLevelResource);
}

export interface PodAmountsOptions {
  /** Leave `spec.overhead` out. */
  excludeOverhead?: boolean;
  /** Ignore `spec.resources`: only what the containers add up to. */
  containersOnly?: boolean;
}

/**
 * What the pod needs at its worst moment: the larger of the running containers with all sidecars, and any init
 * container with the sidecars started before it. Pod-level values replace that; overhead comes on top.
 */
export function podRequests(pod: Pod, options: PodAmountsOptions = {}): Amounts {
  const amounts = aggregate(pod, (container) => container.resources?.requests);
  if (options.containersOnly !== true) replacePodLevel(amounts, pod.spec.resources?.requests);
  if (options.excludeOverhead !== true) addAmounts(amounts, amountsOf(pod.spec.overhead));
  return amounts;
}

/** The same for limits. Overhead only raises a limit that is there: it must not turn "unlimited" into a limit. */
export function podLimits(pod: Pod, options: PodAmountsOptions = {}): Amounts {
  const amounts = aggregate(pod, (container) => container.resources?.limits);
  if (options.containersOnly !== true) replacePodLevel(amounts, pod.spec.resources?.limits);
  if (options.excludeOverhead !== true) {
    for (const [name, amount] of Object.entries(amountsOf(pod.spec.overhead))) {
      const limit = amounts[name];
      if (limit !== undefined) amounts[name] = limit + amount;
    }
  }
  return amounts;
}

/** A resource list as numbers. */
export function amountsOf(list: ResourceList | undefined): Amounts {
  const amounts: Amounts = {};
  for (const [name, quantity] of Object.entries(list ?? {})) {
    amounts[name] = name === "cpu" ? quantityMilli(quantity) : quantityValue(quantity);
  }
  return amounts;
}

/** cgroup v1 `cpu.shares` of so many milli-CPU. */
export function milliCPUToShares(milli: number): number {
  if (milli <= 0) return cpuSharesMin;
  return Math.min(cpuSharesMax, Math.max(cpuSharesMin, Math.floor((milli * 1024) / 1000)));
}

/** CFS quota in µs of so many milli-CPU; 0 (no quota) for 0. */
export function milliCPUToQuota(milli: number, periodUs = cpuPeriodUsDefault): number {
  if (milli <= 0) return 0;
  return Math.max(cpuQuotaUsMin, Math.floor((milli * periodUs) / 1000));
}

/**
 * The kernel's oom_score_adj of one container: the less of the machine a Burstable container asked for, the sooner it
 * is killed.
 */
export function oomScoreAdj(pod: Pod, container: Container, memoryCapacityBytes: number): number {
  if (isNodeCriticalPod(pod)) return oomScoreGuaranteed;
  const qos = qosClass(pod);
  if (qos === "Guaranteed") return oomScoreGuaranteed;
  if (qos === "BestEffort") return oomScoreBestEffort;
  const extra = podLevelMemoryShare(pod);
  const scoreOf = (c: Container) => 1_000 - Math.floor((1_000 * (memoryRequest(c) + extra)) / memoryCapacityBytes);
  let score = scoreOf(container);
  if (isSidecar(container) && (pod.spec.initContainers ?? []).some((c) => c.name === container.name)) {
    // A sidecar serves the main containers: it must not die before the one of them that asked for the least.
    score = Math.min(score, Math.max(...pod.spec.containers.map(scoreOf)));
  }
  return Math.min(oomScoreBurstableMax, Math.max(oomScoreBurstableMin, score));
}

/** What of the node and the configuration decides about containers' resources. */
export interface ResourceContext {
  cgroupVersion: 1 | 2;
  memoryCapacityBytes: number;
  /** cpuCFSQuota of the configuration. */
  cpuCFSQuota: boolean;
  cpuPeriodUs: number;
  /** Sizes of the node's huge pages, in bytes. */
  hugePageSizes: readonly number[];
  singleProcessOOMKill: boolean;
  /** True if the kernel accounts swap per cgroup. */
  swapControllerAvailable: boolean;
  swapBehavior: "NoSwap" | "LimitedSwap";
  swapCapacityBytes: number;
}

/** CRI resources of one container. Fields that are not set leave the runtime's default alone. */
export function linuxResources(pod: Pod, container: Container, context: ResourceContext): LinuxResources {
  const requests = amountsOf(container.resources?.requests);
  const limits = amountsOf(container.resources?.limits);
  const podLevel = amountsOf(pod.spec.resources?.limits);
  const limit = (name: string) => limits[name] || podLevel[name] || 0;
  const resources = calculateResources(requests.cpu, limit("cpu"), limit("memory"), context);
  resources.oomScoreAdj = oomScoreAdj(pod, container, context.memoryCapacityBytes);
  resources.hugepageLimits = context.hugePageSizes.map((bytes) => ({
    pageSize: hugePageFileSuffix(bytes),
    limit: limits[hugePageResource(bytes)] ?? podLevel[hugePageResource(bytes)] ?? 0,
  }));
  if (context.swapControllerAvailable) applySwap(resources, pod, requests.memory ?? 0, limit("memory"), context);
  return resources;
}

/**
 * Resources of the sandbox, for runtimes that size a virtual machine by them: the pod's sum without overhead, and the
 * overhead apart (undefined when there is none).
 */
export function podSandboxResources(
  pod: Pod,
  context: ResourceContext,
): { resources: LinuxResources; overhead: LinuxResources | undefined } {
  const requests = podRequests(pod, { excludeOverhead: true });
  const limits = podLimits(pod, { excludeOverhead: true });
  const overhead = amountsOf(pod.spec.overhead);
  return {
    resources: calculateResources(requests.cpu, limits.cpu ?? 0, limits.memory ?? 0, context),
    overhead:
      pod.spec.overhead === undefined
        ? undefined
        : calculateResources(overhead.cpu ?? 0, overhead.cpu ?? 0, overhead.memory ?? 0, context),
  };
}

/** `hugepages-2Mi`: the resource name of a page size. */
export function hugePageResource(bytes: number): string {
  return `hugepages-${withUnit(bytes, ["", "Ki", "Mi", "Gi"])}`;
}

/** `2MB`, `1GB`, `64KB`: how the kernel's hugetlb files and CRI name a page size. */
export function hugePageFileSuffix(bytes: number): string {
  return withUnit(bytes, ["B", "KB", "MB", "GB"]);
}

function withUnit(bytes: number, units: readonly string[]): string {
  let index = 0;
  let size = bytes;
  while (size % 1024 === 0 && size > 0 && index < units.length - 1) {
    size /= 1024;
    index += 1;
  }
  return `${size}${units[index]}`;
}

function calculateResources(
  cpuRequest: number | undefined,
  cpuLimit: number,
  memoryLimit: number,
  context: ResourceContext,
): LinuxResources {
  return {
    cpuShares: milliCPUToShares(cpuRequest ?? cpuLimit),
    ...(context.cpuCFSQuota
      ? { cpuPeriod: context.cpuPeriodUs, cpuQuota: milliCPUToQuota(cpuLimit, context.cpuPeriodUs) }
      : {}),
    ...(memoryLimit > 0 ? { memoryLimitBytes: memoryLimit } : {}),
    // Without it the kernel kills one process and leaves the container half alive.
    ...(context.cgroupVersion === 2 && !context.singleProcessOOMKill ? { unified: { "memory.oom.group": "1" } } : {}),
  };
}

function applySwap(
  resources: LinuxResources,
  pod: Pod,
  memoryRequestBytes: number,
  memoryLimitBytes: number,
  context: ResourceContext,
): void {
  if (context.cgroupVersion === 1) {
    // memsw counts memory and swap together: equal to the memory limit means no swap.
    if (memoryLimitBytes > 0) resources.memorySwapLimitBytes = memoryLimitBytes;
    return;
  }
  const maySwap =
    context.swapBehavior === "LimitedSwap" &&
    qosClass(pod) === "Burstable" &&
    !isCriticalPod(pod) &&
    memoryRequestBytes > 0 &&
    memoryRequestBytes !== memoryLimitBytes;
  const swapBytes = maySwap
    ? Math.floor((memoryRequestBytes / context.memoryCapacityBytes) * context.swapCapacityBytes)
    : 0;
  resources.unified = { ...resources.unified, "memory.swap.max": String(swapBytes) };
}

function memoryRequest(container: Container): number {
  return quantityValue(container.resources?.requests?.memory);
}

/** What a pod-level memory request leaves over the containers' own, split evenly among those that run side by side. */
function podLevelMemoryShare(pod: Pod): number {
  const podLevel = pod.spec.resources?.requests?.memory;
  if (podLevel === undefined) return 0;
  const count = pod.spec.containers.length + (pod.spec.initContainers ?? []).filter(isSidecar).length;
  const rest =
    quantityValue(podLevel) - (podRequests(pod, { containersOnly: true, excludeOverhead: true }).memory ?? 0);
  return rest > 0 ? Math.floor(rest / count) : 0;
}

function aggregate(pod: Pod, listOf: (container: Container) => ResourceList | undefined): Amounts {
  const running: Amounts = {};
  for (const container of pod.spec.containers) addAmounts(running, amountsOf(listOf(container)));
  const sidecars: Amounts = {};
  const peak: Amounts = {};
  for (const container of pod.spec.initContainers ?? []) {
    const own = amountsOf(listOf(container));
    if (isSidecar(container)) {
      addAmounts(running, own);
      addAmounts(sidecars, own);
      maxAmounts(peak, sidecars);
    } else {
      addAmounts(own, sidecars);
      maxAmounts(peak, own);
    }
  }
  maxAmounts(running, peak);
  return running;
}

function replacePodLevel(amounts: Amounts, list: ResourceList | undefined): void {
  for (const [name, amount] of Object.entries(amountsOf(list))) {
    if (isPodLevelResource(name)) amounts[name] = amount;
  }
}

function isPodLevelResource(name: string): boolean {
  return name === "cpu" || name === "memory" || name.startsWith("hugepages-");
}

/** cpu and memory as far as they are above 0. */
function computeAmounts(list: ResourceList | undefined): Amounts {
  const amounts = amountsOf(list);
  return Object.fromEntries(["cpu", "memory"].flatMap((name) => (amounts[name] ? [[name, amounts[name]]] : [])));
}

function addAmounts(to: Amounts, more: Amounts): void {
  for (const [name, amount] of Object.entries(more)) to[name] = (to[name] ?? 0) + amount;
}

function maxAmounts(to: Amounts, other: Amounts): void {
  for (const [name, amount] of Object.entries(other)) to[name] = Math.max(to[name] ?? 0, amount);
}
