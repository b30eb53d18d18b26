import { isDeepStrictEqual } from "node:util";

/** A parsed JSON object whose fields are not known yet. */
export type JsonObject = Record<string, unknown>;

/** True for JSON objects; arrays and null are none. */
export function isObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** The value at a path of field names, or undefined where the path ends early. */
export function valueAt(root: unknown, path: readonly string[]): unknown {
  let value: unknown = root;
  for (const field of path) {
    if (Array.isArray(value) && /^\d+$/.test(field)) {
      value = value[Number(field)];
    } else if (isObject(value) && Object.hasOwn(value, field)) {
      value = value[field];
    } else {
      return undefined;
    }
  }
  return value;
}

/** The object under `field`, or an empty one. Never creates the field. */
export function objectAt(root: unknown, ...path: string[]): JsonObject {
  const value = valueAt(root, path);
  return isObject(value) ? value : {};
}

/** The objects of the list at `path`; whatever is no object is left out. */
export function objectsAt(root: unknown, ...path: string[]): JsonObject[] {
  const value = valueAt(root, path);
  return Array.isArray(value) ? value.filter(isObject) : [];
}

/** The string at `path`, or "". */
export function stringAt(root: unknown, ...path: string[]): string {
  const value = valueAt(root, path);
  return typeof value === "string" ? value : "";
}

/** The number at `path`, or undefined. */
export function numberAt(root: unknown, ...path: string[]): number | undefined {
  const value = valueAt(root, path);
  return typeof value === "number" ? value : undefined;
}

/** Equal as JSON: a field that is undefined counts as absent. */
export function jsonEqual(a: unknown, b: unknown): boolean {
  if (a === b) return true;
  return isDeepStrictEqual(dropUndefined(a), dropUndefined(b));
}

function dropUndefined(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(dropUndefined);
  if (!isObject(value)) return value;
  return Object.fromEntries(
    Object.entries(value)
      .filter(([, v]) => v !== undefined)
      .map(([k, v]) => [k, dropUndefined(v)]),
  );
}
