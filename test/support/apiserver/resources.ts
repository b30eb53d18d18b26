import { toCoreEvent, toNewEvent } from "./events.ts";
import type { ResourceType } from "./types.ts";

type Spec = Partial<Omit<ResourceType, "group" | "plural" | "kind">>;

function resource(group: string, plural: string, kind: string, spec: Spec = {}): ResourceType {
  return {
    group,
    version: "v1",
    plural,
    singular: kind.toLowerCase(),
    kind,
    namespaced: true,
    shortNames: [],
    categories: [],
    hasStatus: false,
    subresources: [],
    storage: group === "" ? plural : `${plural}.${group}`,
    createOnUpdate: false,
    unconditionalUpdate: true,
    ...spec,
  };
}

const cluster = { namespaced: false } as const;
const status = { hasStatus: true } as const;

/** Everything with stored objects. Reviews and token requests are calls, see reviews.ts. */
export const resourceTypes: readonly ResourceType[] = [
  resource("", "namespaces", "Namespace", { ...cluster, ...status, shortNames: ["ns"], subresources: ["finalize"] }),
  resource("", "nodes", "Node", { ...cluster, ...status, shortNames: ["no"], subresources: ["proxy"] }),
  resource("", "pods", "Pod", {
    ...status,
    shortNames: ["po"],
    categories: ["all"],
    generationOf: ["spec"],
    subresources: [
      "attach",
      "binding",
      "ephemeralcontainers",
      "eviction",
      "exec",
      "log",
      "portforward",
      "proxy",
      "resize",
    ],
  }),
  resource("", "services", "Service", { ...status, shortNames: ["svc"], categories: ["all"] }),
  resource("", "endpoints", "Endpoints", { singular: "endpoints", shortNames: ["ep"] }),
  resource("", "configmaps", "ConfigMap", { shortNames: ["cm"] }),
  resource("", "secrets", "Secret"),
  resource("", "events", "Event", { shortNames: ["ev"], createOnUpdate: true }),
  resource("", "serviceaccounts", "ServiceAccount", { shortNames: ["sa"], subresources: ["token"] }),
  resource("", "persistentvolumes", "PersistentVolume", { ...cluster, ...status, shortNames: ["pv"] }),
  resource("", "persistentvolumeclaims", "PersistentVolumeClaim", { ...status, shortNames: ["pvc"] }),
  resource("discovery.k8s.io", "endpointslices", "EndpointSlice", { generationOf: ["endpoints", "ports"] }),
  resource("coordination.k8s.io", "leases", "Lease", { createOnUpdate: true, unconditionalUpdate: false }),
  resource("node.k8s.io", "runtimeclasses", "RuntimeClass", cluster),
  resource("storage.k8s.io", "csinodes", "CSINode", cluster),
  resource("storage.k8s.io", "csidrivers", "CSIDriver", cluster),
  resource("storage.k8s.io", "storageclasses", "StorageClass", { ...cluster, shortNames: ["sc"] }),
  resource("storage.k8s.io", "volumeattachments", "VolumeAttachment", { ...cluster, ...status }),
  resource("certificates.k8s.io", "certificatesigningrequests", "CertificateSigningRequest", {
    ...cluster,
    ...status,
    shortNames: ["csr"],
    subresources: ["approval"],
  }),
  resource("certificates.k8s.io", "podcertificaterequests", "PodCertificateRequest", { version: "v1beta1", ...status }),
  resource("certificates.k8s.io", "clustertrustbundles", "ClusterTrustBundle", { version: "v1beta1", ...cluster }),
  resource("events.k8s.io", "events", "Event", {
    shortNames: ["ev"],
    createOnUpdate: true,
    storage: "events",
    toServed: toNewEvent,
    toStored: toCoreEvent,
  }),
  resource("scheduling.k8s.io", "priorityclasses", "PriorityClass", {
    ...cluster,
    shortNames: ["pc"],
    generationOf: ["value"],
  }),
  resource("networking.k8s.io", "ingresses", "Ingress", { ...status, shortNames: ["ing"], generationOf: ["spec"] }),
  resource("networking.k8s.io", "ipaddresses", "IPAddress", { ...cluster, shortNames: ["ip"] }),
  resource("networking.k8s.io", "servicecidrs", "ServiceCIDR", { ...cluster, ...status, generationOf: ["spec"] }),
  resource("policy", "poddisruptionbudgets", "PodDisruptionBudget", {
    ...status,
    shortNames: ["pdb"],
    generationOf: ["spec"],
  }),
];

const byPath = new Map(resourceTypes.map((r) => [`${r.group}/${r.version}/${r.plural}`, r]));

/** The resource served under a group, version and plural name. */
export function findResource(group: string, version: string, plural: string): ResourceType | undefined {
  return byPath.get(`${group}/${version}/${plural}`);
}

/** Like {@link findResource} for callers that know it exists. */
export function resourceOf(group: string, plural: string): ResourceType {
  const found = resourceTypes.find((type) => type.group === group && type.plural === plural);
  if (found === undefined) throw new Error(`the test API server has no resource ${plural}.${group}`);
  return found;
}

/** "v1" or "group/v1". */
export function apiVersionOf(resource: { group: string; version: string }): string {
  return resource.group === "" ? resource.version : `${resource.group}/${resource.version}`;
}
