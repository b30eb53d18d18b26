import { isObject, type JsonObject, jsonEqual } from "./json.ts";
import { badRequest } from "./status.ts";
import type { MergeSchema } from "./strategic-schema.ts";

const deleteFromPrimitiveList = "$deleteFromPrimitiveList/";
const setElementOrder = "$setElementOrder/";

/**
 * Strategic merge patch: like a merge patch, but lists with a merge key merge by it, and directives
 * (`$patch`, `$retainKeys`, `$setElementOrder`, `$deleteFromPrimitiveList`) say what plain JSON cannot.
 * Pure; throws 400 for a patch that breaks its own rules.
 */
export function strategicMerge(current: unknown, patch: unknown, schema: MergeSchema): unknown {
  if (!isObject(patch)) return patch;
  const directive = patch["$patch"];
  if (directive === "delete") return {};
  if (directive === "replace") return withoutDirectives(patch);
  if (directive !== undefined && directive !== "merge") {
    throw badRequest(`Unknown patch type: ${JSON.stringify(directive)}`);
  }

  const base = retained(isObject(current) ? current : {}, patch);
  const result: JsonObject = { ...base };
  for (const [field, value] of Object.entries(patch)) {
    if (field.startsWith("$")) continue;
    if (value === null) {
      delete result[field];
      continue;
    }
    const fieldSchema = schema.fields?.[field] ?? {};
    if (!Array.isArray(value)) {
      result[field] = isObject(value) ? strategicMerge(result[field], value, fieldSchema) : value;
      continue;
    }
    result[field] = mergeLists(result[field], value, fieldSchema);
  }
  applyListDirectives(result, patch, schema);
  return result;
}

function retained(current: JsonObject, patch: JsonObject): JsonObject {
  const keys = patch["$retainKeys"];
  if (keys === undefined) return current;
  if (!Array.isArray(keys)) throw badRequest("$retainKeys is a list of field names");
  return Object.fromEntries(Object.entries(current).filter(([field]) => keys.includes(field)));
}

// Directives about a list stand beside it, and also count when the patch leaves the list itself alone.
function applyListDirectives(result: JsonObject, patch: JsonObject, schema: MergeSchema): void {
  for (const [directive, value] of Object.entries(patch)) {
    if (!directive.startsWith(deleteFromPrimitiveList) || !Array.isArray(value)) continue;
    const list = result[directive.slice(deleteFromPrimitiveList.length)];
    if (Array.isArray(list)) {
      result[directive.slice(deleteFromPrimitiveList.length)] = list.filter((item) => !value.includes(item));
    }
  }
  for (const [directive, order] of Object.entries(patch)) {
    if (!directive.startsWith(setElementOrder) || !Array.isArray(order)) continue;
    const field = directive.slice(setElementOrder.length);
    const list = result[field];
    if (Array.isArray(list)) result[field] = reorder(list, order, schema.fields?.[field]?.mergeKey);
  }
}

function mergeLists(current: unknown, patch: unknown[], schema: MergeSchema): unknown[] {
  const base = Array.isArray(current) ? current : [];
  if (schema.set === true) return [...base, ...patch.filter((item) => !base.includes(item))];
  const { mergeKey } = schema;
  const replaces = patch.some((item) => isObject(item) && item["$patch"] === "replace");
  if (mergeKey === undefined || replaces) {
    return patch.filter((item) => !(isObject(item) && "$patch" in item)).map(withoutDirectives);
  }
  let result = [...base];
  for (const item of patch) {
    if (!isObject(item) || item[mergeKey] === undefined) {
      throw badRequest(`map: ${JSON.stringify(item)} does not contain declared merge key: ${mergeKey}`);
    }
    const isSame = (other: unknown) => isObject(other) && jsonEqual(other[mergeKey], item[mergeKey]);
    if (item["$patch"] === "delete") {
      result = result.filter((other) => !isSame(other));
      continue;
    }
    const at = result.findIndex(isSame);
    if (at < 0) {
      result.push(strategicMerge({}, item, schema));
    } else {
      result[at] = strategicMerge(result[at], item, schema);
    }
  }
  return result;
}

/**
 * Elements named in `order` take that order; the others keep their places relative to their neighbours.
 */
function reorder(list: unknown[], order: unknown[], mergeKey: string | undefined): unknown[] {
  const idOf = (item: unknown) =>
    JSON.stringify(mergeKey === undefined ? item : isObject(item) ? item[mergeKey] : undefined);
  const places = new Map(order.map((item, at) => [idOf(item), at]));
  const ordered = list
    .filter((item) => places.has(idOf(item)))
    .toSorted((a, b) => (places.get(idOf(a)) ?? 0) - (places.get(idOf(b)) ?? 0));
  const others = list.filter((item) => !places.has(idOf(item)));
  const originalPlace = new Map(list.map((item, at) => [item, at]));
  const result: unknown[] = [];
  while (ordered.length > 0 || others.length > 0) {
    const [a] = ordered;
    const [b] = others;
    const takeOther =
      ordered.length === 0 || (others.length > 0 && (originalPlace.get(b) ?? 0) < (originalPlace.get(a) ?? 0));
    result.push(takeOther ? others.shift() : ordered.shift());
  }
  return result;
}

function withoutDirectives(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(withoutDirectives);
  if (!isObject(value)) return value;
  return Object.fromEntries(
    Object.entries(value)
      .filter(([field, v]) => !field.startsWith("$") && v !== null)
      .map(([field, v]) => [field, withoutDirectives(v)]),
  );
}
