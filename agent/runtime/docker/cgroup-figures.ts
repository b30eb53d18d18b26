import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { ContainerStats } from "../port.ts";
import { cgroupDirectory } from "./host-limits.ts";

/** Directories of one container's cgroup. On v2 both are the same. */
export interface ContainerCgroup {
  version: 1 | 2;
  cpu: string;
  memory: string;
}

/**
 * Finds a container's cgroup by what /proc/PID/cgroup says of its process.
 *
 * @param mountinfo the agent's /proc/self/mountinfo
 * @param own       the process's /proc/PID/cgroup
 * @param id the container's: a process that has taken the number meanwhile is not in a cgroup of that name
 * @returns undefined if it is another's, or its cgroup is not to be seen from here
 */
export function findContainerCgroup(
  mountinfo: string,
  own: string,
  id: string,
  version: 1 | 2,
): ContainerCgroup | undefined {
  const lines = own.split("\n").flatMap((line) => {
    const at = line.indexOf(id);
    if (at < 0) return [];
    // A container may make cgroups of its own beneath the one that Docker made.
    const end = line.indexOf("/", at);
    return [end < 0 ? line : line.slice(0, end)];
  });
  const directoryOf = (controller: string) => cgroupDirectory(mountinfo, lines.join("\n"), controller, version);
  const [cpu, memory] = [directoryOf("cpuacct"), directoryOf("memory")];
  return cpu === undefined || memory === undefined ? undefined : { version, cpu, memory };
}

/** Memory, swap and CPU time of a cgroup; parts that cannot be read are left out. */
export async function readContainerCgroup(
  cgroup: ContainerCgroup,
  now: () => number,
): Promise<Pick<ContainerStats, "cpu" | "memory" | "swap">> {
  const { version, cpu, memory } = cgroup;
  const [usage, stat, time, swap, swapMax] = await Promise.all([
    readText(join(memory, version === 2 ? "memory.current" : "memory.usage_in_bytes")),
    readText(join(memory, "memory.stat")),
    readText(join(cpu, version === 2 ? "cpu.stat" : "cpuacct.usage")),
    version === 2 ? readText(join(memory, "memory.swap.current")) : "",
    version === 2 ? readText(join(memory, "memory.swap.max")) : "",
  ]);
  const timestampMs = now();
  const usageBytes = wholeNumber(usage);
  const cpuNs = version === 2 ? scaled(fieldOf(time, "usage_usec"), 1_000) : wholeNumber(time);
  const inactiveBytes = fieldOf(stat, version === 2 ? "inactive_file" : "total_inactive_file");
  const rssBytes = fieldOf(stat, version === 2 ? "anon" : "total_rss");
  const swapBytes = version === 2 ? wholeNumber(swap) : fieldOf(stat, "total_swap");
  // "max", and v1, which limits it together with memory: as much as the machine has.
  const swapMaxBytes = wholeNumber(swapMax);
  return {
    ...(cpuNs === undefined ? {} : { cpu: { timestampMs, usageCoreNanoSeconds: cpuNs } }),
    ...(usageBytes === undefined
      ? {}
      : {
          memory: {
            timestampMs,
            usageBytes,
            // As everybody counts it: all but the pages that the kernel would give up first.
            workingSetBytes: Math.max(0, usageBytes - (inactiveBytes ?? 0)),
            ...(rssBytes === undefined ? {} : { rssBytes }),
          },
        }),
    ...(swapBytes === undefined
      ? {}
      : {
          swap: {
            timestampMs,
            usageBytes: swapBytes,
            ...(swapMaxBytes === undefined ? {} : { availableBytes: Math.max(0, swapMaxBytes - swapBytes) }),
          },
        }),
  };
}

async function readText(path: string): Promise<string> {
  return await readFile(path, "utf8").catch(() => "");
}

function wholeNumber(text: string): number | undefined {
  return /^\d+\s*$/.test(text) ? Number(text) : undefined;
}

/** Of a file with a name and a number in each line. */
function fieldOf(text: string, name: string): number | undefined {
  const [, digits] = new RegExp(`^${name} (\\d+)$`, "m").exec(text) ?? [];
  return digits === undefined ? undefined : Number(digits);
}

function scaled(value: number | undefined, factor: number): number | undefined {
  return value === undefined ? undefined : value * factor;
}
