import type { EndpointSlice, KubeObject, ObjectMeta, Service } from "../kube/types.ts";

/**
 * What is kept of the objects that informers hold: all that somebody reads, and no more, because there are thousands of
 * them. Pure; objects may be malformed, what cannot be trimmed stays as it is.
 */

const keptServiceLabels = ["service.kubernetes.io/service-proxy-name"];
const keptSliceLabels = ["kubernetes.io/service-name", "service.kubernetes.io/headless"];
const keptSliceAnnotations = ["endpoints.kubernetes.io/last-change-trigger-time"];

/** Everything but the bookkeeping of server-side apply, which is often the larger half of an object. */
export function withoutManagedFields<T extends KubeObject>(object: T): T {
  const { managedFields: _, ...metadata } = object.metadata as ObjectMeta & { managedFields?: unknown };
  return { ...object, metadata };
}

/** A Service as pods (environment) and the proxy read it. */
export function trimService({ metadata, spec, status }: Service): Service {
  return {
    metadata: identity(metadata, keptServiceLabels, []),
    ...(spec === undefined ? {} : { spec: trimServiceSpec(spec) }),
    ...(status?.loadBalancer?.ingress === undefined ? {} : { status }),
  };
}

type ServiceSpec = NonNullable<Service["spec"]>;

// Read by whoever makes slices, and by nobody here.
const droppedServiceFields: ReadonlySet<string> = new Set<keyof ServiceSpec>([
  "selector",
  "ipFamilyPolicy",
  "publishNotReadyAddresses",
  "trafficDistribution",
]);

function trimServiceSpec(spec: ServiceSpec): ServiceSpec {
  if (typeof spec !== "object" || spec === null) return spec;
  return Object.fromEntries(Object.entries(spec).filter(([field]) => !droppedServiceFields.has(field))) as ServiceSpec;
}

/** An EndpointSlice as the proxy reads it. */
export function trimEndpointSlice({ metadata, addressType, endpoints, ports }: EndpointSlice): EndpointSlice {
  return {
    metadata: identity(metadata, keptSliceLabels, keptSliceAnnotations),
    addressType,
    endpoints: Array.isArray(endpoints) ? endpoints.map(trimEndpoint) : null,
    ports: ports ?? null,
  };
}

type ApiEndpoint = NonNullable<EndpointSlice["endpoints"]>[number];
type Conditions = NonNullable<ApiEndpoint["conditions"]>;

function trimEndpoint(endpoint: ApiEndpoint): ApiEndpoint {
  if (typeof endpoint !== "object" || endpoint === null) return endpoint;
  const { addresses, nodeName, hints } = endpoint;
  const conditions = endpoint.conditions === undefined ? undefined : sharedConditions(endpoint.conditions);
  // As nearly all are. An object that is written out has its fields in itself; one that is put together has them elsewhere.
  if (conditions !== undefined && typeof nodeName === "string" && hints === undefined) {
    return { addresses, conditions, nodeName: sharedName(nodeName) };
  }
  return {
    addresses,
    ...(conditions === undefined ? {} : { conditions }),
    ...(nodeName === undefined ? {} : { nodeName }),
    ...(hints === undefined ? {} : { hints }),
  };
}

const knownConditions = new Map<string, Conditions>();

/** One object for all endpoints in the same state; what is no usual state stays as it is. */
function sharedConditions(conditions: Conditions): Conditions {
  if (typeof conditions !== "object" || conditions === null) return conditions;
  const { ready, serving, terminating, ...others } = conditions;
  for (const one of [ready, serving, terminating]) {
    if (one !== undefined && typeof one !== "boolean") return conditions;
  }
  if (Object.keys(others).length > 0) return conditions;
  const state = `${ready} ${serving} ${terminating}`; // 27 of them
  let known = knownConditions.get(state);
  if (known === undefined) knownConditions.set(state, (known = Object.freeze({ ...conditions })));
  return known;
}

// More than nodes that Kubernetes is made for; some come and go.
const knownNamesMax = 20_000;
const knownNames = new Map<string, string>();

/** The same string for all endpoints of a node. */
function sharedName(name: string): string {
  const known = knownNames.get(name);
  if (known !== undefined) return known;
  if (knownNames.size >= knownNamesMax) knownNames.clear();
  knownNames.set(name, name);
  return name;
}

function identity(metadata: ObjectMeta, labels: readonly string[], annotations: readonly string[]): ObjectMeta {
  const { name, namespace, uid, resourceVersion } = metadata;
  const keptLabels = pick(metadata.labels, labels);
  const keptAnnotations = pick(metadata.annotations, annotations);
  return {
    name,
    ...(namespace === undefined ? {} : { namespace }),
    ...(uid === undefined ? {} : { uid }),
    ...(resourceVersion === undefined ? {} : { resourceVersion }),
    ...(keptLabels === undefined ? {} : { labels: keptLabels }),
    ...(keptAnnotations === undefined ? {} : { annotations: keptAnnotations }),
  };
}

function pick(map: Record<string, string> | undefined, keys: readonly string[]): Record<string, string> | undefined {
  const found = keys.flatMap((key) => (map?.[key] === undefined ? [] : [[key, map[key]] as const]));
  return found.length === 0 ? undefined : Object.fromEntries(found);
}
