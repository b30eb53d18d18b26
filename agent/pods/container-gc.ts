import type { ContainerSummary } from "../runtime/port.ts";

/** What is kept of containers that have ended. */
export interface DeadContainerLimits {
  /** Of each container; negative: all. */
  perContainer: number;
  /** On the whole node; negative: all. */
  total: number;
  /** Younger ones stay, counted from when they were made; ms. */
  ageMsMin: number;
}

/** How often the limits are enforced; kubelet's ContainerGCPeriod. */
export const collectIntervalMs = 60_000;

/** Dead instances that a running pod keeps at once, by kubelet's rule: the one before the present one is always there. */
export function deadContainersKept({ perContainer }: DeadContainerLimits): number {
  return Math.max(1, perContainer);
}

/**
 * What the records of a pod's dead containers are good for: the next decision rests on the newest (`needed`), people may
 * want to see them (`shown`), or nothing (`useless`).
 */
export type RemainsUse = "needed" | "shown" | "useless";

/**
 * The dead containers that have to go, by pod UID. The newest instance of a container of a running pod stays whatever the
 * limits say: without it, the container would count as one that never ran.
 *
 * @param useOf undefined for pods that are not ours to judge
 */
export function deadContainersToRemove(
  containers: readonly ContainerSummary[],
  limits: DeadContainerLimits,
  useOf: (podUID: string) => RemainsUse | undefined,
  nowMs: number,
): Map<string, string[]> {
  const doomed = new Map<string, string[]>();
  const remove = ({ podUID, id }: ContainerSummary) => doomed.set(podUID, [...(doomed.get(podUID) ?? []), id]);
  const kept: ContainerSummary[][] = [];
  for (const { use, dead, newestID } of units(containers, useOf)) {
    const old = dead.filter(({ createdAtMs }) => createdAtMs <= nowMs - limits.ageMsMin);
    if (use === "useless") {
      old.forEach(remove);
      continue;
    }
    const tooMany = limits.perContainer < 0 ? [] : old.slice(limits.perContainer);
    const going = new Set(tooMany.filter(({ id }) => use === "shown" || id !== newestID));
    going.forEach(remove);
    kept.push(old.filter((one) => !going.has(one) && (use === "shown" || one.id !== newestID)));
  }
  if (limits.total >= 0) overTotal(kept, limits.total).forEach(remove);
  return doomed;
}

interface Unit {
  use: RemainsUse;
  /** Newest first. */
  dead: ContainerSummary[];
  /** Of all instances, running or not. */
  newestID: string;
}

function units(
  containers: readonly ContainerSummary[],
  useOf: (podUID: string) => RemainsUse | undefined,
): Iterable<Unit> {
  const found = new Map<string, Unit>();
  const newestFirst = [...containers].sort((a, b) => b.attempt - a.attempt || b.createdAtMs - a.createdAtMs);
  for (const container of newestFirst) {
    const use = useOf(container.podUID);
    if (use === undefined) continue;
    const key = `${container.podUID}/${container.name}`;
    const unit = found.get(key) ?? { use, dead: [], newestID: container.id };
    if (container.state === "exited") unit.dead.push(container);
    found.set(key, unit);
  }
  return found.values();
}

// The same number of each container first, then the oldest of all.
function overTotal(kept: readonly ContainerSummary[][], total: number): ContainerSummary[] {
  const count = kept.reduce((sum, { length }) => sum + length, 0);
  if (count <= total) return [];
  const each = Math.max(1, Math.floor(total / kept.filter(({ length }) => length > 0).length));
  const going = kept.flatMap((unit) => unit.slice(each));
  const rest = kept.flatMap((unit) => unit.slice(0, each)).sort((a, b) => a.createdAtMs - b.createdAtMs);
  return [...going, ...rest.slice(0, Math.max(0, rest.length - total))];
}
