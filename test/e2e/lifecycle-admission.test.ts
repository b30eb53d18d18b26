import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import type { Pod, PodSpec } from "../../agent/kube/types.ts";
import {
  isFinished,
  isReady,
  openNamespace,
  rejectionOf,
  runsDocker,
  type TestNamespace,
  until,
} from "./support/cluster.ts";
import { image, podOf, shell, sleeperOf } from "./support/pods.ts";

let cluster: TestNamespace;
let nodeName: string;

beforeAll(async () => {
  cluster = await openNamespace(inject("kubeconfig"));
  const [node] = await until("a node", async () => {
    const nodes = await cluster.readyNodes();
    return nodes.length > 0 ? nodes : undefined;
  });
  nodeName = node?.metadata.name ?? "";
});
afterAll(() => cluster[Symbol.asyncDispose]());

// Bound by name, past every scheduler: only the node itself can say no.
const boundTo = (name: string, spec: Partial<PodSpec>): Pod => {
  const pod = sleeperOf(name);
  return { ...pod, spec: { ...pod.spec, nodeName, ...spec } };
};
const wanting = (requests: Record<string, string>): Partial<PodSpec> => ({
  containers: [{ name: "main", image, command: ["sleep", "1000"], resources: { requests } }],
});
// Nothing else on a test machine is asked for by so high a port.
const hostPort = 47_811;
const listening: Partial<PodSpec> = {
  hostNetwork: true,
  containers: [{ name: "main", image, command: ["sleep", "1000"], ports: [{ containerPort: hostPort, hostPort }] }],
};

const rows: { reason: string; message: string; spec: Partial<PodSpec> }[] = [
  {
    reason: "OutOfcpu",
    message: "Node didn't have enough resource: cpu, requested: 1000000, used: ",
    spec: wanting({ cpu: "1000" }),
  },
  {
    reason: "OutOfmemory",
    message: "Node didn't have enough resource: memory, requested: ",
    spec: wanting({ memory: "1Pi" }),
  },
  {
    reason: "NodeAffinity",
    message: "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
    spec: { nodeSelector: { "example.com/nowhere": "yes" } },
  },
  {
    reason: "SysctlForbidden",
    message: 'forbidden sysctl: "kernel.msgmax" not allowlisted',
    spec: { securityContext: { sysctls: [{ name: "kernel.msgmax", value: "65536" }] } },
  },
  {
    reason: "PodFeatureUnsupported",
    message: "Pod requires node features that are not available: UserNamespacesHostNetworkSupport",
    spec: { hostNetwork: true, hostUsers: false },
  },
];

describe.concurrent("a pod that the node cannot run", () => {
  test.each(rows)("is rejected with $reason, and says why", async ({ reason, message, spec }) => {
    const name = `rejected-${reason.toLowerCase()}`;
    await cluster.createPod(boundTo(name, spec));
    const { status } = await cluster.waitForPod(name, "finished", isFinished);
    expect(status).toMatchObject({ phase: "Failed", reason });
    expect(status?.message).toContain(`Pod was rejected: ${message}`);
    expect(status).not.toHaveProperty("containerStatuses");
    expect((status?.conditions ?? []).filter(({ type }) => type === "Ready")).toEqual([]);
    await until("its event", async () =>
      (await cluster.eventsOf(name)).some((event) => event.type === "Warning" && event.reason === reason),
    );
    await cluster.deletePod(name);
    await cluster.waitForPodGone(name);
  });

  test("for a port that is taken is rejected with NodePorts", async () => {
    await cluster.createPod(boundTo("port-first", listening));
    await cluster.waitForPod("port-first", "ready", isReady);
    await cluster.createPod(boundTo("port-second", listening));
    const { status } = await cluster.waitForPod("port-second", "finished", isFinished);
    expect(status).toMatchObject({ phase: "Failed", reason: "NodePorts" });
  });
});

// On a node whose runtime knows of user namespaces, its root is nobody on the node; elsewhere it must not run as the node's.
test("a pod that wants a user namespace of its own gets it, or is told that it cannot", async () => {
  const name = "own-users";
  const [node] = await cluster.readyNodes();
  const handler = node?.status?.runtimeHandlers?.find((candidate) => (candidate.name ?? "") === "");
  // Ends well only where its root is somebody else outside.
  const main = shell("main", "read inside outside count < /proc/self/uid_map; [ $outside -ge 65536 ]");
  await cluster.createPod(podOf(name, [main], { hostUsers: false, restartPolicy: "Never" }));
  if (handler?.features?.userNamespaces === true) {
    const { status } = await cluster.waitForPod(name, "finished", isFinished);
    expect(status?.phase).toBe("Succeeded");
    return;
  }
  if (await runsDocker(cluster)) {
    expect(await rejectionOf(cluster, name)).toMatch(/^Failed: .* hostUsers: false needs a CRI runtime: Docker gives/);
    return;
  }
  const event = await until("an event that says why not", async () =>
    (await cluster.eventsOf(name)).find(({ reason }) => reason === "FailedCreatePodSandBox"),
  );
  expect(event.message).toContain("spec.hostUsers is false, but the runtime's default handler does not support");
  const pod = await cluster.waitForPod(name, "waiting", ({ status }) => status?.containerStatuses?.length === 1);
  expect(pod.status).toMatchObject({ phase: "Pending", containerStatuses: [{ state: { waiting: {} } }] });
});

// It takes most of the node.
test.skipIf(!inject("isLocal"))("a critical pod gets room from others, which say what happened to them", async () => {
  const [node] = await cluster.readyNodes();
  const cpus = Number(node?.status?.allocatable?.["cpu"] ?? "0");
  const most = { cpu: `${Math.floor(cpus * 800)}m` };
  const bound = (name: string, spec: Partial<PodSpec> = {}) => {
    const main = sleeperOf(name).spec.containers.map((container) => ({ ...container, resources: { requests: most } }));
    return boundTo(name, { containers: main, ...spec });
  };
  await cluster.createPod(bound("modest"));
  await cluster.waitForPod("modest", "ready", isReady);
  await cluster.createPod(bound("critical", { priorityClassName: "system-cluster-critical" }));
  const modest = await cluster.waitForPod("modest", "finished", isFinished);
  expect(modest.status).toMatchObject({
    phase: "Failed",
    reason: "Preempting",
    message: "Preempted in order to admit critical pod",
  });
  expect(modest.status?.conditions?.find(({ type }) => type === "DisruptionTarget")).toMatchObject({
    status: "True",
    reason: "TerminationByKubelet",
  });
  await cluster.waitForPod("critical", "ready", isReady);
});
