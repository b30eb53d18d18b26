import { findResource } from "./resources.ts";
import type { ResourceType } from "./types.ts";

/** What a path and method of the API mean. */
export interface RequestInfo {
  /** get, list, watch, create, update, patch, delete, deletecollection; the lower-case method outside of resources. */
  readonly verb: string;
  readonly group: string;
  readonly version: string;
  /** Plural name as in the path; "" when the path is not about a resource. */
  readonly plural: string;
  readonly subresource: string;
  readonly namespace: string;
  readonly name: string;
  /** Rest of the path behind `proxy`. */
  readonly rest: string;
  /** The resource, when its objects are stored. */
  readonly resource: ResourceType | undefined;
}

/** Reads a request line. Pure; never throws. */
export function requestInfo(method: string, url: URL): RequestInfo {
  const parts = url.pathname
    .split("/")
    .filter((p) => p !== "")
    .map(decode);
  let group = "";
  let version = "";
  let at: number;
  if (parts[0] === "api" && parts.length > 2) {
    version = parts[1] ?? "";
    at = 2;
  } else if (parts[0] === "apis" && parts.length > 3) {
    group = parts[1] ?? "";
    version = parts[2] ?? "";
    at = 3;
  } else {
    return nonResource(method);
  }

  let namespace = "";
  // `namespaces/NAME` alone, and its own subresources, are about the namespace itself.
  const isInside =
    parts[at] === "namespaces" && parts.length > at + 2 && !["status", "finalize"].includes(parts[at + 2] ?? "");
  if (isInside) {
    namespace = parts[at + 1] ?? "";
    at += 2;
  }
  const [plural = "", name = "", subresource = "", ...rest] = parts.slice(at);
  const isWatch = isTrue(url.searchParams.get("watch"));
  const resource = findResource(group, version, plural);
  return {
    verb: verbOf(method, name, isWatch),
    group,
    version,
    plural,
    subresource,
    namespace,
    name,
    // The slash at the end makes another path of it for who is behind a proxy.
    rest: rest.join("/") + (rest.length > 0 && url.pathname.endsWith("/") ? "/" : ""),
    resource,
  };
}

function nonResource(method: string): RequestInfo {
  const verb = method.toLowerCase();
  return {
    verb,
    group: "",
    version: "",
    plural: "",
    subresource: "",
    namespace: "",
    name: "",
    rest: "",
    resource: undefined,
  };
}

function verbOf(method: string, name: string, isWatch: boolean): string {
  switch (method) {
    case "GET":
    case "HEAD":
      return isWatch ? "watch" : name === "" ? "list" : "get";
    case "POST":
      return "create";
    case "PUT":
      return "update";
    case "PATCH":
      return "patch";
    case "DELETE":
      return name === "" ? "deletecollection" : "delete";
    default:
      return method.toLowerCase();
  }
}

/** A boolean query parameter; present without a value counts as true, as in the API. */
export function isTrue(value: string | null): boolean {
  return value !== null && value !== "false" && value !== "0";
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}
