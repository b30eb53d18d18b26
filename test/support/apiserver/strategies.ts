import { randomBytes } from "node:crypto";
import type { CSINode, Node, Pod, Service } from "../../../agent/kube/types.ts";
import { isObject, type JsonObject, jsonEqual, objectAt, stringAt } from "./json.ts";
import { addDefaultTolerations, applyPodDefaults, qosClassOf } from "./pod-defaults.ts";
import { applyServiceDefaults, type ServiceNetwork } from "./service-network.ts";
import { type FieldError, forbidden, forbiddenField, required } from "./status.ts";
import type { Store } from "./store.ts";
import { type ApiObject, type ResourceType, typed } from "./types.ts";
import { validateService, validateServiceUpdate } from "./service-validation.ts";
import { validatePod, validatePodUpdate } from "./validation.ts";

/** What a strategy may look at. */
export interface StrategyContext {
  readonly store: Store;
  readonly network: ServiceNetwork;
  readonly resource: ResourceType;
  /** Pods get and need a service account, as with the admission plugin of that name. */
  readonly serviceAccountAdmission: boolean;
  /** /16 or so from which each new node gets a /24 as podCIDR. */
  readonly clusterCIDR: string | undefined;
  /** New nodes get the not-ready taint, which the node lifecycle controller takes away. */
  readonly taintNewNodes: boolean;
  now(): string;
}

/**
 * What one kind does beyond being stored. All functions get private copies that they may change; they throw an
 * ApiError to refuse, or return wrong fields.
 */
export interface Strategy {
  create?(object: ApiObject, context: StrategyContext): FieldError[];
  update?(next: ApiObject, old: ApiObject, context: StrategyContext): FieldError[];
  /** The object is gone. */
  removed?(object: ApiObject, context: StrategyContext): void;
}

const strategies: Readonly<Record<string, Strategy>> = {
  pods: { create: createPod, update: updatePod },
  services: {
    create: createService,
    update: updateService,
    removed: (object, { network }) => network.release(typed<Service>(object)),
  },
  nodes: { create: createNode },
  namespaces: { create: createNamespace },
  secrets: { create: createSecret, update: updateSecret },
  configmaps: { update: refuseImmutable },
  endpointslices: { create: createEndpointSlice, update: defaultSlicePorts },
  persistentvolumes: { create: createStorage },
  persistentvolumeclaims: { create: createStorage },
  storageclasses: {
    create: (object) => {
      setDefault(object, "reclaimPolicy", "Delete");
      return setDefault(object, "volumeBindingMode", "Immediate");
    },
  },
  priorityclasses: { create: (object) => setDefault(object, "preemptionPolicy", "PreemptLowerPriority") },
  runtimeclasses: { create: (object) => (stringAt(object, "handler") === "" ? [required("handler")] : []) },
  csidrivers: { create: createCsiDriver },
  csinodes: { update: refuseChangedDriver },
};

const none: Strategy = {};

export function strategyOf(resource: ResourceType): Strategy {
  return strategies[resource.plural] ?? none;
}

function setDefault(object: JsonObject, field: string, value: unknown): FieldError[] {
  object[field] ??= value;
  return [];
}

function createStorage(object: ApiObject): FieldError[] {
  setDefault(objectAt(object, "spec"), "volumeMode", "Filesystem");
  return setDefault(object, "status", { phase: "Pending" });
}

function createPod(object: ApiObject, context: StrategyContext): FieldError[] {
  const pod = typed<Pod>(object);
  pod.spec.containers ??= [];
  pod.status = { phase: "Pending" };
  delete pod.spec.ephemeralContainers;
  admitServiceAccount(pod, context);
  admitPriority(pod, context);
  addDefaultTolerations(pod.spec);
  applyPodDefaults(pod);
  admitRuntimeClass(pod, context);
  const errors = validatePod(pod);
  if (errors.length === 0) pod.status.qosClass = qosClassOf(pod.spec);
  return errors;
}

function updatePod(object: ApiObject, oldObject: ApiObject): FieldError[] {
  const pod = typed<Pod>(object);
  const old = typed<Pod>(oldObject);
  pod.spec.containers ??= [];
  applyPodDefaults(pod);
  return [...validatePod(pod), ...validatePodUpdate(pod, old)];
}

// A token this old is asked for by the injected volume: one hour and a few seconds that mark it as injected.
const injectedTokenSeconds = 3607;
const tokenMountPath = "/var/run/secrets/kubernetes.io/serviceaccount";

function admitServiceAccount(pod: Pod, { store, serviceAccountAdmission, resource }: StrategyContext): void {
  const { spec, metadata } = pod;
  if (metadata.annotations?.["kubernetes.io/config.mirror"] !== undefined) return;
  if (spec.serviceAccountName === undefined || spec.serviceAccountName === "") spec.serviceAccountName = "default";
  // The deprecated alias is kept equal by the API server.
  objectAt(pod, "spec")["serviceAccount"] = spec.serviceAccountName;
  if (!serviceAccountAdmission) return;
  const account = store.get("serviceaccounts", `${metadata.namespace}/${spec.serviceAccountName}`);
  if (account === undefined) {
    throw forbidden(
      resource,
      metadata.name,
      `error looking up service account ${metadata.namespace}/${spec.serviceAccountName}: ` +
        `serviceaccount "${spec.serviceAccountName}" not found`,
    );
  }
  const pullSecrets = account["imagePullSecrets"];
  if ((spec.imagePullSecrets ?? []).length === 0 && Array.isArray(pullSecrets) && pullSecrets.length > 0) {
    spec.imagePullSecrets = structuredClone(pullSecrets as { name?: string }[]);
  }
  if ((spec.automountServiceAccountToken ?? account["automountServiceAccountToken"] ?? true) !== true) return;
  mountToken(pod);
}

function mountToken({ spec }: Pod): void {
  const name = `kube-api-access-${randomName(5)}`;
  let isUsed = false;
  for (const container of [...(spec.initContainers ?? []), ...spec.containers]) {
    if ((container.volumeMounts ?? []).some((m) => m.mountPath === tokenMountPath)) continue;
    container.volumeMounts = [...(container.volumeMounts ?? []), { name, readOnly: true, mountPath: tokenMountPath }];
    isUsed = true;
  }
  if (!isUsed) return;
  const caKey = { key: "ca.crt", path: "ca.crt" };
  const namespaceField = { apiVersion: "v1", fieldPath: "metadata.namespace" };
  spec.volumes = [
    ...(spec.volumes ?? []),
    {
      name,
      projected: {
        sources: [
          { serviceAccountToken: { expirationSeconds: injectedTokenSeconds, path: "token" } },
          { configMap: { name: "kube-root-ca.crt", items: [caKey] } },
          { downwardAPI: { items: [{ path: "namespace", fieldRef: namespaceField }] } },
        ],
        defaultMode: 0o644,
      },
    },
  ];
}

function admitPriority(pod: Pod, { store, resource }: StrategyContext): void {
  const { spec } = pod;
  let value = 0;
  let policy = "PreemptLowerPriority";
  if (spec.priorityClassName !== undefined && spec.priorityClassName !== "") {
    const found = store.get("priorityclasses.scheduling.k8s.io", spec.priorityClassName);
    if (found === undefined) {
      throw forbidden(resource, pod.metadata.name, `no PriorityClass with name ${spec.priorityClassName} was found`);
    }
    value = Number(found["value"] ?? 0);
    policy = stringAt(found, "preemptionPolicy") || policy;
  }
  const isMirror = pod.metadata.annotations?.["kubernetes.io/config.mirror"] !== undefined;
  if (!isMirror || spec.priority === undefined) spec.priority = value;
  objectAt(pod, "spec")["preemptionPolicy"] ??= policy;
}

function admitRuntimeClass(pod: Pod, { store, resource }: StrategyContext): void {
  const name = pod.spec.runtimeClassName;
  if (name === undefined || name === "") return;
  const found = store.get("runtimeclasses.node.k8s.io", name);
  if (found === undefined) {
    throw forbidden(resource, pod.metadata.name, `pod rejected: RuntimeClass "${name}" not found`);
  }
  const overhead = objectAt(found, "overhead", "podFixed");
  if (Object.keys(overhead).length > 0) pod.spec.overhead ??= { ...overhead } as Record<string, string>;
}

function createService(object: ApiObject, { network }: StrategyContext): FieldError[] {
  const service = typed<Service>(object);
  service.status = { loadBalancer: {} };
  applyServiceDefaults(service);
  const errors = validateService(service);
  return errors.length > 0 ? errors : network.allocate(service);
}

function updateService(object: ApiObject, oldObject: ApiObject, { network }: StrategyContext): FieldError[] {
  const service = typed<Service>(object);
  const old = typed<Service>(oldObject);
  applyServiceDefaults(service);
  const spec = service.spec ?? {};
  // A PUT without the allocated values keeps them.
  if (spec.type !== "ExternalName" && old.spec?.type !== "ExternalName") {
    if (old.spec?.clusterIP !== undefined) spec.clusterIP ??= old.spec.clusterIP;
    if (old.spec?.clusterIPs !== undefined) spec.clusterIPs ??= old.spec.clusterIPs;
    for (const port of spec.ports ?? []) {
      const before = old.spec?.ports?.find((p) => p.port === port.port && p.protocol === port.protocol);
      if (before?.nodePort !== undefined) port.nodePort ??= before.nodePort;
    }
  }
  const errors = [...validateService(service), ...validateServiceUpdate(service, old)];
  if (errors.length > 0) return errors;
  if (spec.type !== "ExternalName" && (spec.clusterIP ?? "") === "") return network.allocate(service);
  if (spec.type === "ExternalName") {
    delete spec.clusterIP;
    delete spec.clusterIPs;
  }
  const refused = network.allocatePorts(service, old);
  if (refused.length === 0) network.release(old, service);
  return refused;
}

function createNode(object: ApiObject, { store, clusterCIDR, taintNewNodes, now }: StrategyContext): FieldError[] {
  const node = typed<Node>(object);
  node.spec ??= {};
  node.status ??= {};
  if (taintNewNodes) {
    const key = "node.kubernetes.io/not-ready";
    const taints = (node.spec.taints ?? []).filter((t) => t.key !== key);
    node.spec.taints = [...taints, { key, effect: "NoSchedule" as const, timeAdded: now() }];
  }
  if (clusterCIDR !== undefined && node.spec.podCIDR === undefined) {
    const used = new Set([...store.values("nodes")].map((n) => stringAt(n, "spec", "podCIDR")));
    const [a = "10", b = "244"] = clusterCIDR.split(".");
    for (let n = 0; n < 256; n++) {
      const cidr = `${a}.${b}.${n}.0/24`;
      if (used.has(cidr)) continue;
      node.spec.podCIDR = cidr;
      node.spec.podCIDRs = [cidr];
      break;
    }
  }
  return [];
}

function createNamespace(object: ApiObject): FieldError[] {
  object["spec"] = { finalizers: ["kubernetes"] };
  object["status"] = { phase: "Active" };
  object.metadata.labels = { ...object.metadata.labels, "kubernetes.io/metadata.name": object.metadata.name };
  return [];
}

// stringData is write-only: it ends up in data, in base64.
function foldStringData(object: ApiObject): void {
  const plain = object["stringData"];
  if (!isObject(plain)) return;
  const data: JsonObject = { ...objectAt(object, "data") };
  for (const [key, value] of Object.entries(plain)) data[key] = Buffer.from(String(value)).toString("base64");
  object["data"] = data;
  delete object["stringData"];
}

function createSecret(object: ApiObject): FieldError[] {
  foldStringData(object);
  return setDefault(object, "type", "Opaque");
}

function updateSecret(object: ApiObject, old: ApiObject): FieldError[] {
  foldStringData(object);
  object["type"] ??= old["type"];
  const errors = refuseImmutable(object, old);
  if (object["type"] !== old["type"]) {
    errors.push({
      field: "type",
      reason: "FieldValueInvalid",
      message: `Invalid value: "${String(object["type"])}": field is immutable`,
    });
  }
  return errors;
}

function refuseImmutable(object: ApiObject, old: ApiObject): FieldError[] {
  if (old["immutable"] !== true) return [];
  const errors: FieldError[] = [];
  if (object["immutable"] !== true) {
    errors.push(forbiddenField("immutable", "field is immutable when `immutable` is set"));
  }
  for (const field of ["data", "binaryData"]) {
    if (jsonEqual(object[field] ?? {}, old[field] ?? {})) continue;
    errors.push(forbiddenField(field, "field is immutable when `immutable` is set"));
  }
  return errors;
}

function createEndpointSlice(object: ApiObject): FieldError[] {
  const type = stringAt(object, "addressType");
  if (type === "") return [required("addressType")];
  object["endpoints"] ??= null;
  return defaultSlicePorts(object);
}

function defaultSlicePorts(object: ApiObject): FieldError[] {
  const ports = (object["ports"] ??= null);
  for (const port of Array.isArray(ports) ? ports.filter(isObject) : []) {
    port["name"] ??= "";
    port["protocol"] ??= "TCP";
  }
  return [];
}

function createCsiDriver(object: ApiObject): FieldError[] {
  const spec = isObject(object["spec"]) ? object["spec"] : {};
  object["spec"] = {
    attachRequired: true,
    podInfoOnMount: false,
    storageCapacity: false,
    volumeLifecycleModes: ["Persistent"],
    fsGroupPolicy: "ReadWriteOnceWithFSType",
    requiresRepublish: false,
    seLinuxMount: false,
    ...spec,
  };
  return [];
}

/** A driver's entry stays as it was made, but for its count. */
function refuseChangedDriver(object: ApiObject, old: ApiObject): FieldError[] {
  const before = typed<CSINode>(old).spec.drivers ?? [];
  const isChanged = (typed<CSINode>(object).spec.drivers ?? []).some((driver) => {
    const was = before.find(({ name }) => name === driver.name);
    if (was === undefined) return false;
    return was.nodeID !== driver.nodeID || !jsonEqual(was.topologyKeys ?? [], driver.topologyKeys ?? []);
  });
  return isChanged ? [forbiddenField("spec.drivers", "field is immutable")] : [];
}

const nameAlphabet = "bcdfghjklmnpqrstvwxz2456789";

/** Random letters as the API server appends them to `generateName`. */
export function randomName(length: number): string {
  return [...randomBytes(length)].map((byte) => nameAlphabet[byte % nameAlphabet.length]).join("");
}
