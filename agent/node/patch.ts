import { parseQuantity } from "../kube/quantity.ts";
import type { Condition, Node, NodeStatus, ResourceList } from "../kube/types.ts";

/** A strategic-merge patch for `nodes/NAME/status`. */
export interface NodePatch {
  metadata?: { labels?: Record<string, string | null>; annotations?: Record<string, string | null> };
  status?: Record<string, unknown>;
}

/**
 * What turns `old` into `wanted`: labels, annotations and status; the spec is not looked at.
 * @param options.ignoreHeartbeat  a condition whose heartbeat time alone differs is no difference
 * @returns undefined if there is nothing to send
 */
export function buildNodePatch(
  old: Node,
  wanted: Node,
  options: { ignoreHeartbeat: boolean } = { ignoreHeartbeat: false },
): NodePatch | undefined {
  const metadata = compact({
    labels: diffMap(old.metadata.labels, wanted.metadata.labels),
    annotations: diffMap(old.metadata.annotations, wanted.metadata.annotations),
  });
  const status = diffStatus(old.status ?? {}, wanted.status ?? {}, options.ignoreHeartbeat);
  return compact({ metadata, status });
}

// Lists that the API server replaces as a whole.
const atomicLists = ["images", "runtimeHandlers", "volumesInUse", "declaredFeatures"] as const;

function diffStatus(
  old: NodeStatus,
  wanted: NodeStatus,
  ignoreHeartbeat: boolean,
): Record<string, unknown> | undefined {
  const patch: Record<string, unknown> = {
    capacity: diffMap(old.capacity, wanted.capacity, isSameQuantity),
    allocatable: diffMap(old.allocatable, wanted.allocatable, isSameQuantity),
    conditions: diffConditions(old.conditions ?? [], wanted.conditions ?? [], ignoreHeartbeat),
    // Two addresses may share the type that the server merges by, so that only a full replacement is right.
    addresses: isEqual(old.addresses ?? [], wanted.addresses ?? [])
      ? undefined
      : [...(wanted.addresses ?? []), { $patch: "replace" }],
    daemonEndpoints: isEqual(old.daemonEndpoints, wanted.daemonEndpoints) ? undefined : wanted.daemonEndpoints,
    nodeInfo: diffObject(old.nodeInfo, wanted.nodeInfo),
    features: diffObject(old.features, wanted.features),
  };
  for (const key of atomicLists) {
    if (!isEqual(old[key] ?? [], wanted[key] ?? [])) patch[key] = wanted[key] ?? null;
  }
  return compact(patch);
}

function diffConditions(
  old: readonly Condition[],
  wanted: readonly Condition[],
  ignoreHeartbeat: boolean,
): Condition[] | undefined {
  const changed = wanted.filter((condition) => {
    const before = old.find(({ type }) => type === condition.type);
    if (before === undefined || !ignoreHeartbeat) return !isEqual(before, condition);
    const { lastHeartbeatTime: _a, ...was } = before;
    const { lastHeartbeatTime: _b, ...is } = condition;
    return !isEqual(was, is);
  });
  return changed.length === 0 ? undefined : changed;
}

function diffObject<T extends object>(old: T | undefined, wanted: T | undefined): Record<string, unknown> | undefined {
  return diffMap(toMap(old), toMap(wanted), isEqual);
}

function toMap(value: object | undefined): Record<string, unknown> | undefined {
  return value === undefined ? undefined : Object.fromEntries(Object.entries(value));
}

function diffMap<V>(
  old: Record<string, V> | undefined,
  wanted: Record<string, V> | undefined,
  isSame: (a: V, b: V) => boolean = Object.is,
): Record<string, V | null> | undefined {
  const patch: Record<string, V | null> = {};
  for (const [key, value] of Object.entries(wanted ?? {})) {
    const before = old?.[key];
    if (before === undefined || !isSame(before, value)) patch[key] = value;
  }
  for (const key of Object.keys(old ?? {})) if (wanted?.[key] === undefined) patch[key] = null;
  return Object.keys(patch).length === 0 ? undefined : patch;
}

/** Compares by amount: the API server rewrites quantities in its own way. */
function isSameQuantity(a: ResourceList[string], b: ResourceList[string]): boolean {
  return parseQuantity(a) === parseQuantity(b);
}

/** Deep equality of JSON values; key order and keys that are undefined do not count. */
function isEqual(a: unknown, b: unknown): boolean {
  if (Object.is(a, b)) return true;
  if (typeof a !== "object" || typeof b !== "object" || a === null || b === null) return false;
  if (Array.isArray(a) !== Array.isArray(b)) return false;
  const left = new Map(Object.entries(a).filter(([, value]) => value !== undefined));
  const right = new Map(Object.entries(b).filter(([, value]) => value !== undefined));
  return (
    left.size === right.size && [...left].every(([key, value]) => right.has(key) && isEqual(value, right.get(key)))
  );
}

/** The object without undefined members; undefined if none is left. */
function compact<T extends object>(object: T): { [K in keyof T]?: Exclude<T[K], undefined> } | undefined {
  const entries = Object.entries(object).filter(([, value]) => value !== undefined);
  return entries.length === 0
    ? undefined
    : (Object.fromEntries(entries) as { [K in keyof T]?: Exclude<T[K], undefined> });
}
