import { isObject } from "../../lib/json.ts";

/**
 * Shapes of JSON values that come from people. What a shape does not name passes through untouched, as it does with the
 * reference's decoder: manifests of newer versions keep working.
 */
export type Shape =
  | "text"
  | "integer"
  | "flag"
  /** "1500m", 2 */
  | "quantity"
  | "textOrInteger"
  | { readonly list: Shape }
  | { readonly map: Shape }
  | { readonly fields: Readonly<Record<string, Shape>> };

/** The value without its nulls, which mean "not set" everywhere in the API. */
export function withoutNulls(value: unknown): unknown {
  if (Array.isArray(value)) return value.filter((item) => item !== null).map(withoutNulls);
  if (!isObject(value)) return value;
  const entries = Object.entries(value).flatMap(([key, inner]) => (inner === null ? [] : [[key, withoutNulls(inner)]]));
  return Object.fromEntries(entries) as unknown;
}

/** The first place where `value` has not its shape: `spec.containers[0].image: must be a string, not 5`. */
export function shapeProblem(value: unknown, shape: Shape, path: string): string | undefined {
  if (value === undefined) return undefined;
  if (typeof shape === "string") return isScalarOf(value, shape) ? undefined : mismatch(path, names[shape], value);
  if ("list" in shape) {
    if (!Array.isArray(value)) return mismatch(path, "a list", value);
    return firstOf(value.entries(), ([i, item]) => shapeProblem(item, shape.list, `${path}[${i}]`));
  }
  if (!isObject(value)) return mismatch(path, "an object with fields", value);
  if ("map" in shape) {
    return firstOf(Object.entries(value), ([key, inner]) => shapeProblem(inner, shape.map, `${path}.${key}`));
  }
  return firstOf(Object.entries(shape.fields), ([name, inner]) =>
    shapeProblem(Object.hasOwn(value, name) ? value[name] : undefined, inner, path === "" ? name : `${path}.${name}`),
  );
}

const names = {
  text: "a string",
  integer: "a whole number",
  flag: "true or false",
  quantity: 'a quantity such as "500m" or 2',
  textOrInteger: "a string or a whole number",
} as const;

function isScalarOf(value: unknown, shape: keyof typeof names): boolean {
  switch (shape) {
    case "text":
      return typeof value === "string";
    case "integer":
      return Number.isSafeInteger(value);
    case "flag":
      return typeof value === "boolean";
    case "quantity":
      return typeof value === "string" || typeof value === "number";
    case "textOrInteger":
      return typeof value === "string" || Number.isSafeInteger(value);
  }
}

// Never the value: it may be a password, and this goes to the log and to an event that many may read.
function mismatch(path: string, wanted: string, value: unknown): string {
  return `${path === "" ? "the document" : path}: must be ${wanted}, not ${kindOf(value)}`;
}

/** What sort of JSON value it is, in words; nothing of what it holds. */
export function kindOf(value: unknown): string {
  if (Array.isArray(value)) return "a list";
  switch (typeof value) {
    case "string":
      return "a string";
    case "boolean":
      return "a boolean";
    case "number":
      return Number.isInteger(value) ? "a number" : "a number with a fraction";
    default:
      return isObject(value) ? "an object" : "nothing";
  }
}

function firstOf<T>(items: Iterable<T>, problemOf: (item: T) => string | undefined): string | undefined {
  for (const item of items) {
    const problem = problemOf(item);
    if (problem !== undefined) return problem;
  }
  return undefined;
}
