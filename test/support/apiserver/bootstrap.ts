import { systemNamespaces } from "./controllers/namespaces.ts";
import type { Registry } from "./registry.ts";
import type { ApiObject } from "./types.ts";

/** Creates what every cluster has from its first second: namespaces, the `kubernetes` service, priority classes. */
export function bootstrap(registry: Registry, address: { url: string; host: string; port: number }): void {
  const namespaces = registry.typeOf("", "namespaces");
  for (const name of systemNamespaces) {
    registry.create(namespaces, "", { apiVersion: "v1", kind: "Namespace", metadata: { name } });
  }
  const labels = { component: "apiserver", provider: "kubernetes" };
  const service: ApiObject = {
    apiVersion: "v1",
    kind: "Service",
    metadata: { name: "kubernetes", namespace: "default", labels },
    spec: {
      clusterIP: registry.network.address(1),
      ports: [{ name: "https", port: 443, protocol: "TCP", targetPort: address.port }],
    },
  };
  registry.create(registry.typeOf("", "services"), "default", service);
  const slice: ApiObject = {
    apiVersion: "discovery.k8s.io/v1",
    kind: "EndpointSlice",
    metadata: {
      name: "kubernetes",
      namespace: "default",
      labels: { "kubernetes.io/service-name": "kubernetes" },
    },
    addressType: "IPv4",
    endpoints: [{ addresses: [address.host], conditions: { ready: true } }],
    ports: [{ name: "https", port: address.port, protocol: "TCP" }],
  };
  registry.create(registry.typeOf("discovery.k8s.io", "endpointslices"), "default", slice);
  const classes = { "system-cluster-critical": 2_000_000_000, "system-node-critical": 2_000_001_000 };
  for (const [name, value] of Object.entries(classes)) {
    const priorityClass = { apiVersion: "scheduling.k8s.io/v1", kind: "PriorityClass", metadata: { name }, value };
    registry.create(registry.typeOf("scheduling.k8s.io", "priorityclasses"), "", priorityClass);
  }
}
