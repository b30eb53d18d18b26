import { cpuPeriodUsDefault } from "../kube/pod-resources.ts";
import { formatMilliCPU, quantityMilli, quantityValue } from "../kube/quantity.ts";
import type { Container, ContainerStatus, Quantity, ResourceList, ResourceRequirements } from "../kube/types.ts";
import type { ContainerStatus as RuntimeContainer } from "../runtime/port.ts";

// Below these the kernel makes no difference any more (cpu.shares 2, a quota of 1 ms), so what was asked for is shown.
const cpuRequestMilliMin = 2;
const cpuLimitMilliMin = 10;

/**
 * What a container has of what it may have: as the runtime says while it runs, else as it was given.
 *
 * @param known what it was last given, as far as that is known: it counts where the runtime says nothing
 * @param old what was reported of the same instance before; it stays where the runtime says nothing
 */
export function containerResources(
  container: Container,
  { state, resources: actual }: RuntimeContainer,
  known: ResourceRequirements | undefined,
  old: ContainerStatus | undefined,
): ResourceRequirements {
  const given = container.resources ?? {};
  if (state !== "running") return given;
  const shown: ResourceRequirements = { ...given };
  const before = known ?? (old?.state?.running === undefined ? undefined : old.resources);
  if (given.requests !== undefined) {
    const shares = actual?.cpuShares ?? 0;
    const milli = shares > 0 ? Math.ceil((shares * 1_000) / 1_024) : undefined;
    const memory = kept("memory", known?.requests);
    shown.requests = {
      ...given.requests,
      ...memory,
      ...cpuOf(given.requests, milli, cpuRequestMilliMin, before?.requests),
    };
  }
  if (given.limits !== undefined) {
    const { cpuQuota = 0, cpuPeriod = cpuPeriodUsDefault, memoryLimitBytes = 0 } = actual ?? {};
    const milli = cpuQuota > 0 ? Math.floor((cpuQuota * 1_000) / cpuPeriod) : undefined;
    shown.limits = {
      ...given.limits,
      ...cpuOf(given.limits, milli, cpuLimitMilliMin, before?.limits),
      ...memoryOf(given.limits, memoryLimitBytes, before?.limits),
    };
  }
  return shown;
}

function cpuOf(
  given: ResourceList,
  milli: number | undefined,
  milliMin: number,
  before: ResourceList | undefined,
): ResourceList {
  if (milli === undefined) return kept("cpu", before);
  const asked = quantityMilli(given["cpu"]);
  if (milli === asked || (milli <= milliMin && asked <= milliMin)) return {};
  return { cpu: formatMilliCPU(milli) };
}

function memoryOf(given: ResourceList, bytes: number, before: ResourceList | undefined): ResourceList {
  if (bytes === 0) return kept("memory", before);
  return bytes === quantityValue(given["memory"]) ? {} : { memory: formatBytes(bytes) };
}

function kept(name: string, before: ResourceList | undefined): ResourceList {
  const quantity: Quantity | undefined = before?.[name];
  return quantity === undefined ? {} : { [name]: quantity };
}

// As the API server would write it, so that it does not look like a change.
function formatBytes(bytes: number): string {
  const base = bytes % 1_024 === 0 ? 1_024 : 1_000;
  const units = base === 1_024 ? ["", "Ki", "Mi", "Gi", "Ti"] : ["", "k", "M", "G", "T"];
  let [size, unit] = [bytes, 0];
  while (size % base === 0 && unit < units.length - 1) {
    size /= base;
    unit += 1;
  }
  return `${size}${units[unit] ?? ""}`;
}
