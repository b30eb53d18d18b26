import type { Endpoint, EndpointSlice, Pod, Service } from "../../../../agent/kube/types.ts";
import { serviceLabel } from "../indexes.ts";
import { jsonEqual } from "../json.ts";
import { randomName } from "../strategies.ts";
import type { Registry } from "../registry.ts";
import { selects } from "../selectors.ts";
import { typed, untyped } from "../types.ts";

const managedBy = "endpointslice-controller.k8s.io";
const managerLabel = "endpointslice.kubernetes.io/managed-by";

type SlicePort = NonNullable<EndpointSlice["ports"]>[number];

/** Endpoints that share the same set of numeric ports; a slice can hold only such. */
export interface PortGroup {
  ports: SlicePort[];
  endpoints: Endpoint[];
}

/** The endpoints of a service by the pods it selects. Pure. */
export function endpointsOf(service: Service, pods: readonly Pod[]): PortGroup[] {
  const groups = new Map<string, PortGroup>();
  const selected = pods.filter((pod) => selects(service.spec?.selector, pod.metadata.labels));
  for (const pod of selected.toSorted((a, b) => (a.metadata.name < b.metadata.name ? -1 : 1))) {
    const address = pod.status?.podIP ?? "";
    const hasEnded = pod.status?.phase === "Succeeded" || pod.status?.phase === "Failed";
    if (address === "" || hasEnded) continue;
    const ports = portsFor(service, pod);
    const id = JSON.stringify(ports);
    const group = groups.get(id) ?? { ports, endpoints: [] };
    group.endpoints.push(endpointOf(service, pod, address));
    groups.set(id, group);
  }
  return [...groups.values()];
}

function endpointOf(service: Service, pod: Pod, address: string): Endpoint {
  const isReadyPod = pod.status?.conditions?.some((c) => c.type === "Ready" && c.status === "True") === true;
  const terminating = pod.metadata.deletionTimestamp !== undefined;
  const publishes = service.spec?.publishNotReadyAddresses === true;
  const { hostname, subdomain, nodeName } = pod.spec;
  return {
    addresses: [address],
    conditions: { ready: publishes || (isReadyPod && !terminating), serving: isReadyPod || publishes, terminating },
    ...(hostname !== undefined && subdomain === service.metadata.name ? { hostname } : {}),
    ...(nodeName === undefined ? {} : { nodeName }),
    targetRef: {
      kind: "Pod",
      ...(pod.metadata.namespace === undefined ? {} : { namespace: pod.metadata.namespace }),
      name: pod.metadata.name,
      ...(pod.metadata.uid === undefined ? {} : { uid: pod.metadata.uid }),
    },
  };
}

// A named target port is looked up in the pod; a pod that lacks it has no such port.
function portsFor(service: Service, pod: Pod): SlicePort[] {
  return (service.spec?.ports ?? []).flatMap(
    ({ name = "", protocol = "TCP", port, targetPort = port, appProtocol }) => {
      const containers = [
        ...pod.spec.containers,
        ...(pod.spec.initContainers ?? []).filter((c) => c.restartPolicy === "Always"),
      ];
      const number =
        typeof targetPort === "number"
          ? targetPort
          : containers
              .flatMap((c) => c.ports ?? [])
              .find((p) => p.name === targetPort && (p.protocol ?? "TCP") === protocol)?.containerPort;
      if (number === undefined) return [];
      return [{ name, protocol, port: number, ...(appProtocol === undefined ? {} : { appProtocol }) }];
    },
  );
}

/**
 * Keeps the EndpointSlices of services with a selector up to date, at once after each change of a pod or service.
 *
 * @param endpointsMax endpoints in one slice; more make more slices
 * @returns the function that stops it
 */
export function startEndpointSliceController(registry: Registry, endpointsMax: number): () => void {
  const sliceType = registry.typeOf("discovery.k8s.io", "endpointslices");

  const owned = (service: string, namespace: string) =>
    registry.store
      .indexed(sliceType.storage, `${namespace}/${service}`)
      .map((object) => typed<EndpointSlice>(object))
      .filter((slice) => slice.metadata.labels?.[managerLabel] === managedBy);

  const sync = (service: Service) => {
    const { name, namespace = "", deletionTimestamp } = service.metadata;
    const hasSelector = Object.keys(service.spec?.selector ?? {}).length > 0;
    if (!hasSelector || service.spec?.type === "ExternalName" || deletionTimestamp !== undefined) return;
    const pods = registry.store.indexed("pods", namespace).map((o) => typed<Pod>(o));
    const groups = endpointsOf(service, pods);
    const wanted: PortGroup[] = groups.flatMap(({ ports, endpoints }) => {
      const slices: PortGroup[] = [];
      for (let at = 0; at < endpoints.length; at += endpointsMax) {
        slices.push({ ports, endpoints: endpoints.slice(at, at + endpointsMax) });
      }
      return slices;
    });
    // A service without endpoints still has a slice that says so.
    if (wanted.length === 0) wanted.push({ ports: [], endpoints: [] });
    const free = owned(name, namespace);
    // Prefer the slice that already has these ports, so that little is rewritten.
    for (const { ports, endpoints } of wanted) {
      const at = Math.max(
        0,
        free.findIndex((slice) => jsonEqual(slice.ports, ports)),
      );
      const [slice] = free.splice(at, 1);
      if (slice === undefined) {
        create(service, ports, endpoints);
      } else {
        registry.modify(sliceType, namespace, slice.metadata.name, (object) => {
          object["ports"] = ports;
          object["endpoints"] = endpoints;
        });
      }
    }
    for (const slice of free) registry.delete(sliceType, namespace, slice.metadata.name);
  };

  const create = (service: Service, ports: SlicePort[], endpoints: Endpoint[]) => {
    const { name, namespace = "", uid = "", labels = {} } = service.metadata;
    const isHeadless = service.spec?.clusterIP === "None";
    const slice: EndpointSlice = {
      apiVersion: "discovery.k8s.io/v1",
      kind: "EndpointSlice",
      metadata: {
        name: `${name}-${randomName(5)}`,
        namespace,
        generateName: `${name}-`,
        labels: {
          ...labels,
          ...(isHeadless ? { "service.kubernetes.io/headless": "" } : {}),
          [serviceLabel]: name,
          [managerLabel]: managedBy,
        },
        ownerReferences: [{ apiVersion: "v1", kind: "Service", name, uid, controller: true, blockOwnerDeletion: true }],
      },
      addressType: "IPv4",
      endpoints,
      ports,
    };
    registry.create(sliceType, namespace, untyped(slice));
  };

  const syncFor = (pod: Pod, old: Pod | undefined) => {
    for (const object of registry.store.indexed("services", pod.metadata.namespace ?? "")) {
      const service = typed<Service>(object);
      const { selector } = service.spec ?? {};
      if (selects(selector, pod.metadata.labels) || selects(selector, old?.metadata.labels)) sync(service);
    }
  };

  for (const service of [...registry.store.values("services")]) sync(typed<Service>(service));
  return registry.onChange(({ type, storage, object, previous }) => {
    if (storage === "services") {
      const { name, namespace = "" } = object.metadata;
      if (type === "DELETED") {
        for (const slice of owned(name, namespace)) registry.delete(sliceType, namespace, slice.metadata.name);
      } else if (registry.store.get("services", `${namespace}/${name}`) !== undefined) {
        sync(typed<Service>(object));
      }
    } else if (storage === "pods") {
      syncFor(typed<Pod>(object), previous === undefined ? undefined : typed<Pod>(previous));
    }
  });
}
