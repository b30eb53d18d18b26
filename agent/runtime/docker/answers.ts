import { AgentError } from "../../lib/errors.ts";
import { isObject } from "../../lib/json.ts";
import type { WireContainer } from "./wire.ts";

/** The objects of a list that the daemon answered. Throws Internal if it is none: that must not look like "there are none". */
export function objectsIn(answer: unknown, what: string): Record<string, unknown>[] {
  if (!Array.isArray(answer)) throw new AgentError("Internal", `${what}: the Docker daemon's answer is no list`);
  return answer.filter(isObject);
}

/** The containers of a list that the daemon answered. Throws as {@link objectsIn}. */
export function containersIn(answer: unknown, what: string): WireContainer[] {
  return objectsIn(answer, what).filter(
    (one): one is Record<string, unknown> & WireContainer => typeof one["Id"] === "string",
  );
}
