import { isDeepStrictEqual } from "node:util";
import type { Condition, PodStatus } from "../kube/types.ts";
import { ownConditionTypes } from "./conditions.ts";

/** Fields of PodStatus that the agent writes; the others are never touched. */
const ownFields = [
  "phase",
  "observedGeneration",
  "conditions",
  "message",
  "reason",
  "hostIP",
  "hostIPs",
  "podIP",
  "podIPs",
  "startTime",
  "initContainerStatuses",
  "containerStatuses",
  "ephemeralContainerStatuses",
  "qosClass",
  "resources",
  "allocatedResources",
  "resize", // of older agents, which said there what conditions say now
] as const satisfies readonly (keyof PodStatus)[];

/**
 * The strategic merge patch that turns `from` (as the API server has it) into `to`. Conditions go one by one, so that
 * those of others stay as they are even if they changed meanwhile; lists merged by key are replaced as a whole.
 *
 * @param podUID the precondition: another pod of that name answers with Conflict
 * @returns undefined if nothing differs
 */
export function statusPatch(podUID: string, from: PodStatus, to: PodStatus): object | undefined {
  const status: Record<string, unknown> = {};
  for (const field of ownFields) {
    const [old, wanted] = [from[field], to[field]];
    if (isDeepStrictEqual(plain(old), plain(wanted))) continue;
    if (field === "conditions") {
      const changed = changedConditions(from.conditions ?? [], to.conditions ?? []);
      if (changed.length > 0) status[field] = changed;
    } else if (wanted === undefined) status[field] = null;
    else if (field === "podIPs" || field === "hostIPs") status[field] = [...(to[field] ?? []), { $patch: "replace" }];
    else status[field] = wanted;
  }
  if (Object.keys(status).length === 0) return undefined;
  return { metadata: { uid: podUID }, status };
}

function changedConditions(from: readonly Condition[], to: readonly Condition[]): object[] {
  // Of our own, what we no longer say has to go: a pod that was never taken has none.
  const gone = from.filter(
    ({ type }) => ownConditionTypes.includes(type) && !to.some((wanted) => wanted.type === type),
  );
  const changed = to.flatMap((wanted) => {
    const old = from.find(({ type }) => type === wanted.type);
    if (old === undefined) return [wanted];
    const difference: Record<string, unknown> = {};
    for (const key of new Set([...Object.keys(old), ...Object.keys(wanted)]) as Set<keyof Condition>) {
      if (!isDeepStrictEqual(old[key] ?? null, wanted[key] ?? null)) difference[key] = wanted[key] ?? null;
    }
    return Object.keys(difference).length === 0 ? [] : [{ ...difference, type: wanted.type }];
  });
  return [...changed, ...gone.map(({ type }) => ({ $patch: "delete", type }))];
}

// As it will be after JSON and the server's defaults: no undefined, no nulls, no empty objects.
function plain(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value !== "object" || value === null) return value;
  const entries = Object.entries(value).flatMap(([key, inner]) => {
    if (inner === undefined || inner === null) return [];
    return [[key, plain(inner)] as const];
  });
  return Object.fromEntries(entries);
}
