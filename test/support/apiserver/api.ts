import { objectAt, isObject } from "./json.ts";
import { type ListMeta, negotiate, renderList, renderObject } from "./content.ts";
import type { DeleteOptions } from "./deletion.ts";
import type { Exchange } from "./exchange.ts";
import { keyFor, type PatchOptions, type Registry } from "./registry.ts";
import type { RequestInfo } from "./request-info.ts";
import { type Matcher, matcherOf } from "./selectors.ts";
import { ApiError, badRequest, invalid, invalidValue, methodNotAllowed, success, unknownPath } from "./status.ts";
import type { ApiObject, ResourceType } from "./types.ts";

const patchTypes: Readonly<Record<string, PatchOptions["type"]>> = {
  "application/json-patch+json": "json",
  "application/merge-patch+json": "merge",
  "application/strategic-merge-patch+json": "strategic",
  "application/apply-patch+yaml": "apply",
};

export interface ApiDeps {
  registry: Registry;
  nowMs(): number;
  /** Opens a watch that stays open after the call. */
  watch(exchange: Exchange, resource: ResourceType, matches: Matcher): void;
}

/** Answers the plain verbs on stored objects; subresources with a life of their own are elsewhere. */
export async function serveObjects(exchange: Exchange, info: RequestInfo, deps: ApiDeps): Promise<void> {
  const { resource, subresource, namespace, name, verb } = info;
  if (resource === undefined) throw unknownPath();
  if (
    subresource !== "" &&
    !(subresource === "status" && resource.hasStatus) &&
    !["approval", "ephemeralcontainers", "resize"].includes(subresource)
  ) {
    throw unknownPath();
  }
  if (!resource.namespaced && namespace !== "") throw unknownPath();
  if (resource.namespaced && namespace === "" && !["list", "watch"].includes(verb)) throw methodNotAllowed();
  const { registry } = deps;
  const representation = negotiate(exchange.header("accept"), exchange.url);
  const dryRun = dryRunOf(exchange.query("dryRun"));
  const options = { dryRun, ...(subresource === "" ? {} : { subresource }) };
  const answer = (code: number, object: ApiObject) =>
    exchange.send(code, renderObject(object, resource, representation, deps.nowMs()));

  switch (verb) {
    case "get":
      return answer(200, registry.get(resource, namespace, name));
    case "list":
      return list(exchange, resource, namespace, deps);
    case "watch":
      deps.watch(exchange, resource, scopeOf(exchange, resource, namespace, name));
      return;
    case "create": {
      if (name !== "") throw methodNotAllowed();
      const object = await readApiObject(exchange, resource);
      return answer(201, registry.create(resource, namespace, fillRequest(object, resource, exchange), options));
    }
    case "update": {
      const object = await readApiObject(exchange, resource);
      const existed = registry.store.get(resource.storage, keyFor(resource, namespace, name)) !== undefined;
      return answer(existed ? 200 : 201, registry.update(resource, namespace, name, object, options));
    }
    case "patch": {
      const contentType = (exchange.header("content-type") ?? "").split(";")[0]?.trim() ?? "";
      const type = patchTypes[contentType];
      if (type === undefined) {
        throw new ApiError(
          415,
          "UnsupportedMediaType",
          `the body of the request was in an unknown format - accepted media types include: ${Object.keys(patchTypes).join(", ")}`,
        );
      }
      const patch = await exchange.readObject();
      const fieldManager = exchange.query("fieldManager") ?? "";
      const existed = registry.store.get(resource.storage, keyFor(resource, namespace, name)) !== undefined;
      const patched = registry.patch(resource, namespace, name, patch, { ...options, type, fieldManager });
      return answer(existed ? 200 : 201, patched);
    }
    case "delete": {
      const deleteOptions = await readDeleteOptions(exchange);
      const { object, isGone } = registry.delete(resource, namespace, name, { ...deleteOptions, dryRun });
      if (!isGone || resource.plural === "pods" || resource.plural === "services") return answer(200, object);
      const { uid } = object.metadata;
      const details = { name, kind: resource.plural, ...(resource.group === "" ? {} : { group: resource.group }) };
      return exchange.send(200, success({ ...details, ...(uid === undefined ? {} : { uid }) }));
    }
    case "deletecollection": {
      const deleteOptions = await readDeleteOptions(exchange);
      const matches = scopeOf(exchange, resource, namespace, "");
      const doomed = registry.store
        .list(resource.storage)
        .map(([, object]) => object)
        .filter(matches);
      const gone = doomed.map((object) => {
        const where = object.metadata.namespace ?? "";
        return registry.delete(resource, where, object.metadata.name, { ...deleteOptions, dryRun }).object;
      });
      const meta = { resourceVersion: String(registry.store.revision) };
      return exchange.send(200, renderList(gone, meta, resource, representation, deps.nowMs()));
    }
    default:
      throw methodNotAllowed();
  }
}

/** Whether an object is in the namespace, has the name and fits the selectors of a request. */
function scopeOf(exchange: Exchange, resource: ResourceType, namespace: string, name: string): Matcher {
  const bySelectors = matcherOf(exchange.query("labelSelector"), exchange.query("fieldSelector"));
  const toServed = resource.toServed;
  return (object) =>
    (namespace === "" || !resource.namespaced || object.metadata.namespace === namespace) &&
    (name === "" || object.metadata.name === name) &&
    bySelectors(toServed === undefined ? object : toServed(object));
}

async function list(exchange: Exchange, resource: ResourceType, namespace: string, deps: ApiDeps): Promise<void> {
  const { store } = deps.registry;
  const matches = scopeOf(exchange, resource, namespace, "");
  const representation = negotiate(exchange.header("accept"), exchange.url);
  const limit = Number(exchange.query("limit") ?? 0);
  const page = pageOf(exchange, store.revision);
  const all = page.isExact ? store.listAt(resource.storage, page.revision) : store.list(resource.storage);
  const rest = all.filter(([key, object]) => (page.after === "" || key > page.after) && matches(object));
  const isCut = limit > 0 && rest.length > limit;
  const shown = isCut ? rest.slice(0, limit) : rest;
  const meta: ListMeta = { resourceVersion: String(page.revision) };
  if (isCut) {
    const token = { v: "meta.k8s.io/v1", rv: page.revision, start: shown.at(-1)?.[0] ?? "" };
    meta.continue = Buffer.from(JSON.stringify(token)).toString("base64url");
    const hasSelector = (exchange.query("labelSelector") ?? "") + (exchange.query("fieldSelector") ?? "") !== "";
    if (!hasSelector) meta.remainingItemCount = rest.length - shown.length;
  }
  const objects = shown.map(([, object]) => object);
  await exchange.send(200, renderList(objects, meta, resource, representation, deps.nowMs()));
}

// Which state a list is of: now, an exact past revision, or the one that its first page was cut from.
function pageOf(exchange: Exchange, newest: number): { revision: number; isExact: boolean; after: string } {
  const token = exchange.query("continue") ?? "";
  const version = exchange.query("resourceVersion") ?? "";
  const match = exchange.query("resourceVersionMatch") ?? "";
  if (token !== "") {
    if (version !== "" && version !== "0") {
      throw badRequest("specifying resource version is not allowed when using continue");
    }
    const parsed = parseContinue(token);
    return { revision: parsed.rv, isExact: true, after: parsed.start };
  }
  if (match !== "" && match !== "Exact" && match !== "NotOlderThan") {
    const options = { group: "meta.k8s.io", kind: "ListOptions" };
    throw invalid(options, "", [
      { field: "resourceVersionMatch", reason: "FieldValueNotSupported", message: `Unsupported value: "${match}"` },
    ]);
  }
  if (match !== "" && version === "") {
    throw invalid({ group: "meta.k8s.io", kind: "ListOptions" }, "", [
      {
        field: "resourceVersionMatch",
        reason: "FieldValueForbidden",
        message: "Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
      },
    ]);
  }
  const revision = parseVersion(version);
  if (revision > newest) {
    throw new ApiError(504, "Timeout", `Too large resource version: ${revision}, current: ${newest}`, {
      causes: [{ reason: "ResourceVersionTooLarge", message: "Too large resource version" }],
      retryAfterSeconds: 1,
    });
  }
  if (match === "Exact") return { revision, isExact: true, after: "" };
  return { revision: newest, isExact: false, after: "" };
}

function parseContinue(token: string): { rv: number; start: string } {
  try {
    const value: unknown = JSON.parse(Buffer.from(token, "base64url").toString("utf8"));
    if (isObject(value) && typeof value["rv"] === "number" && typeof value["start"] === "string") {
      return { rv: value["rv"], start: value["start"] };
    }
  } catch {
    // Answered below, as any other token that is none of ours.
  }
  throw badRequest("continue key is not valid");
}

/** A resourceVersion parameter as a number, 0 when absent. Throws 400. */
export function parseVersion(text: string): number {
  if (text === "") return 0;
  if (!/^\d+$/.test(text)) {
    throw invalid({ group: "meta.k8s.io", kind: "ListOptions" }, "", [
      invalidValue("resourceVersion", text, "strconv.ParseUint: parsing: invalid syntax"),
    ]);
  }
  return Number(text);
}

async function readApiObject(exchange: Exchange, resource: ResourceType): Promise<ApiObject> {
  const body = await exchange.readObject();
  if (!isObject(body)) throw badRequest("the request needs an object as its body");
  const metadata = { name: "", ...objectAt(body, "metadata") };
  const version = resource.group === "" ? resource.version : `${resource.group}/${resource.version}`;
  const object = {
    ...body,
    apiVersion: body["apiVersion"] ?? version,
    kind: body["kind"] ?? resource.kind,
    metadata,
  } as ApiObject;
  return resource.toStored?.(object) ?? object;
}

// A signing request says who made it, whatever its body claims.
function fillRequest(object: ApiObject, resource: ResourceType, { user }: Exchange): ApiObject {
  if (resource.plural !== "certificatesigningrequests") return object;
  const spec = { ...objectAt(object, "spec"), username: user.name, groups: user.groups };
  return { ...object, spec, status: {} };
}

async function readDeleteOptions(exchange: Exchange): Promise<DeleteOptions> {
  const body = await exchange.readObject();
  const fromQuery = exchange.query("gracePeriodSeconds");
  const options: DeleteOptions = {};
  if (isObject(body)) {
    if (typeof body["gracePeriodSeconds"] === "number") options.gracePeriodSeconds = body["gracePeriodSeconds"];
    const { uid, resourceVersion } = objectAt(body, "preconditions");
    options.preconditions = {
      ...(typeof uid === "string" ? { uid } : {}),
      ...(typeof resourceVersion === "string" ? { resourceVersion } : {}),
    };
  } else if (fromQuery !== undefined) {
    options.gracePeriodSeconds = Number(fromQuery);
  }
  return options;
}

function dryRunOf(value: string | undefined): boolean {
  if (value === undefined || value === "") return false;
  if (value !== "All") {
    throw invalid({ group: "meta.k8s.io", kind: "CreateOptions" }, "", [
      {
        field: "dryRun",
        reason: "FieldValueNotSupported",
        message: `Unsupported value: "${value}": supported values: "All"`,
      },
    ]);
  }
  return true;
}
