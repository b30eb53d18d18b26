import { isObject, type JsonObject, jsonEqual } from "./json.ts";
import type { MergeSchema } from "./strategic-schema.ts";

/**
 * Server-side apply without managed fields: what `applied` says is set; what the same manager applied before and no
 * longer says is removed; everything else stays. Pure.
 *
 * @param before the manager's previous configuration, undefined the first time
 */
export function applyConfiguration(current: unknown, before: unknown, applied: unknown, schema: MergeSchema): unknown {
  if (Array.isArray(applied)) return applyList(current, before, applied, schema);
  if (!isObject(applied)) return applied;
  const result: JsonObject = isObject(current) ? { ...current } : {};
  const previous = isObject(before) ? before : {};
  for (const [field, value] of Object.entries(previous)) {
    if (field in applied) continue;
    const rest = withdrawn(result[field], value, schema.fields?.[field] ?? {});
    if (rest === undefined) {
      delete result[field];
    } else {
      result[field] = rest;
    }
  }
  for (const [field, value] of Object.entries(applied)) {
    result[field] = applyConfiguration(result[field], previous[field], value, schema.fields?.[field] ?? {});
  }
  return result;
}

function applyList(current: unknown, before: unknown, applied: unknown[], schema: MergeSchema): unknown[] {
  const base = Array.isArray(current) ? current : [];
  const previous = Array.isArray(before) ? before : [];
  const isSame = sameElement(schema);
  if (isSame === undefined) return applied;
  const kept = base.filter((item) => applied.some((a) => isSame(a, item)) || !previous.some((p) => isSame(p, item)));
  const merged = kept.map((item) => {
    const wanted = applied.find((a) => isSame(a, item));
    if (wanted === undefined) return item;
    return applyConfiguration(
      item,
      previous.find((p) => isSame(p, item)),
      wanted,
      elementSchema(schema),
    );
  });
  return [...merged, ...applied.filter((a) => !base.some((item) => isSame(a, item)))];
}

// What is left of a value once the part that a manager had set is taken out; undefined if nothing is.
function withdrawn(current: unknown, before: unknown, schema: MergeSchema): unknown {
  if (isObject(current) && isObject(before)) {
    const result = applyConfiguration(current, before, {}, schema);
    return isObject(result) && Object.keys(result).length > 0 ? result : undefined;
  }
  if (Array.isArray(current) && Array.isArray(before)) {
    const isSame = sameElement(schema);
    if (isSame === undefined) return undefined;
    const rest = current.filter((item) => !before.some((b) => isSame(b, item)));
    return rest.length > 0 ? rest : undefined;
  }
  return undefined;
}

function sameElement(schema: MergeSchema): ((a: unknown, b: unknown) => boolean) | undefined {
  if (schema.set === true) return (a, b) => a === b;
  const keys = schema.mapKeys ?? (schema.mergeKey === undefined ? undefined : [schema.mergeKey]);
  if (keys === undefined) return undefined;
  // Of the key fields only the protocol has a default, and configurations rely on it.
  const valueOf = (item: JsonObject, key: string) => item[key] ?? (key === "protocol" ? "TCP" : undefined);
  return (a, b) => isObject(a) && isObject(b) && keys.every((key) => jsonEqual(valueOf(a, key), valueOf(b, key)));
}

function elementSchema(schema: MergeSchema): MergeSchema {
  return schema.fields === undefined ? {} : { fields: schema.fields };
}
