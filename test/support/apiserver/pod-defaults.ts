import { parseQuantity } from "../../../agent/kube/quantity.ts";
import type {
  Container,
  EphemeralContainer,
  LifecycleHandler,
  Pod,
  PodSpec,
  Probe,
  QOSClass,
  ResourceRequirements,
  Toleration,
  Volume,
} from "../../../agent/kube/types.ts";

// Value the API gives files of configMap, secret, downwardAPI and projected volumes: 0644.
const fileModeDefault = 0o644;
// DefaultTolerationSeconds admission: a pod stays 5 minutes on a node that is not ready or unreachable.
const tolerationSecondsDefault = 300;

/** Fills in what the API server would. Changes `pod`, which must be a private copy that has passed the shape check. */
export function applyPodDefaults(pod: Pod): void {
  const { spec } = pod;
  spec.restartPolicy ??= "Always";
  spec.terminationGracePeriodSeconds ??= 30;
  spec.dnsPolicy ??= "ClusterFirst";
  spec.securityContext ??= {};
  spec.schedulerName ??= "default-scheduler";
  spec.enableServiceLinks ??= true;
  if (spec.hostNetwork === true) defaultHostPorts(spec);
  for (const container of spec.initContainers ?? []) applyContainerDefaults(container);
  for (const container of spec.containers) applyContainerDefaults(container);
  applyEphemeralContainerDefaults(spec.ephemeralContainers ?? []);
  for (const volume of spec.volumes ?? []) applyVolumeDefaults(volume);
}

/** Defaults of ephemeral containers; they have no resources and no resize policy. */
export function applyEphemeralContainerDefaults(containers: EphemeralContainer[]): void {
  for (const container of containers) applyContainerDefaults(container);
}

function defaultHostPorts(spec: PodSpec): void {
  for (const container of [...(spec.initContainers ?? []), ...spec.containers]) {
    for (const port of container.ports ?? []) port.hostPort ??= port.containerPort;
  }
}

function applyContainerDefaults(container: Container): void {
  container.terminationMessagePath ??= "/dev/termination-log";
  container.terminationMessagePolicy ??= "File";
  container.imagePullPolicy ??= pullPolicyOf(container.image ?? "");
  container.resources ??= {};
  for (const port of container.ports ?? []) port.protocol ??= "TCP";
  for (const variable of container.env ?? []) {
    if (variable.valueFrom?.fieldRef !== undefined) variable.valueFrom.fieldRef.apiVersion ??= "v1";
    if (variable.valueFrom?.resourceFieldRef !== undefined) variable.valueFrom.resourceFieldRef.divisor ??= "0";
  }
  const { limits, requests } = container.resources;
  if (limits !== undefined) container.resources.requests = { ...limits, ...requests };
  const sized = ["cpu", "memory"].filter((name) => limits?.[name] !== undefined || requests?.[name] !== undefined);
  if (sized.length > 0) {
    container.resizePolicy ??= [];
    for (const resourceName of sized) {
      if (container.resizePolicy.some((p) => p.resourceName === resourceName)) continue;
      container.resizePolicy.push({ resourceName, restartPolicy: "NotRequired" });
    }
  }
  for (const probe of [container.livenessProbe, container.readinessProbe, container.startupProbe]) {
    if (probe !== undefined) applyProbeDefaults(probe);
  }
  for (const handler of [container.lifecycle?.postStart, container.lifecycle?.preStop]) {
    if (handler !== undefined) applyHandlerDefaults(handler);
  }
}

/** Always for `:latest` or no tag, IfNotPresent for another tag or a digest. */
export function pullPolicyOf(image: string): "Always" | "IfNotPresent" {
  if (image.includes("@")) return "IfNotPresent";
  const tag = /:([^:/]+)$/.exec(image)?.[1];
  return tag === undefined || tag === "latest" ? "Always" : "IfNotPresent";
}

function applyProbeDefaults(probe: Probe): void {
  probe.timeoutSeconds ??= 1;
  probe.periodSeconds ??= 10;
  probe.successThreshold ??= 1;
  probe.failureThreshold ??= 3;
  if (probe.grpc !== undefined) probe.grpc.service ??= "";
  applyHandlerDefaults(probe);
}

function applyHandlerDefaults(handler: Pick<LifecycleHandler, "httpGet">): void {
  if (handler.httpGet === undefined) return;
  handler.httpGet.path ??= "/";
  handler.httpGet.scheme ??= "HTTP";
}

const volumeKinds = [
  "awsElasticBlockStore",
  "azureDisk",
  "azureFile",
  "cephfs",
  "cinder",
  "configMap",
  "csi",
  "downwardAPI",
  "emptyDir",
  "ephemeral",
  "fc",
  "flexVolume",
  "flocker",
  "gcePersistentDisk",
  "gitRepo",
  "glusterfs",
  "hostPath",
  "image",
  "iscsi",
  "nfs",
  "persistentVolumeClaim",
  "photonPersistentDisk",
  "portworxVolume",
  "projected",
  "quobyte",
  "rbd",
  "scaleIO",
  "secret",
  "storageos",
  "vsphereVolume",
];

function applyVolumeDefaults(volume: Volume): void {
  if (!volumeKinds.some((kind) => volume[kind] !== undefined)) volume.emptyDir = {};
  if (volume.hostPath !== undefined) volume.hostPath.type ??= "";
  for (const source of [volume.configMap, volume.secret, volume.downwardAPI, volume.projected]) {
    if (source !== undefined) source.defaultMode ??= fileModeDefault;
  }
  for (const item of volume.downwardAPI?.items ?? []) defaultFieldRef(item);
  for (const source of volume.projected?.sources ?? []) {
    if (source.serviceAccountToken !== undefined) source.serviceAccountToken.expirationSeconds ??= 3600;
    for (const item of source.downwardAPI?.items ?? []) defaultFieldRef(item);
  }
}

function defaultFieldRef(item: { fieldRef?: { apiVersion?: string }; resourceFieldRef?: { divisor?: unknown } }): void {
  if (item.fieldRef !== undefined) item.fieldRef.apiVersion ??= "v1";
  if (item.resourceFieldRef !== undefined) item.resourceFieldRef.divisor ??= "0";
}

/** The two tolerations that every pod gets unless it has its own for that taint. */
export function addDefaultTolerations(spec: PodSpec): void {
  const own = spec.tolerations ?? [];
  const added: Toleration[] = [];
  for (const key of ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"]) {
    const has = own.some(
      (t) =>
        (t.key === key || t.key === undefined || t.key === "") &&
        (t.effect === "NoExecute" || t.effect === undefined || t.effect === ""),
    );
    if (!has) added.push({ key, operator: "Exists", effect: "NoExecute", tolerationSeconds: tolerationSecondsDefault });
  }
  if (own.length + added.length > 0) spec.tolerations = [...own, ...added];
}

/** QoS class as the API server writes it at creation: from CPU and memory of all containers, or of the pod as a whole. */
export function qosClassOf(spec: PodSpec): QOSClass {
  const holders: ResourceRequirements[] =
    spec.resources !== undefined
      ? [spec.resources]
      : [...(spec.initContainers ?? []), ...spec.containers].map((c) => c.resources ?? {});
  let isGuaranteed = true;
  let isBestEffort = true;
  for (const { requests = {}, limits = {} } of holders) {
    for (const name of ["cpu", "memory"]) {
      const limit = limits[name] === undefined ? 0n : (parseQuantity(limits[name]) ?? 0n);
      const request = requests[name] === undefined ? limit : (parseQuantity(requests[name]) ?? 0n);
      if (limit > 0n || request > 0n) isBestEffort = false;
      if (limit === 0n || limit !== request) isGuaranteed = false;
    }
  }
  return isBestEffort ? "BestEffort" : isGuaranteed ? "Guaranteed" : "Burstable";
}
