import { expect, test } from "vitest";
import type { EndpointSlice, Pod, Service } from "../../../agent/kube/types.ts";
import { trimEndpointSlice, trimService, withoutManagedFields } from "../../../agent/roles/trim.ts";

const metadata = { namespace: "shop", name: "web", uid: "u1", resourceVersion: "7" };

test("a pod loses the bookkeeping of server-side apply and nothing else", () => {
  const pod = { metadata: { ...metadata, labels: { a: "b" } }, spec: { containers: [] } } as unknown as Pod;
  const sent = { ...pod, metadata: { ...pod.metadata, managedFields: [{ manager: "kubectl" }] } };
  expect(withoutManagedFields(sent)).toEqual(pod);
});

test("a Service keeps what pods and the proxy read", () => {
  const spec = { clusterIP: "10.96.0.7", ports: [{ port: 80 }] };
  const annotations = { "kubectl.kubernetes.io/last-applied-configuration": "{…}" };
  const label = { "service.kubernetes.io/service-proxy-name": "other" };
  const status = { loadBalancer: {} };
  expect(trimService({ metadata: { ...metadata, annotations, labels: { app: "web" } }, spec, status })).toEqual({
    metadata,
    spec,
  });
  expect(trimService({ metadata: { ...metadata, labels: { app: "web", ...label } }, spec }).metadata.labels).toEqual(
    label,
  );
  const ingress = { loadBalancer: { ingress: [{ ip: "192.0.2.9" }] } };
  expect(trimService({ metadata, spec, status: ingress }).status).toEqual(ingress);
  expect(trimService({ metadata })).toEqual({ metadata });
});

test("an EndpointSlice keeps what the proxy reads", () => {
  const labels = { "kubernetes.io/service-name": "web" };
  const annotations = { "endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00Z" };
  const endpoint = { addresses: ["10.1.0.2"], conditions: { ready: true }, nodeName: "n1" };
  const slice: EndpointSlice = {
    metadata: {
      ...metadata,
      labels: { ...labels, "endpointslice.kubernetes.io/managed-by": "controller" },
      annotations: { ...annotations, other: "x" },
    },
    addressType: "IPv4",
    endpoints: [{ ...endpoint, hostname: "web-0", zone: "a", targetRef: { kind: "Pod", name: "web-0" } }],
    ports: [{ name: "http", port: 8080 }],
  };
  expect(trimEndpointSlice(slice)).toEqual({
    metadata: { ...metadata, labels, annotations },
    addressType: "IPv4",
    endpoints: [endpoint],
    ports: [{ name: "http", port: 8080 }],
  });
});

test("a Service loses what only its endpoints are made of", () => {
  const kept = {
    clusterIP: "10.96.0.7",
    ports: [{ port: 80, targetPort: 8080 }],
    externalTrafficPolicy: "Local" as const,
  };
  const spec = { ...kept, selector: { app: "web" }, ipFamilyPolicy: "SingleStack", publishNotReadyAddresses: true };
  expect(trimService({ metadata, spec }).spec).toEqual(kept);
  expect(trimService({ metadata, spec: null } as unknown as Service)).toEqual({ metadata, spec: null });
});

test("endpoints in the same state on the same node share what tells it", () => {
  const sliceOf = (...endpoints: unknown[]) =>
    trimEndpointSlice(JSON.parse(JSON.stringify({ metadata, addressType: "IPv4", endpoints })) as EndpointSlice);
  const endpoint = (conditions: unknown) => ({ addresses: ["10.1.0.2"], conditions, nodeName: "a-node-of-many" });
  const ready = { ready: true, serving: true, terminating: false };
  const [one, same] = [sliceOf(endpoint(ready)), sliceOf(endpoint(ready))].map(({ endpoints }) => endpoints?.[0]);
  expect(one?.conditions).toBe(same?.conditions);
  for (const other of [
    {},
    { ready: false },
    { ready: null },
    { ...ready, terminating: true },
    { ready: "x" },
    null,
    7,
  ]) {
    expect(sliceOf(endpoint(other)).endpoints?.[0]).toEqual(endpoint(other));
  }
  const hints = { forZones: [{ name: "a" }] };
  expect(sliceOf({ ...endpoint(ready), hints }).endpoints).toEqual([{ ...endpoint(ready), hints }]);
});

test("a malformed slice is left for the proxy to judge", () => {
  const slice = { metadata, addressType: "IPv4", endpoints: [null, "x"], ports: null } as unknown as EndpointSlice;
  expect(trimEndpointSlice(slice).endpoints).toEqual([null, "x"]);
  expect(trimEndpointSlice({ ...slice, endpoints: null }).endpoints).toBeNull();
});
