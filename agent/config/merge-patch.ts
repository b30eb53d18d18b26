import { isObject } from "../lib/json.ts";
import { type Values } from "./schema.ts";

/** A JSON merge patch (RFC 7386): objects merge by key, `null` deletes, anything else replaces. Changes neither argument. */
export function mergePatch(target: Values, patch: Values): Values {
  const merged: Values = { ...target };
  for (const [key, value] of Object.entries(patch)) {
    const before = merged[key];
    if (value === null) delete merged[key];
    else if (isObject(value)) merged[key] = mergePatch(isObject(before) ? before : {}, value);
    else merged[key] = value;
  }
  return merged;
}
