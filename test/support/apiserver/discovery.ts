import { metricsGroup, metricsVersion } from "./metrics-api.ts";
import { resourceTypes } from "./resources.ts";
import { reviewKinds } from "./reviews.ts";

/** What this server says it is. */
export const versionInfo = {
  major: "1",
  minor: "36",
  gitVersion: "v1.36.2",
  gitCommit: "0000000000000000000000000000000000000000",
  gitTreeState: "clean",
  buildDate: "2026-01-01T00:00:00Z",
  goVersion: "none",
  compiler: "none",
  platform: "linux/amd64",
} as const;

const verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const groups = [
  ...new Set([...resourceTypes.map((r) => r.group), ...Object.values(reviewKinds).map((r) => r.group), metricsGroup]),
].filter((group) => group !== "");

const metricsResources = {
  kind: "APIResourceList",
  apiVersion: "v1",
  groupVersion: `${metricsGroup}/${metricsVersion}`,
  resources: [
    { name: "nodes", singularName: "", namespaced: false, kind: "NodeMetrics", verbs: ["get", "list"] },
    { name: "pods", singularName: "", namespaced: true, kind: "PodMetrics", verbs: ["get", "list"] },
  ],
};

const groupOf = (name: string) => {
  const own = name === metricsGroup ? metricsVersion : "v1";
  const version = { groupVersion: `${name}/${own}`, version: own };
  return { name, versions: [version], preferredVersion: version };
};

// Subresources whose input is of another kind than the object.
const kinds: Readonly<Record<string, { kind: string; group?: string; version?: string; verbs: string[] }>> = {
  attach: { kind: "PodAttachOptions", verbs: ["create", "get"] },
  exec: { kind: "PodExecOptions", verbs: ["create", "get"] },
  portforward: { kind: "PodPortForwardOptions", verbs: ["create", "get"] },
  log: { kind: "Pod", verbs: ["get"] },
  proxy: { kind: "NodeProxyOptions", verbs: ["create", "delete", "get", "patch", "update"] },
  binding: { kind: "Binding", verbs: ["create"] },
  eviction: { kind: "Eviction", group: "policy", version: "v1", verbs: ["create"] },
  token: { kind: "TokenRequest", group: "authentication.k8s.io", version: "v1", verbs: ["create"] },
};

/**
 * Answers the discovery paths, for kubectl to learn what there is.
 *
 * @returns undefined for a path that is none of them
 */
export function discover(path: string, serverAddress: string): unknown {
  const trimmed = path.replace(/\/$/, "");
  switch (trimmed) {
    case "/version":
      return versionInfo;
    case "/api":
      return {
        kind: "APIVersions",
        versions: ["v1"],
        serverAddressByClientCIDRs: [{ clientCIDR: "0.0.0.0/0", serverAddress }],
      };
    case "/apis":
      return { kind: "APIGroupList", apiVersion: "v1", groups: groups.map(groupOf) };
    case "/api/v1":
      return resourceList("");
    default:
  }
  const [, group = "", version] = /^\/apis\/([^/]+)(?:\/([^/]+))?$/.exec(trimmed) ?? [];
  if (!groups.includes(group)) return undefined;
  if (version === undefined) return { kind: "APIGroup", apiVersion: "v1", ...groupOf(group) };
  if (group === metricsGroup) return version === metricsVersion ? metricsResources : undefined;
  return version === "v1" ? resourceList(group) : undefined;
}

function resourceList(group: string): unknown {
  const stored = resourceTypes
    .filter((r) => r.group === group)
    .flatMap((r) => {
      const { plural, singular, kind, namespaced, shortNames, categories } = r;
      const main = {
        name: plural,
        singularName: singular,
        namespaced,
        kind,
        verbs,
        ...(shortNames.length > 0 ? { shortNames } : {}),
        ...(categories.length > 0 ? { categories } : {}),
      };
      const subresources = [...(r.hasStatus ? ["status"] : []), ...r.subresources].map((sub) => {
        const { verbs: own = ["get", "patch", "update"], ...other } = kinds[sub] ?? { kind };
        return { name: `${plural}/${sub}`, singularName: "", namespaced, ...other, verbs: own };
      });
      return [main, ...subresources];
    });
  const reviews = Object.entries(reviewKinds)
    .filter(([, review]) => review.group === group)
    .map(([name, { kind, namespaced }]) => ({
      name,
      singularName: kind.toLowerCase(),
      namespaced,
      kind,
      verbs: ["create"],
    }));
  return {
    kind: "APIResourceList",
    apiVersion: "v1",
    groupVersion: group === "" ? "v1" : `${group}/v1`,
    resources: [...stored, ...reviews],
  };
}
