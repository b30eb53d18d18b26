import type Docker from "dockerode";
import { AgentError } from "../../lib/errors.ts";
import type { LinuxResources } from "../port.ts";
import type { ContextOfDaemon } from "./create-body.ts";

/** What Docker is told of resources, at creation and in an update alike. */
export type DockerResources = Pick<
  Docker.HostConfig,
  "CpuShares" | "CpuPeriod" | "CpuQuota" | "CpusetCpus" | "CpusetMems" | "Memory" | "MemorySwap"
>;

/** One file of a container's cgroup that Docker has no word for; the agent writes it once the container runs. */
export interface CgroupWrite {
  controller: "memory" | "hugetlb";
  file: string;
  content: string;
  /** A kernel without this file has nothing to limit. */
  isOptional: boolean;
}

/** The smallest memory limit that the Docker daemon takes: its own constant, the same from 20.10 to 28. */
export const memoryBytesMin = 6 * 1024 * 1024;

const memorySwapMax = "memory.swap.max";

/**
 * Resources in Docker's words. What is absent is not said and keeps its value in an update. Throws Invalid for a memory limit
 * that the daemon would not take. Pure.
 */
export function dockerResources(what: string, resources: LinuxResources): DockerResources {
  const { cpuShares, cpuPeriod, cpuQuota, cpusetCpus, cpusetMems } = resources;
  return {
    ...(cpuShares === undefined ? {} : { CpuShares: cpuShares }),
    ...(cpuPeriod === undefined ? {} : { CpuPeriod: cpuPeriod }),
    ...(cpuQuota === undefined ? {} : { CpuQuota: cpuQuota }),
    ...(cpusetCpus === undefined ? {} : { CpusetCpus: cpusetCpus }),
    ...(cpusetMems === undefined ? {} : { CpusetMems: cpusetMems }),
    ...memory(what, resources),
  };
}

function memory(what: string, resources: LinuxResources): DockerResources {
  const { memoryLimitBytes = 0, memorySwapLimitBytes, unified = {} } = resources;
  if (memoryLimitBytes <= 0) return {};
  if (memoryLimitBytes < memoryBytesMin) {
    throw new AgentError("Invalid", `${what}: ${tooLittleMemory(memoryLimitBytes)}`);
  }
  // Docker counts memory and swap together, as cgroup v1 does. Left out, it would give as much swap as memory.
  const swap = unified[memorySwapMax];
  const swapBytes = swap === undefined || swap === "max" ? undefined : memoryLimitBytes + Number(swap);
  return { Memory: memoryLimitBytes, MemorySwap: memorySwapLimitBytes ?? swapBytes ?? -1 };
}

/** Why a memory limit below Docker's smallest one is refused, for people. */
export function tooLittleMemory(bytes: number): string {
  return `a memory limit of ${bytes} bytes is below ${memoryBytesMin} (6Mi), the smallest that Docker sets`;
}

/** `oom_score_adj` of a container: what was asked for, or as low as the daemon may go. Pure. */
export function oomScoreAdj(wanted: number, { oomScoreAdjMin }: Pick<ContextOfDaemon, "oomScoreAdjMin">): number {
  return Math.max(wanted, oomScoreAdjMin);
}

/**
 * What is left to write into the container's cgroup: huge page limits, and single files of cgroup v2. Throws Invalid for the
 * latter on cgroup v1. Pure.
 */
export function cgroupWrites(what: string, resources: LinuxResources, version: 1 | 2): CgroupWrite[] {
  const unified = Object.entries(resources.unified ?? {});
  const [first] = unified;
  if (version === 1 && first !== undefined) {
    throw new AgentError("Invalid", `${what}: ${first[0]} is a file of cgroup v2, and this node has cgroup v1`);
  }
  const files = unified.map(([file, content]): CgroupWrite => {
    if (!/^(memory|hugetlb)\.[a-zA-Z0-9_.]+$/.test(file)) {
      throw new AgentError("Invalid", `${what}: cgroup file "${file}" cannot be set with Docker`);
    }
    return { controller: file.startsWith("hugetlb.") ? "hugetlb" : "memory", file, content, isOptional: false };
  });
  const suffix = version === 1 ? "limit_in_bytes" : "max";
  const hugePages = (resources.hugepageLimits ?? []).flatMap(({ pageSize, limit }) =>
    // Pages that are only reserved count in a file of their own, where the kernel has it.
    [`hugetlb.${pageSize}.${suffix}`, `hugetlb.${pageSize}.rsvd.${suffix}`].map(
      (file): CgroupWrite => ({ controller: "hugetlb", file, content: String(limit), isOptional: true }),
    ),
  );
  return [...files, ...hugePages];
}
