import { objectAt } from "./json.ts";
import type { StoreIndexes } from "./store.ts";

/** The label by which an EndpointSlice names its service. */
export const serviceLabel = "kubernetes.io/service-name";

/**
 * What controllers look up at every change, so that ten thousand services do not make each change slow:
 * slices by `namespace/service`, services with a selector by namespace, pods by namespace.
 */
export const controllerIndexes: StoreIndexes = {
  "endpointslices.discovery.k8s.io": ({ metadata }) => {
    const service = metadata.labels?.[serviceLabel];
    return service === undefined ? undefined : `${metadata.namespace}/${service}`;
  },
  services: (service) =>
    Object.keys(objectAt(service, "spec", "selector")).length > 0 ? service.metadata.namespace : undefined,
  pods: ({ metadata }) => metadata.namespace,
};
