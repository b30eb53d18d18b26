import { versionInfo } from "./discovery.ts";
import { protobufField } from "./protobuf.ts";
import { resourceTypes } from "./resources.ts";

/** The body of an OpenAPI path and its content type. */
export interface OpenApiAnswer {
  contentType: string;
  body: string | Buffer;
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
    if (accept.includes("protobuf") && !accept.includes("application/json")) {
      return { contentType: "application/com.github.proto-openapi.spec.v2.v1.0+protobuf", body: binaryDocument() };
    }
    return json({ swagger: "2.0", info, paths: {}, definitions: {} });
  }
  if (path === "/openapi/v3") {
    const paths = [...new Set(resourceTypes.map(groupPath))];
    return json({ paths: Object.fromEntries(paths.map((p) => [p, { serverRelativeURL: `/openapi/v3/${p}?hash=0` }])) });
  }
  const wanted = /^\/openapi\/v3\/(.+)$/.exec(path)?.[1];
  const resources = resourceTypes.filter((r) => groupPath(r) === wanted);
  if (resources.length === 0) return undefined;
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

/**
 * The version 2 document as a protobuf message, all that old kubectls read of it: that PATCH of each kind takes `dryRun`.
 * Numbers are those of gnostic's openapi_v2.Document.
 */
function binaryDocument(): Buffer {
  const field = protobufField;
  const paths = resourceTypes.map((resource) => {
    const { group, version, kind, plural } = resource;
    const dryRun = field(1, field(2, field(3, field(2, "query"), field(4, "dryRun"), field(6, "string"))));
    const gvk = field(2, field(2, `group: "${group}"\nkind: ${kind}\nversion: ${version}\n`));
    const patch = field(8, field(8, dryRun), field(13, field(1, "x-kubernetes-group-version-kind"), gvk));
    return field(2, field(1, `/${groupPath(resource)}/${plural}/{name}`), field(2, patch));
  });
  const info = field(2, field(1, "Kubernetes"), field(2, versionInfo.gitVersion));
  return Buffer.concat([field(1, "2.0"), info, field(8, ...paths)]);
}

function groupPath({ group, version }: { group: string; version: string }): string {
  return group === "" ? `api/${version}` : `apis/${group}/${version}`;
}

function json(document: unknown): OpenApiAnswer {
  return { contentType: "application/json", body: JSON.stringify(document) };
}
