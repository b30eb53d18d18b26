import { type Amounts, hugePageResource } from "../kube/pod-resources.ts";
import { formatMilliCPU, quantityValue } from "../kube/quantity.ts";
import type { ResourceList } from "../kube/types.ts";
import type { NodeFacts } from "./facts.ts";

/** What the configuration takes away from pods. */
export interface Reservations {
  /** systemReserved + kubeReserved. */
  reserved: Amounts;
  /** Hard eviction thresholds by signal: `memory.available` → `100Mi` or `5%`. */
  evictionHard: Readonly<Record<string, string>>;
  /** `--experimental-allocatable-ignore-eviction`. */
  ignoreEviction: boolean;
}

export interface CapacityOptions {
  maxPods: number;
  /** 0: no such limit. */
  podsPerCore: number;
  localStorageCapacityIsolation: boolean;
}

/** What the whole machine has. Amounts as in pod-resources: cpu in milli-CPU. */
export function nodeCapacity(facts: NodeFacts, options: CapacityOptions): Amounts {
  const { maxPods, podsPerCore } = options;
  const capacity: Amounts = {
    cpu: facts.cpuCount * 1_000,
    memory: facts.memoryBytes,
    pods: podsPerCore > 0 ? Math.min(facts.cpuCount * podsPerCore, maxPods) : maxPods,
  };
  if (options.localStorageCapacityIsolation) capacity["ephemeral-storage"] = facts.rootFilesystemBytes;
  for (const { pageBytes, count } of facts.hugePages) capacity[hugePageResource(pageBytes)] = pageBytes * count;
  return capacity;
}

/** What is left for pods: capacity less reservations and hard eviction thresholds, never below 0. */
export function nodeAllocatable(capacity: Amounts, { reserved, evictionHard, ignoreEviction }: Reservations): Amounts {
  const allocatable: Amounts = {};
  for (const [name, amount] of Object.entries(capacity)) {
    const signal = evictionSignals[name];
    const threshold = ignoreEviction || signal === undefined ? undefined : evictionHard[signal];
    const evictionReserve = threshold === undefined ? 0 : thresholdBytes(threshold, amount);
    allocatable[name] = Math.max(0, amount - (reserved[name] ?? 0) - evictionReserve);
  }
  // Huge pages are taken out of the machine's memory whether somebody uses them or not.
  const hugePageBytes = Object.entries(capacity).reduce((sum, [name, n]) => sum + (isHugePages(name) ? n : 0), 0);
  if (allocatable.memory !== undefined) allocatable.memory = Math.max(0, allocatable.memory - hugePageBytes);
  return allocatable;
}

/** Why the node cannot be run with these reservations; undefined if it can. */
export function reservationProblem(capacity: Amounts, reservations: Reservations): string | undefined {
  const reserve = { ...reservations, ignoreEviction: false };
  for (const [name, amount] of Object.entries(capacity)) {
    const signal = evictionSignals[name];
    const threshold = signal === undefined ? undefined : reserve.evictionHard[signal];
    const wanted = (reserve.reserved[name] ?? 0) + (threshold === undefined ? 0 : thresholdBytes(threshold, amount));
    if (wanted > amount) {
      return (
        `invalid Node Allocatable configuration. Resource "${name}" has a reservation of ${wanted} but capacity of ` +
        `${amount}. Expected capacity >= reservation: lower systemReserved, kubeReserved or evictionHard.`
      );
    }
  }
  return undefined;
}

/** Amounts as the API server writes them, so that a comparison of texts finds no difference where there is none. */
export function resourceList(amounts: Amounts): ResourceList {
  return Object.fromEntries(
    Object.entries(amounts).map(([name, amount]) => {
      if (name === "cpu") return [name, formatMilliCPU(amount)];
      const isBytes = name === "memory" || name === "ephemeral-storage" || isHugePages(name);
      return [name, isBytes ? formatBytes(amount) : String(amount)];
    }),
  );
}

/** A threshold such as `100Mi` or `10%` as an amount of `capacity`. */
export function thresholdBytes(threshold: string, capacity: number): number {
  if (!threshold.endsWith("%")) return quantityValue(threshold);
  // The reference keeps the ratio in 32 bits; schedulers compare what nodes report, so the odd bytes are kept too.
  return Math.trunc(capacity * Math.fround(Number(threshold.slice(0, -1)) / 100));
}

const evictionSignals: Partial<Record<string, string>> = {
  memory: "memory.available",
  "ephemeral-storage": "nodefs.available",
};

function isHugePages(name: string): boolean {
  return name.startsWith("hugepages-");
}

/** The canonical text of a binary quantity: the largest suffix that leaves a whole number. */
function formatBytes(bytes: number): string {
  const units = ["", "Ki", "Mi", "Gi", "Ti", "Pi"];
  let index = 0;
  let rest = bytes;
  while (rest > 0 && rest % 1024 === 0 && index < units.length - 1) {
    rest /= 1024;
    index += 1;
  }
  return `${rest}${units[index]}`;
}
