import { afterAll, beforeAll, expect, test } from "vitest";
import { configMaps, endpointSlices, nodes, pods, services } from "../../../agent/kube/resources.ts";
import type { Lease, Node, Pod, Service } from "../../../agent/kube/types.ts";
import { chooseNode } from "../../support/apiserver/controllers/bind.ts";
import { endpointsOf } from "../../support/apiserver/controllers/endpoint-slices.ts";
import { decideNode } from "../../support/apiserver/controllers/node-lifecycle.ts";
import { startTestApiServer, type TestApiServer } from "../../support/apiserver/server.ts";
import { Client } from "./client.ts";

let server: TestApiServer;
let client: Client;

beforeAll(async () => {
  server = await startTestApiServer({ controllers: { endpointsPerSliceMax: 2 }, clusterCIDR: "10.244.0.0/16" });
  client = new Client(server);
});
afterAll(async () => {
  client.close();
  await server.close();
});

function node(name: string, more: Partial<Node> = {}): Node {
  return { metadata: { name }, status: { conditions: [{ type: "Ready", status: "True" }] }, ...more };
}
const tainted = node("a", { spec: { taints: [{ key: "k", value: "v", effect: "NoSchedule" }] } });
const pod = (spec: Partial<Pod["spec"]> = {}, metadata: Partial<Pod["metadata"]> = {}): Pod => ({
  metadata: { name: "p", ...metadata },
  spec: { containers: [{ name: "c", image: "i" }], ...spec },
});

const bindCases: { name: string; pod?: Pod; nodes: Node[]; want: string | undefined }[] = [
  { name: "the first ready node by name", nodes: [node("b"), node("a")], want: "a" },
  { name: "no node that is not ready", nodes: [node("a", { status: {} })], want: undefined },
  { name: "no cordoned node", nodes: [node("a", { spec: { unschedulable: true } }), node("b")], want: "b" },
  { name: "no node with a taint it does not tolerate", nodes: [tainted, node("b")], want: "b" },
  {
    name: "a tainted node that it tolerates",
    pod: pod({ tolerations: [{ key: "k", value: "v" }] }),
    nodes: [tainted],
    want: "a",
  },
  { name: "any node for Exists", pod: pod({ tolerations: [{ operator: "Exists" }] }), nodes: [tainted], want: "a" },
  {
    name: "a node with the labels it selects",
    pod: pod({ nodeSelector: { x: "1" } }),
    nodes: [node("a"), node("b", { metadata: { name: "b", labels: { x: "1" } } })],
    want: "b",
  },
];
for (const { name, pod: wanted = pod(), nodes: all, want } of bindCases) {
  test(`bind: ${name}`, () => expect(chooseNode(wanted, all)).toBe(want));
}

const service: Service = {
  metadata: { name: "s", namespace: "ns" },
  spec: { selector: { app: "x" }, ports: [{ name: "http", port: 80, targetPort: "web" }] },
};
function backend(name: string, status: Pod["status"] = {}, port = 8080, more: Partial<Pod["metadata"]> = {}): Pod {
  const made = pod({ nodeName: "n", containers: [{ name: "c", ports: [{ name: "web", containerPort: port }] }] });
  return {
    ...made,
    metadata: { name, namespace: "ns", uid: `u-${name}`, labels: { app: "x" }, ...more },
    status: { podIP: `10.0.0.${name}`, ...status },
  };
}
const ready = { conditions: [{ type: "Ready", status: "True" as const }] };

test("endpoints: readiness, termination and phases of the pods behind a service", () => {
  const [group, ...others] = endpointsOf(service, [
    backend("1", ready),
    backend("2"),
    backend("3", ready, 8080, { deletionTimestamp: "2026-01-01T00:00:00Z" }),
    backend("4", { ...ready, phase: "Succeeded" }),
    backend("5", { podIP: "" }),
    { ...backend("6", ready), metadata: { name: "6", namespace: "ns" } },
  ]);
  expect(others).toEqual([]);
  expect(group?.ports).toEqual([{ name: "http", protocol: "TCP", port: 8080 }]);
  expect(group?.endpoints.map((e) => [e.targetRef?.name, e.conditions])).toEqual([
    ["1", { ready: true, serving: true, terminating: false }],
    ["2", { ready: false, serving: false, terminating: false }],
    ["3", { ready: false, serving: true, terminating: true }],
  ]);
  expect(group?.endpoints[0]).toMatchObject({
    addresses: ["10.0.0.1"],
    nodeName: "n",
    targetRef: { kind: "Pod", uid: "u-1" },
  });
});

test("endpoints: a named port with different numbers makes groups; publishNotReadyAddresses makes all ready", () => {
  const groups = endpointsOf(service, [backend("1", ready, 1), backend("2", ready, 2)]);
  expect(groups.map((g) => g.ports[0]?.port)).toEqual([1, 2]);
  const publishing = { ...service, spec: { ...service.spec, publishNotReadyAddresses: true } };
  expect(endpointsOf(publishing, [backend("1")])[0]?.endpoints[0]?.conditions?.ready).toBe(true);
});

test("a node gets a pod range, its pods, and their service its slices, in one go", async () => {
  const made = server.objects.create(services, {
    metadata: { name: "web" },
    spec: { selector: { app: "web" }, ports: [{ port: 80 }] },
  });
  const slices = () =>
    server.objects.list(endpointSlices, { namespace: "default", labelSelector: "kubernetes.io/service-name=web" });
  expect(slices().map((s) => s.endpoints)).toEqual([[]]);
  for (const name of ["a", "b", "c"]) {
    server.objects.create(pods, {
      metadata: { name, labels: { app: "web" } },
      spec: { containers: [{ name: "c", image: "i" }] },
    });
  }
  expect(server.objects.get(pods, { name: "a" }).spec.nodeName).toBeUndefined();
  server.objects.create(nodes, node("n1"));
  expect(server.objects.get(nodes, { name: "n1" }).spec?.podCIDR).toBe("10.244.0.0/24");
  expect(server.objects.get(pods, { name: "a" }).spec.nodeName).toBe("n1");
  for (const [i, name] of ["a", "b", "c"].entries()) {
    const status = { phase: "Running", podIP: `10.244.0.${i + 2}`, ...ready };
    server.objects.patch(pods, { name }, { status }, { subresource: "status" });
  }
  expect(new Set(slices().map((s) => s.endpoints?.length))).toEqual(new Set([1, 2]));
  expect(slices()[0]?.metadata.labels?.["endpointslice.kubernetes.io/managed-by"]).toBe(
    "endpointslice-controller.k8s.io",
  );
  expect(slices()[0]?.metadata.ownerReferences?.[0]?.uid).toBe(made.metadata.uid);
  server.objects.delete(pods, { name: "a" });
  const conditions = slices()
    .flatMap((s) => s.endpoints ?? [])
    .map((e) => e.conditions?.terminating);
  expect(conditions.filter(Boolean)).toEqual([true]);
  expect(conditions).toHaveLength(3);
  for (const name of ["a", "b", "c"]) server.objects.delete(pods, { name }, { gracePeriodSeconds: 0 });
  expect(slices().map((s) => s.endpoints)).toEqual([[]]);
  server.objects.delete(services, { name: "web" });
  expect(slices()).toEqual([]);
});

test("a deleted namespace is emptied, gracefully for pods, and refuses what is new", async () => {
  await client.post("/api/v1/namespaces", { metadata: { name: "doomed" } });
  const key = { namespace: "doomed", name: "p" };
  server.objects.create(pods, { metadata: key, spec: { nodeName: "n1", containers: [{ name: "c", image: "i" }] } });
  expect(server.objects.find(configMaps, { namespace: "doomed", name: "kube-root-ca.crt" })?.data?.["ca.crt"]).toBe(
    server.caCertificate,
  );
  await client.call("DELETE", "/api/v1/namespaces/doomed");
  expect(server.objects.get(pods, key).metadata.deletionGracePeriodSeconds).toBe(30);
  const refused = await client.post("/api/v1/namespaces/doomed/configmaps", { metadata: { name: "x" } });
  expect([refused.code, refused.body["message"]]).toEqual([
    403,
    expect.stringContaining("because it is being terminated"),
  ]);
  server.objects.delete(pods, key, { gracePeriodSeconds: 0 });
  expect((await client.get("/api/v1/namespaces/doomed")).code).toBe(404);
  expect((await client.call("DELETE", "/api/v1/namespaces/default")).code).toBe(403);
});

test("node lifecycle: a stale lease makes the node unknown and unreachable, a fresh one does nothing", () => {
  const now = Date.parse("2026-01-01T00:10:00Z");
  const lease = (renewTime: string): Lease => ({ metadata: { name: "n" }, spec: { renewTime } });
  const fresh = decideNode(node("n"), lease("2026-01-01T00:09:55.000000Z"), now, 50_000);
  expect(fresh).toEqual({ conditions: [{ type: "Ready", status: "True" }], taints: [] });
  const stale = decideNode(node("n"), lease("2026-01-01T00:01:00.000000Z"), now, 50_000);
  expect(stale.conditions[0]).toMatchObject({ type: "Ready", status: "Unknown", reason: "NodeStatusUnknown" });
  expect(stale.taints.map((t) => `${t.key}:${t.effect}`)).toEqual([
    "node.kubernetes.io/unreachable:NoSchedule",
    "node.kubernetes.io/unreachable:NoExecute",
  ]);
});
