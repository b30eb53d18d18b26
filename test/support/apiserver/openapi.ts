import { versionInfo } from "./discovery.ts";
import { resourceTypes } from "./resources.ts";

/** The body of an OpenAPI path and its content type. */
export interface OpenApiAnswer {
  contentType: string;
  body: string;
}

/**
 * Answers the OpenAPI paths with documents that name no fields: kubectl then leaves validation to the server, whose
 * PATCH it learns here to take `fieldValidation`, and merges by its own knowledge of the types.
 *
 * @returns undefined for a path that is none of them
 */
export function openApi(path: string, accept: string): OpenApiAnswer | undefined {
  const info = { title: "Kubernetes", version: versionInfo.gitVersion };
  if (path === "/openapi/v2") {
    // An empty protobuf message is a valid document without definitions.
    if (accept.includes("protobuf") && !accept.includes("application/json")) {
      return { contentType: "application/com.github.proto-openapi.spec.v2.v1.0+protobuf", body: "" };
    }
    return json({ swagger: "2.0", info, paths: {}, definitions: {} });
  }
  if (path === "/openapi/v3") {
    const paths = [...new Set(resourceTypes.map(groupPath))];
    return json({ paths: Object.fromEntries(paths.map((p) => [p, { serverRelativeURL: `/openapi/v3/${p}?hash=0` }])) });
  }
  const wanted = /^\/openapi\/v3\/(.+)$/.exec(path)?.[1];
  const resources = resourceTypes.filter((r) => groupPath(r) === wanted);
  if (resources.length === 0) {
    return undefined;
  }
  const paths = resources.map(({ group, version, kind, plural, namespaced }) => {
    const query = (name: string) => ({ name, in: "query", schema: { type: "string", uniqueItems: true } });
    const patch = {
      parameters: [query("dryRun"), query("fieldManager"), query("fieldValidation")],
      responses: {},
      "x-kubernetes-action": "patch",
      "x-kubernetes-group-version-kind": { group, version, kind },
    };
    return [`/${wanted}/${namespaced ? "namespaces/{namespace}/" : ""}${plural}/{name}`, { patch }];
  });
  return json({ openapi: "3.0.0", info, paths: Object.fromEntries(paths), components: { schemas: {} } });
}

function groupPath({ group, version }: { group: string; version: string }): string {
  return group === "" ? `api/${version}` : `apis/${group}/${version}`;
}

function json(document: unknown): OpenApiAnswer {
  return { contentType: "application/json", body: JSON.stringify(document) };
}
