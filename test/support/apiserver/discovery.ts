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

/** The preferred one first. */
const versionsOf = (group: string): string[] => {
  if (group === metricsGroup) return [metricsVersion];
  const others = resourceTypes.filter((r) => r.group === group).map((r) => r.version);
  return [...new Set(["v1", ...others])];
};

const groupOf = (name: string) => {
  const versions = versionsOf(name).map((version) => ({ groupVersion: `${name}/${version}`, version }));
  return { name, versions, preferredVersion: versions[0] };
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
      return resourceList("", "v1");
    default:
  }
  const [, group = "", version] = /^\/apis\/([^/]+)(?:\/([^/]+))?$/.exec(trimmed) ?? [];
  if (!groups.includes(group)) return undefined;
  if (version === undefined) return { kind: "APIGroup", apiVersion: "v1", ...groupOf(group) };
  if (group === metricsGroup) return version === metricsVersion ? metricsResources : undefined;
  return versionsOf(group).includes(version) ? resourceList(group, version) : undefined;
}

function resourceList(group: string, version: string): unknown {
  const stored = resourceTypes
    .filter((r) => r.group === group && r.version === version)
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
    .filter(([, review]) => review.group === group && version === "v1")
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
    groupVersion: group === "" ? version : `${group}/${version}`,
    resources: [...stored, ...reviews],
  };
}
