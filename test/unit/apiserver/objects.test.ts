import { describe, expect, test } from "vitest";
import { nodes, pods, services } from "../../../agent/kube/resources.ts";
import type { Node, Service } from "../../../agent/kube/types.ts";
import { objectAt } from "../../support/apiserver/json.ts";
import { readyNode } from "./client.ts";
import { useApiServer } from "./use-api-server.ts";

const on = useApiServer();
const { path } = on;

test("ports of endpoint slices get the empty name and TCP", async () => {
  const slice = {
    metadata: { name: "s-1", labels: { "kubernetes.io/service-name": "s" } },
    addressType: "IPv4",
    endpoints: [{ addresses: ["10.244.0.1"] }],
    ports: [{ port: 80 }, { name: "dns", port: 53, protocol: "UDP" }],
  };
  const slices = `/apis/discovery.k8s.io/v1/namespaces/${on.namespace}/endpointslices`;
  const want = [
    { name: "", port: 80, protocol: "TCP" },
    { name: "dns", port: 53, protocol: "UDP" },
  ];
  expect((await on.client.post(slices, slice)).body["ports"]).toEqual(want);
  const patched = await on.client.patch(`${slices}/s-1`, "merge-patch+json", { ports: [{ port: 81 }] });
  expect(patched.body["ports"]).toEqual([{ name: "", port: 81, protocol: "TCP" }]);
});

describe("services", () => {
  const create = (name: string, spec: Service["spec"]) =>
    on.client.post(path("services"), { metadata: { name }, spec });

  test("get an address and defaults", async () => {
    const { body } = await create("s", { ports: [{ port: 80 }], selector: { a: "b" } });
    const { spec } = body as unknown as Service;
    expect(spec).toMatchObject({
      type: "ClusterIP",
      sessionAffinity: "None",
      internalTrafficPolicy: "Cluster",
      ipFamilies: ["IPv4"],
      ipFamilyPolicy: "SingleStack",
      ports: [{ port: 80, protocol: "TCP", targetPort: 80 }],
    });
    expect(spec?.clusterIP).toMatch(/^10\.96\./);
    expect(spec?.clusterIPs).toEqual([spec?.clusterIP]);
  });

  test("of type NodePort get a port, which stays with them and returns when they are gone", async () => {
    const { body } = await create("s", { type: "NodePort", sessionAffinity: "ClientIP", ports: [{ port: 80 }] });
    const spec = (body as unknown as Service).spec;
    const nodePort = spec?.ports?.[0]?.nodePort ?? 0;
    expect(nodePort).toBeGreaterThanOrEqual(30_000);
    expect(spec?.sessionAffinityConfig?.clientIP?.timeoutSeconds).toBe(10_800);
    expect(spec?.externalTrafficPolicy).toBe("Cluster");
    const taken = await create("t", { type: "NodePort", ports: [{ port: 80, nodePort }] });
    expect([taken.code, taken.body["message"]]).toEqual([
      422,
      expect.stringContaining("provided port is already allocated"),
    ]);
    const kept = await on.client.patch(path("services/s"), "strategic-merge-patch+json", {
      spec: { ports: [{ port: 80, name: "http" }] },
    });
    expect((kept.body as unknown as Service).spec?.ports).toMatchObject([{ nodePort }]);
    await on.client.call("DELETE", path("services/s"));
    expect((await create("t", { type: "NodePort", ports: [{ port: 80, nodePort }] })).code).toBe(201);
  });

  test("refuse what can not be", async () => {
    expect((await create("s", { clusterIP: "192.168.1.1", ports: [{ port: 80 }] })).body["message"]).toContain(
      "not in the valid range",
    );
    expect((await create("s", { clusterIP: "10.96.0.1", ports: [{ port: 80 }] })).body["message"]).toContain(
      "already allocated",
    );
    expect((await create("s", { ports: [] })).body["message"]).toContain("spec.ports: Required value");
    expect((await create("s", { ports: [{ port: 0 }] })).body["message"]).toContain(
      "spec.ports[0].port: Invalid value: 0",
    );
    expect((await create("s", { clusterIP: "None" })).code).toBe(201);
  });

  test("the kubernetes service is there from the start", () => {
    expect(on.server.objects.get(services, { namespace: "default", name: "kubernetes" }).spec?.clusterIP).toBe(
      "10.96.0.1",
    );
  });
});

test("nodes: status is kept at creation and never touched by the main resource", async () => {
  await on.client.post("/api/v1/nodes", readyNode("n"));
  await on.client.patch("/api/v1/nodes/n", "strategic-merge-patch+json", {
    spec: { unschedulable: true },
    status: { conditions: null },
  });
  const node: Node = on.server.objects.get(nodes, { name: "n" });
  expect(node.spec?.unschedulable).toBe(true);
  expect(node.status?.conditions?.[0]?.type).toBe("Ready");
});

test("leases: PUT creates, and needs a resourceVersion to change", async () => {
  const url = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n";
  const lease = { metadata: { name: "n" }, spec: { holderIdentity: "n" } };
  expect((await on.client.call("PUT", url, { body: lease })).code).toBe(201);
  expect((await on.client.call("PUT", url, { body: lease })).body["message"]).toContain(
    "must be specified for an update",
  );
});

test("secrets: stringData becomes data; immutable ones stay as they are", async () => {
  const created = await on.client.post(path("secrets"), {
    metadata: { name: "s" },
    stringData: { a: "b" },
    immutable: true,
  });
  expect(objectAt(created.body, "data")).toEqual({ a: "Yg==" });
  expect(created.body["type"]).toBe("Opaque");
  const changed = await on.client.patch(path("secrets/s"), "merge-patch+json", { data: { a: "Yw==" } });
  expect(changed.body["message"]).toContain("field is immutable when `immutable` is set");
});

test("events are one set of objects in both groups", async () => {
  const event = {
    metadata: { name: "e" },
    involvedObject: { kind: "Pod", name: "p" },
    message: "hello",
    reason: "R",
    count: 2,
  };
  await on.client.post(path("events"), event);
  const { body } = await on.client.get(`/apis/events.k8s.io/v1/namespaces/${on.namespace}/events/e`);
  expect(body).toMatchObject({
    apiVersion: "events.k8s.io/v1",
    note: "hello",
    regarding: { name: "p" },
    deprecatedCount: 2,
  });
  const series = { count: 3, lastObservedTime: "2026-01-01T00:00:00.000000Z" };
  await on.client.patch(`/apis/events.k8s.io/v1/namespaces/${on.namespace}/events/e`, "merge-patch+json", {
    note: "again",
    series,
  });
  expect((await on.client.get(path("events/e"))).body).toMatchObject({ apiVersion: "v1", message: "again", series });
});

test("in-process calls and waits see the same objects", async () => {
  const made = on.server.objects.create(pods, {
    metadata: { name: "p", namespace: on.namespace },
    spec: { containers: [{ name: "c", image: "i" }] },
  });
  expect(made.spec.restartPolicy).toBe("Always");
  const running = on.server.objects.waitFor(
    pods,
    { namespace: on.namespace, name: "p" },
    (pod) => pod?.status?.phase === "Running",
  );
  await on.client.patch(path("pods/p/status"), "merge-patch+json", { status: { phase: "Running" } });
  expect((await running)?.metadata.uid).toBe(made.metadata.uid);
  const never = on.server.objects.waitFor(pods, { namespace: on.namespace, name: "p" }, (pod) => pod === undefined, {
    timeoutMs: 20,
  });
  await expect(never).rejects.toThrow(/not as expected within 20 ms; its last state: \{.*"Running"/);
});

test("a malformed object can be put in as it is, and stops nobody", async () => {
  const changes: string[] = [];
  const stop = on.server.objects.subscribe(pods, (type, pod) => changes.push(`${type} ${pod.metadata.name}`));
  on.server.objects.putRaw(pods, {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { name: "odd", namespace: on.namespace },
    spec: { containers: 7 },
  });
  const { body } = await on.client.get(path("pods/odd"));
  expect(body["spec"]).toEqual({ containers: 7 });
  on.server.objects.delete(pods, { namespace: on.namespace, name: "odd" });
  stop();
  expect(changes).toEqual(["ADDED odd", "DELETED odd"]);
});
