import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { ContainerStats } from "../port.ts";

const cgroupRoot = "/sys/fs/cgroup";

/** Directories of one container's cgroup. On v2 both are the same. */
export interface ContainerCgroup {
  version: 1 | 2;
  cpu: string;
  memory: string;
}

/**
 * Finds a container's cgroup by what /proc/PID/cgroup says of its process.
 *
 * @param id the container's: a process that has taken the number meanwhile is not in a cgroup of that name
 * @returns undefined if it is another's
 */
export function parseContainerCgroup(text: string, id: string, version: 1 | 2): ContainerCgroup | undefined {
  const paths = new Map<string, string>();
  for (const line of text.split("\n")) {
    const [, controllers, path] = /^\d+:([^:]*):(\/.*)$/.exec(line) ?? [];
    if (controllers === undefined || path === undefined || !path.includes(id)) continue;
    // A container may make cgroups of its own beneath the one that Docker made.
    const end = path.indexOf("/", path.indexOf(id));
    for (const controller of controllers.split(",")) paths.set(controller, end < 0 ? path : path.slice(0, end));
  }
  if (version === 2) {
    const path = paths.get("");
    return path === undefined ? undefined : { version, cpu: join(cgroupRoot, path), memory: join(cgroupRoot, path) };
  }
  const [cpu, memory] = [paths.get("cpuacct"), paths.get("memory")];
  if (cpu === undefined || memory === undefined) return undefined;
  return { version, cpu: join(cgroupRoot, "cpuacct", cpu), memory: join(cgroupRoot, "memory", memory) };
}

/** Memory and CPU time of a cgroup; parts that cannot be read are left out. */
export async function readContainerCgroup(
  cgroup: ContainerCgroup,
  now: () => number,
): Promise<Pick<ContainerStats, "cpu" | "memory">> {
  const { version, cpu, memory } = cgroup;
  const [usage, stat, time] = await Promise.all([
    readText(join(memory, version === 2 ? "memory.current" : "memory.usage_in_bytes")),
    readText(join(memory, "memory.stat")),
    readText(join(cpu, version === 2 ? "cpu.stat" : "cpuacct.usage")),
  ]);
  const timestampMs = now();
  const usageBytes = wholeNumber(usage);
  const cpuNs = version === 2 ? scaled(fieldOf(time, "usage_usec"), 1_000) : wholeNumber(time);
  const inactiveBytes = fieldOf(stat, version === 2 ? "inactive_file" : "total_inactive_file");
  const rssBytes = fieldOf(stat, version === 2 ? "anon" : "total_rss");
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
  };
}

async function readText(path: string): Promise<string> {
  return await readFile(path, "utf8").catch(() => "");
}

function wholeNumber(text: string): number | undefined {
  return /^\d+\s*$/.test(text) ? Number(text) : undefined;
}

function fieldOf(text: string, name: string): number | undefined {
  const line = text.split("\n").find((each) => each.startsWith(`${name} `));
  return line === undefined ? undefined : wholeNumber(line.slice(name.length + 1));
}

function scaled(value: number | undefined, factor: number): number | undefined {
  return value === undefined ? undefined : value * factor;
}
