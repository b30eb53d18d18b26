import type { Endpoint, EndpointSlice } from "../../../../agent/kube/types.ts";
import { serviceLabel } from "../indexes.ts";
import { jsonEqual, type JsonObject } from "../json.ts";
import type { Registry } from "../registry.ts";
import { typed } from "../types.ts";

/** The subsets of an Endpoints object that says the same as `slices`. Pure. */
export function subsetsOf(slices: readonly EndpointSlice[]): JsonObject[] {
  return slices
    .filter((slice) => (slice.endpoints ?? []).length > 0)
    .map((slice) => {
      const addresses = (isReady: boolean) =>
        (slice.endpoints ?? []).filter((e) => (e.conditions?.ready ?? true) === isReady).flatMap(addressesOf);
      const [ready, notReady] = [addresses(true), addresses(false)];
      return {
        ...(ready.length > 0 ? { addresses: ready } : {}),
        ...(notReady.length > 0 ? { notReadyAddresses: notReady } : {}),
        ports: slice.ports ?? [],
      };
    });
}

function addressesOf({ addresses, nodeName, targetRef, hostname }: Endpoint): JsonObject[] {
  return addresses.map((ip) => ({
    ip,
    ...(hostname === undefined ? {} : { hostname }),
    ...(nodeName === undefined ? {} : { nodeName }),
    ...(targetRef === undefined ? {} : { targetRef }),
  }));
}

/** Keeps an Endpoints object beside the slices of each service, for old kubectls. Returns the function that stops it. */
export function startEndpointsController(registry: Registry): () => void {
  const type = registry.typeOf("", "endpoints");
  const { storage } = registry.typeOf("discovery.k8s.io", "endpointslices");
  const sync = (namespace: string, name: string) => {
    const slices = registry.store
      .indexed(storage, `${namespace}/${name}`)
      .map((object) => typed<EndpointSlice>(object));
    const found = registry.store.get("endpoints", `${namespace}/${name}`);
    if (slices.length === 0) {
      if (found !== undefined) registry.delete(type, namespace, name);
      return;
    }
    const subsets = subsetsOf(slices);
    if (found === undefined) {
      registry.create(type, namespace, { apiVersion: "v1", kind: "Endpoints", metadata: { name, namespace }, subsets });
    } else if (!jsonEqual(found["subsets"], subsets)) {
      registry.modify(type, namespace, name, (object) => (object["subsets"] = subsets));
    }
  };
  const look = (slice: EndpointSlice) => {
    const name = slice.metadata.labels?.[serviceLabel];
    if (name !== undefined) sync(slice.metadata.namespace ?? "", name);
  };
  for (const slice of [...registry.store.values(storage)]) look(typed<EndpointSlice>(slice));
  return registry.onChange(({ storage: changed, object }) => {
    if (changed === storage) look(typed<EndpointSlice>(object));
  });
}
