import { tableOf } from "./tables.ts";
import { ApiError } from "./status.ts";
import type { ApiObject, ResourceType } from "./types.ts";

/** How the client wants objects. */
export type Representation =
  | { kind: "object" }
  /** For `kubectl get`: rows that the server has laid out. */
  | { kind: "table"; includeObject: "None" | "Metadata" | "Object" }
  | { kind: "metadata" };

/** Picks from an Accept header. Throws 406 when nothing in it can be served: only JSON can. */
export function negotiate(accept: string | undefined, url: URL): Representation {
  const wanted = (accept ?? "*/*").split(",").map((part) => {
    const [type = "", ...parameters] = part.split(";").map((p) => p.trim());
    return { type, parameters: new Map(parameters.map((p) => p.split("=", 2) as [string, string])) };
  });
  for (const { type, parameters } of wanted) {
    if (!["application/json", "application/*", "*/*"].includes(type)) continue;
    switch (parameters.get("as")) {
      case "Table": {
        const include = url.searchParams.get("includeObject");
        return { kind: "table", includeObject: include === "None" || include === "Object" ? include : "Metadata" };
      }
      case "PartialObjectMetadata":
      case "PartialObjectMetadataList":
        return { kind: "metadata" };
      case undefined:
        return { kind: "object" };
      default:
    }
  }
  throw new ApiError(
    406,
    "NotAcceptable",
    "only the following media types are accepted: application/json, application/json;stream=watch",
  );
}

const wholeTexts = new WeakMap<ApiObject, string>();
const itemTexts = new WeakMap<ApiObject, string>();

/** JSON of a stored object, remembered: many watchers get the same text. */
export function objectText(object: ApiObject): string {
  let text = wholeTexts.get(object);
  if (text === undefined) {
    text = JSON.stringify(object);
    wholeTexts.set(object, text);
  }
  return text;
}

// Items of a list carry no kind and apiVersion: the list's says it.
function itemText(object: ApiObject): string {
  let text = itemTexts.get(object);
  if (text === undefined) {
    const { apiVersion: _apiVersion, kind: _kind, ...rest } = object;
    text = JSON.stringify(rest);
    itemTexts.set(object, text);
  }
  return text;
}

/** The body for one object. */
export function renderObject(object: ApiObject, resource: ResourceType, how: Representation, nowMs: number): string {
  const served = resource.toServed?.(object) ?? object;
  switch (how.kind) {
    case "object":
      return objectText(served);
    case "metadata":
      return JSON.stringify(metadataOnly(served));
    case "table":
      return JSON.stringify(
        tableOf(resource, [served], {
          nowMs,
          includeObject: how.includeObject,
          resourceVersion: object.metadata.resourceVersion ?? "",
        }),
      );
  }
}

export interface ListMeta {
  resourceVersion: string;
  continue?: string;
  remainingItemCount?: number;
}

/** The body for a list. */
export function renderList(
  objects: readonly ApiObject[],
  meta: ListMeta,
  resource: ResourceType,
  how: Representation,
  nowMs: number,
): string {
  const toServed = resource.toServed;
  const served = toServed === undefined ? objects : objects.map((o) => toServed(o));
  const apiVersion = resource.group === "" ? resource.version : `${resource.group}/${resource.version}`;
  switch (how.kind) {
    case "object": {
      const items = served.map(itemText).join(",");
      return `{"kind":"${resource.kind}List","apiVersion":"${apiVersion}","metadata":${JSON.stringify(meta)},"items":[${items}]}`;
    }
    case "metadata":
      return JSON.stringify({
        kind: "PartialObjectMetadataList",
        apiVersion: "meta.k8s.io/v1",
        metadata: meta,
        items: served.map(metadataOnly),
      });
    case "table":
      return JSON.stringify({
        ...tableOf(resource, served, {
          nowMs,
          includeObject: how.includeObject,
          resourceVersion: meta.resourceVersion,
        }),
        metadata: meta,
      });
  }
}

/** An object's type and metadata, nothing else. */
export function metadataOnly({ metadata }: ApiObject): ApiObject {
  return { kind: "PartialObjectMetadata", apiVersion: "meta.k8s.io/v1", metadata };
}
