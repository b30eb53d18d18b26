import { AgentError } from "../lib/errors.ts";
import { isObject } from "../lib/json.ts";
import type { KubeObject } from "./types.ts";

/** One line of a watch. `object` of ERROR is a metav1.Status; of BOOKMARK it has metadata only. */
export type WatchEvent<T> =
  | { type: "ADDED" | "MODIFIED" | "DELETED"; object: T }
  | { type: "BOOKMARK"; resourceVersion: string; isInitialEnd: boolean }
  | { type: "ERROR"; status: unknown };

// On the bookmark after the last initial event of a WatchList.
const initialEventsEnd = "k8s.io/initial-events-end";

/** Checks one parsed line. Throws Invalid if it is no watch event. Pure. */
export function parseWatchEvent<T extends KubeObject>(value: unknown): WatchEvent<T> {
  if (!isObject(value)) throw new AgentError("Invalid", "a watch event is not an object");
  const { type, object } = value;
  if (type === "ERROR") return { type, status: object };
  const metadata = isObject(object) ? object["metadata"] : undefined;
  if (!isObject(metadata)) throw new AgentError("Invalid", `a watch event of type ${String(type)} has no metadata`);
  const { resourceVersion, name, annotations } = metadata;
  if (type === "BOOKMARK") {
    if (typeof resourceVersion !== "string") throw new AgentError("Invalid", "a bookmark has no resourceVersion");
    const isInitialEnd = isObject(annotations) && annotations[initialEventsEnd] === "true";
    return { type, resourceVersion, isInitialEnd };
  }
  if (type !== "ADDED" && type !== "MODIFIED" && type !== "DELETED") {
    throw new AgentError("Invalid", `a watch event has the unknown type ${String(type)}`);
  }
  if (typeof name !== "string") {
    throw new AgentError("Invalid", `a watch event of type ${type} has an object without name`);
  }
  return { type, object: object as T }; // beyond metadata, the API server's schema is the type's source
}
