import type { ContainerStats, FilesystemUsage, SandboxProcess } from "../port.ts";
import { msFromNanos } from "./convert.ts";
import type { WireContainerStats, WireFilesystemUsage, WireInt64Value } from "./wire.ts";

/** One entry of ListContainerStats. Figures that the runtime left out are left out. */
export function containerStats({ attributes, cpu, memory, swap, writable_layer }: WireContainerStats): ContainerStats {
  const stats: ContainerStats = { containerID: attributes?.id ?? "" };
  if (cpu !== null) {
    stats.cpu = {
      timestampMs: msFromNanos(cpu.timestamp),
      ...figure("usageCoreNanoSeconds", cpu.usage_core_nano_seconds),
      ...figure("usageNanoCores", cpu.usage_nano_cores),
    };
  }
  if (memory !== null) {
    stats.memory = {
      timestampMs: msFromNanos(memory.timestamp),
      ...figure("workingSetBytes", memory.working_set_bytes),
      ...figure("usageBytes", memory.usage_bytes),
      ...figure("rssBytes", memory.rss_bytes),
    };
  }
  if (swap !== null) {
    stats.swap = {
      timestampMs: msFromNanos(swap.timestamp),
      ...figure("availableBytes", swap.swap_available_bytes),
      ...figure("usageBytes", swap.swap_usage_bytes),
    };
  }
  if (writable_layer !== null) stats.writableLayer = filesystemUsage(writable_layer);
  return stats;
}

export function filesystemUsage({ timestamp, fs_id, used_bytes, inodes_used }: WireFilesystemUsage): FilesystemUsage {
  return {
    timestampMs: msFromNanos(timestamp),
    mountpoint: fs_id?.mountpoint ?? "",
    ...figure("usedBytes", used_bytes),
    ...figure("inodesUsed", inodes_used),
  };
}

/**
 * The process of a sandbox from the runtime's verbose information, whose form is each runtime's own: containerd and CRI-O
 * both give a JSON text under "info" with fields `pid` and `image`. Any other form tells nothing.
 */
export function sandboxProcess(info: Readonly<Record<string, string>>): SandboxProcess {
  let parsed: unknown;
  try {
    parsed = JSON.parse(info.info ?? "{}");
  } catch {
    parsed = undefined;
  }
  if (typeof parsed !== "object" || parsed === null) return { image: "" };
  const pid = "pid" in parsed && typeof parsed.pid === "number" && Number.isInteger(parsed.pid) ? parsed.pid : 0;
  const image = "image" in parsed && typeof parsed.image === "string" ? parsed.image : "";
  return { ...(pid > 0 ? { pid } : {}), image };
}

/** Proto3 tells "0" from "not measured" by wrapping the number. */
function figure<K extends string>(key: K, wire: WireInt64Value | null): { [P in K]?: number } {
  const result: { [P in K]?: number } = {};
  if (wire !== null) result[key] = Number(wire.value);
  return result;
}
