import { AgentError } from "../agent/lib/errors.ts";

/** An object of a JSON text whose members were not looked at yet. */
export type JSONObject = Readonly<Record<string, unknown>>;

/** True for `{…}`, false for lists, null and plain values. */
export function isObject(value: unknown): value is JSONObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** The object that a text holds; `undefined` if it holds none. */
export function parseObject(text: string): JSONObject | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return isObject(value) ? value : undefined;
  } catch {
    return undefined;
  }
}

/** What is wrong with a field: `plugins[1].type: must be a string, is a number`. Its code is Invalid. */
export function fieldError(field: string, problem: string): AgentError {
  return new AgentError("Invalid", `${field}: ${problem}`);
}

/** The member `key` of an object; `undefined` if it is absent or null. Throws {@link fieldError} if it is no string. */
export function stringIn(from: JSONObject, key: string, path = ""): string | undefined {
  const value = from[key] ?? undefined;
  if (value === undefined || typeof value === "string") return value;
  throw fieldError(path + key, `must be a string, is ${kindOf(value)}`);
}

/** As {@link stringIn}, for whole numbers. */
export function integerIn(from: JSONObject, key: string, path = ""): number | undefined {
  const value = from[key] ?? undefined;
  if (value === undefined) return undefined;
  if (typeof value === "number" && Number.isInteger(value)) return value;
  throw fieldError(path + key, `must be an integer, is ${kindOf(value)}`);
}

/** As {@link stringIn}, for lists; empty if it is absent or null. */
export function listIn(from: JSONObject, key: string, path = ""): readonly unknown[] {
  const value = from[key] ?? undefined;
  if (value === undefined) return [];
  if (Array.isArray(value)) return value as unknown[];
  throw fieldError(path + key, `must be a list, is ${kindOf(value)}`);
}

/** As {@link listIn}, for lists of strings. */
export function stringsIn(from: JSONObject, key: string, path = ""): string[] {
  return listIn(from, key, path).map((value, i) => {
    if (typeof value === "string") return value;
    throw fieldError(`${path}${key}[${i}]`, `must be a string, is ${kindOf(value)}`);
  });
}

/** What a JSON value is, in words: "a number", "a list", "null". */
export function kindOf(value: unknown): string {
  if (value === null || value === undefined) return "null";
  if (Array.isArray(value)) return "a list";
  return typeof value === "object" ? "an object" : `a ${typeof value}`;
}
