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
    ...(spec === undefined ? {} : { spec }),
    ...(status?.loadBalancer?.ingress === undefined ? {} : { status }),
  };
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

function trimEndpoint(endpoint: NonNullable<EndpointSlice["endpoints"]>[number]): typeof endpoint {
  if (typeof endpoint !== "object" || endpoint === null) return endpoint;
  const { addresses, conditions, nodeName, hints } = endpoint;
  return {
    addresses,
    ...(conditions === undefined ? {} : { conditions }),
    ...(nodeName === undefined ? {} : { nodeName }),
    ...(hints === undefined ? {} : { hints }),
  };
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
