import type { Endpoint, EndpointSlice, Service, ServiceSpec } from "../../agent/kube/types.ts";

/** A Service in namespace `ns1` with one TCP port `p80`, as the API server would return it. */
export function makeService(name: string, spec: Partial<ServiceSpec> = {}, extra: Partial<Service> = {}): Service {
  return {
    ...extra,
    metadata: { namespace: "ns1", name, ...extra.metadata },
    spec: { type: "ClusterIP", clusterIP: "10.96.0.10", ports: [{ name: "p80", port: 80, protocol: "TCP" }], ...spec },
  };
}

/** Endpoints may be given as an address or in full. */
export function makeSlice(
  service: string,
  endpoints: readonly (string | (Partial<Endpoint> & { address: string }))[],
  more: Partial<Pick<EndpointSlice, "ports" | "addressType">> & { suffix?: string } = {},
): EndpointSlice {
  const { ports = [{ name: "p80", port: 8080, protocol: "TCP" as const }], addressType = "IPv4", suffix = "a" } = more;
  return {
    metadata: {
      namespace: "ns1",
      name: `${service}-${suffix}`,
      labels: { "kubernetes.io/service-name": service },
    },
    addressType,
    ports,
    endpoints: endpoints.map((endpoint) => {
      if (typeof endpoint === "string") return { addresses: [endpoint], conditions: { ready: true } };
      const { address, ...rest } = endpoint;
      return { addresses: [address], ...rest };
    }),
  };
}
