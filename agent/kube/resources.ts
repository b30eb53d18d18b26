import type { CertificateSigningRequest, ClusterTrustBundle, PodCertificateRequest } from "./certificate-types.ts";
import type { Resource } from "./port.ts";
import type {
  ConfigMap,
  CoreEvent,
  CSIDriver,
  CSINode,
  EndpointSlice,
  KubeObject,
  Lease,
  Node,
  PersistentVolume,
  PersistentVolumeClaim,
  Pod,
  RuntimeClass,
  Secret,
  Service,
  ServiceCIDR,
  VolumeAttachment,
} from "./types.ts";

export const pods: Resource<Pod> = core("pods", "Pod");
export const nodes: Resource<Node> = { ...core<Node>("nodes", "Node"), namespaced: false };
export const services: Resource<Service> = core("services", "Service");
export const configMaps: Resource<ConfigMap> = core("configmaps", "ConfigMap");
export const secrets: Resource<Secret> = core("secrets", "Secret");
export const events: Resource<CoreEvent> = core("events", "Event");
export const serviceAccounts: Resource<KubeObject> = core("serviceaccounts", "ServiceAccount");
export const persistentVolumeClaims: Resource<PersistentVolumeClaim> = core(
  "persistentvolumeclaims",
  "PersistentVolumeClaim",
);
export const persistentVolumes: Resource<PersistentVolume> = {
  ...core<PersistentVolume>("persistentvolumes", "PersistentVolume"),
  namespaced: false,
};
export const volumeAttachments: Resource<VolumeAttachment> = storage("volumeattachments", "VolumeAttachment");
export const csiDrivers: Resource<CSIDriver> = storage("csidrivers", "CSIDriver");
export const csiNodes: Resource<CSINode> = storage("csinodes", "CSINode");
export const endpointSlices: Resource<EndpointSlice> = {
  group: "discovery.k8s.io",
  version: "v1",
  plural: "endpointslices",
  kind: "EndpointSlice",
  namespaced: true,
};
export const serviceCIDRs: Resource<ServiceCIDR> = {
  group: "networking.k8s.io",
  version: "v1",
  plural: "servicecidrs",
  kind: "ServiceCIDR",
  namespaced: false,
};
export const leases: Resource<Lease> = {
  group: "coordination.k8s.io",
  version: "v1",
  plural: "leases",
  kind: "Lease",
  namespaced: true,
};
export const runtimeClasses: Resource<RuntimeClass> = {
  group: "node.k8s.io",
  version: "v1",
  plural: "runtimeclasses",
  kind: "RuntimeClass",
  namespaced: false,
};
export const certificateSigningRequests: Resource<CertificateSigningRequest> = {
  group: "certificates.k8s.io",
  version: "v1",
  plural: "certificatesigningrequests",
  kind: "CertificateSigningRequest",
  namespaced: false,
};
export const podCertificateRequests: Resource<PodCertificateRequest> = {
  group: "certificates.k8s.io",
  version: "v1beta1",
  plural: "podcertificaterequests",
  kind: "PodCertificateRequest",
  namespaced: true,
};
/** In the order in which they are preferred: which of them a server has depends on its version and switches. */
export const clusterTrustBundles: readonly Resource<ClusterTrustBundle>[] = ["v1beta1", "v1alpha1"].map((version) => ({
  group: "certificates.k8s.io",
  version,
  plural: "clustertrustbundles",
  kind: "ClusterTrustBundle",
  namespaced: false,
}));

function core<T extends KubeObject>(plural: string, kind: string): Resource<T> {
  return { group: "", version: "v1", plural, kind, namespaced: true };
}

function storage<T extends KubeObject>(plural: string, kind: string): Resource<T> {
  return { group: "storage.k8s.io", version: "v1", plural, kind, namespaced: false };
}
