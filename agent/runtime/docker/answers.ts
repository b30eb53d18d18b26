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

/** The fields of an object; none of what is no object. */
export function fieldsOf(value: unknown): Record<string, unknown> {
  return isObject(value) ? value : {};
}

/** "" for what is no text. */
export function textOf(value: unknown): string {
  return typeof value === "string" ? value : "";
}

/** The texts of a list; none of what is no list. */
export function textsOf(value: unknown): string[] {
  return Array.isArray(value) ? value.filter((item) => typeof item === "string") : [];
}

/** Undefined for what is no JSON. */
export function parseJSON(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
