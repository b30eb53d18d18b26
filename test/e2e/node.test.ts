import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { leases } from "../../agent/kube/resources.ts";
import type { Node } from "../../agent/kube/types.ts";
import { openNamespace, type TestNamespace, until } from "./support/cluster.ts";

let cluster: TestNamespace;
let node: Node;

beforeAll(async () => {
  cluster = await openNamespace(inject("kubeconfig"));
  node = await until("a node is Ready", async () => (await cluster.readyNodes())[0]);
});
afterAll(() => cluster[Symbol.asyncDispose]());

test("the node is Ready and under no pressure", () => {
  const conditions = Object.fromEntries((node.status?.conditions ?? []).map(({ type, status }) => [type, status]));
  expect(conditions).toMatchObject({
    Ready: "True",
    MemoryPressure: "False",
    DiskPressure: "False",
    PIDPressure: "False",
  });
});

test("the node says what it is and where it is", () => {
  const { addresses = [], nodeInfo, capacity = {}, allocatable = {} } = node.status ?? {};
  expect(addresses.map(({ type }) => type)).toEqual(expect.arrayContaining(["InternalIP", "Hostname"]));
  expect(nodeInfo).toMatchObject({ operatingSystem: "linux" });
  expect(nodeInfo?.kubeletVersion).toMatch(/^v1\.36\./);
  expect(nodeInfo?.containerRuntimeVersion).toMatch(/^[a-z-]+:\/\/\d/);
  for (const name of ["cpu", "memory", "ephemeral-storage", "pods"]) {
    expect(capacity[name], name).toBeDefined();
    expect(allocatable[name], name).toBeDefined();
  }
  expect(node.metadata.labels).toMatchObject({
    "kubernetes.io/os": "linux",
    "kubernetes.io/hostname": expect.any(String) as string,
  });
});

test("the node's lease is alive", async () => {
  const lease = await cluster.client.get(leases, { namespace: "kube-node-lease", name: node.metadata.name });
  const { renewTime, leaseDurationSeconds = 0, holderIdentity } = lease.spec ?? {};
  expect(holderIdentity).toBe(node.metadata.name);
  // Clocks of other machines may differ a little.
  expect(Math.abs(Date.now() - Date.parse(renewTime ?? ""))).toBeLessThan(leaseDurationSeconds * 1_000);
});
