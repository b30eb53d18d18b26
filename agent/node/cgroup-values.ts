import {
  type Amounts,
  cpuSharesMax,
  cpuSharesMin,
  hugePageFileSuffix,
  hugePageResource,
  milliCPUToQuota,
  milliCPUToShares,
  podLimits,
  podRequests,
  qosClass,
} from "../kube/pod-resources.ts";
import { quantityValue } from "../kube/quantity.ts";
import type { Container, Pod } from "../kube/types.ts";

/** Limits of one cgroup. What is left out is not written. */
export interface CgroupValues {
  cpuShares?: number;
  /** µs per period; -1 = unlimited. */
  cpuQuotaUs?: number;
  cpuPeriodUs?: number;
  memoryBytes?: number;
  pids?: number;
  cpus?: string;
  hugePages?: { pageBytes: number; limitBytes: number }[];
}

/** One file of a cgroup to write, relative to the cgroup's directory in its controller's hierarchy. */
export interface CgroupFile {
  controller: Controller;
  file: string;
  content: string;
}

export const controllers = ["cpu", "cpuacct", "cpuset", "memory", "pids", "hugetlb"] as const;
export type Controller = (typeof controllers)[number];

// Larger than any machine; what the reference writes for "no limit" on huge pages of the QoS cgroups.
export const hugePagesUnlimited = 2 ** 62;

export interface PodCgroupOptions {
  cpuCFSQuota: boolean;
  cpuPeriodUs: number;
  /** -1: no limit. */
  podPidsLimit: number;
  /** Sizes of the node's huge pages, in bytes. */
  hugePageSizes: readonly number[];
}

/**
 * Limits of a pod's cgroup. A CPU or memory limit is only set if it holds for every container (or for the pod as a
 * whole): one unlimited container makes the pod unlimited.
 */
export function podCgroupValues(pod: Pod, options: PodCgroupOptions): CgroupValues {
  const requests = podRequests(pod);
  const limits = podLimits(pod);
  const qos = qosClass(pod);
  const values: CgroupValues = {
    cpuShares: qos === "BestEffort" ? cpuSharesMin : milliCPUToShares(requests.cpu ?? 0),
    hugePages: options.hugePageSizes.map((pageBytes) => ({
      pageBytes,
      limitBytes: requests[hugePageResource(pageBytes)] ?? 0,
    })),
    ...(options.podPidsLimit > 0 ? { pids: options.podPidsLimit } : {}),
  };
  if (qos === "BestEffort") return values;
  if (!options.cpuCFSQuota) {
    values.cpuQuotaUs = -1;
  } else if (qos === "Guaranteed" || isLimited(pod, "cpu")) {
    const quota = milliCPUToQuota(limits.cpu ?? 0, options.cpuPeriodUs);
    if (quota > 0) Object.assign(values, { cpuQuotaUs: quota, cpuPeriodUs: options.cpuPeriodUs });
  }
  if ((qos === "Guaranteed" || isLimited(pod, "memory")) && (limits.memory ?? 0) > 0) {
    values.memoryBytes = limits.memory ?? 0;
  }
  return values;
}

/** Shares of the Burstable cgroup: what the pods in it asked for, together. */
export function burstableShares(podMilliCPUs: Iterable<number>): number {
  let sum = 0;
  for (const milli of podMilliCPUs) sum += milli;
  return milliCPUToShares(sum);
}

export interface KubepodsOptions {
  /** Whole machine, see capacity.ts. */
  capacity: Amounts;
  /** systemReserved + kubeReserved, as far as they are kept from pods (enforceNodeAllocatable has "pods"); else empty. */
  enforcedReserved: Amounts;
  /** Most process IDs that the kernel hands out. */
  pidsMax: number;
}

/** Limits of the cgroup that holds all pods. */
export function kubepodsValues({ capacity, enforcedReserved, pidsMax }: KubepodsOptions): CgroupValues {
  const left = (name: string, whole: number) => Math.max(0, whole - (enforcedReserved[name] ?? 0));
  return {
    cpuShares: milliCPUToShares(left("cpu", capacity.cpu ?? 0)),
    memoryBytes: left("memory", capacity.memory ?? 0),
    pids: left("pid", pidsMax),
    hugePages: Object.entries(capacity).flatMap(([name, bytes]) =>
      name.startsWith("hugepages-")
        ? [{ pageBytes: quantityValue(name.slice("hugepages-".length)), limitBytes: left(name, bytes) }]
        : [],
    ),
  };
}

/** Files for cgroup v1. The period comes before the quota: the kernel checks one against the other. */
export function filesV1(values: CgroupValues): CgroupFile[] {
  const files: CgroupFile[] = [];
  const add = (controller: Controller, file: string, value: number | string | undefined) => {
    if (value !== undefined) files.push({ controller, file, content: String(value) });
  };
  add("cpu", "cpu.shares", values.cpuShares);
  add("cpu", "cpu.cfs_period_us", values.cpuPeriodUs);
  add("cpu", "cpu.cfs_quota_us", values.cpuQuotaUs);
  add("memory", "memory.limit_in_bytes", values.memoryBytes);
  add("pids", "pids.max", values.pids);
  add("cpuset", "cpuset.cpus", values.cpus);
  for (const { pageBytes, limitBytes } of values.hugePages ?? []) {
    add("hugetlb", `hugetlb.${hugePageFileSuffix(pageBytes)}.limit_in_bytes`, decimal(limitBytes));
  }
  return files;
}

/** Files for cgroup v2. */
export function filesV2(values: CgroupValues): CgroupFile[] {
  const files: CgroupFile[] = [];
  const add = (controller: Controller, file: string, value: number | string | undefined) => {
    if (value !== undefined) files.push({ controller, file, content: String(value) });
  };
  if (values.cpuShares !== undefined) add("cpu", "cpu.weight", sharesToWeight(values.cpuShares));
  if (values.cpuQuotaUs !== undefined) {
    const quota = values.cpuQuotaUs > 0 ? values.cpuQuotaUs : "max";
    add("cpu", "cpu.max", values.cpuPeriodUs === undefined ? quota : `${quota} ${values.cpuPeriodUs}`);
  }
  add("memory", "memory.max", values.memoryBytes);
  add("pids", "pids.max", values.pids);
  add("cpuset", "cpuset.cpus", values.cpus);
  for (const { pageBytes, limitBytes } of values.hugePages ?? []) {
    const suffix = hugePageFileSuffix(pageBytes);
    add("hugetlb", `hugetlb.${suffix}.max`, decimal(limitBytes));
    add("hugetlb", `hugetlb.${suffix}.rsvd.max`, decimal(limitBytes));
  }
  return files;
}

/** cgroup v2 `cpu.weight` for v1 shares, by the linear rule that Kubernetes uses for the cgroups it owns. */
export function sharesToWeight(shares: number): number {
  if (shares >= cpuSharesMax) return 10_000;
  return 1 + Math.floor(((Math.max(shares, cpuSharesMin) - cpuSharesMin) * 9_999) / (cpuSharesMax - cpuSharesMin));
}

function isLimited(pod: Pod, name: "cpu" | "memory"): boolean {
  if (quantityValue(pod.spec.resources?.limits?.[name]) > 0) return true;
  const hasLimit = (container: Container) => quantityValue(container.resources?.limits?.[name]) > 0;
  return [...(pod.spec.initContainers ?? []), ...pod.spec.containers].every(hasLimit);
}

/** All digits: large numbers must not become "4.6e+18". */
function decimal(value: number): string {
  return BigInt(value).toString();
}
