import { isObject } from "./json.ts";
import type { ApiObject } from "./types.ts";

// Field names of core/v1 Event on the left, of events.k8s.io/v1 Event on the right. All others are the same.
const names: readonly (readonly [core: string, events: string])[] = [
  ["involvedObject", "regarding"],
  ["message", "note"],
  ["source", "deprecatedSource"],
  ["firstTimestamp", "deprecatedFirstTimestamp"],
  ["lastTimestamp", "deprecatedLastTimestamp"],
  ["count", "deprecatedCount"],
  ["reportingComponent", "reportingController"],
];

/** A core/v1 Event as events.k8s.io/v1 shows it. */
export function toNewEvent(stored: ApiObject): ApiObject {
  return rename(stored, "events.k8s.io/v1", new Map(names));
}

/** An events.k8s.io/v1 Event as core/v1 shows it; that is how it is stored. */
export function toCoreEvent(served: ApiObject): ApiObject {
  const core = rename(served, "v1", new Map(names.map(([a, b]) => [b, a])));
  if (!isObject(core["involvedObject"])) core["involvedObject"] = {};
  return core;
}

function rename(object: ApiObject, apiVersion: string, fields: ReadonlyMap<string, string>): ApiObject {
  const { metadata, kind, ...rest } = object;
  const renamed = Object.entries(rest).map(([field, value]) => [fields.get(field) ?? field, value] as const);
  return { ...Object.fromEntries(renamed), apiVersion, kind, metadata };
}
