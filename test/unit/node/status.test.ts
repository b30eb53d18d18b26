import { describe, expect, test } from "vitest";
import { nodeAllocatable, nodeCapacity, reservationProblem, resourceList } from "../../../agent/node/capacity.ts";
import { nodeEvents, readyCondition } from "../../../agent/node/conditions.ts";
import { buildNodeImages } from "../../../agent/node/images.ts";
import { buildInitialNode, type InitialNodeOptions, reconcileExistingNode } from "../../../agent/node/initial-node.ts";
import { buildNodePatch } from "../../../agent/node/patch.ts";
import { rfc3339 } from "../../../agent/lib/rfc3339.ts";
import { buildNodeStatus, type NodeStatusInputs } from "../../../agent/node/status.ts";
import type { Condition, Node } from "../../../agent/kube/types.ts";
import { facts, healthy, statusInputs } from "./status-inputs.ts";

const nowMs = Date.UTC(2026, 0, 1);
const laterMs = nowMs + 60_000;
const GiB = 1 << 30;
const bare: Node = { metadata: { name: "n1" } };
const build = (inputs: Partial<NodeStatusInputs> = {}, existing = bare, atMs = nowMs) =>
  buildNodeStatus(existing, statusInputs(atMs, inputs), atMs).node;
const conditionOf = (node: Node, type: string): Condition | undefined =>
  node.status?.conditions?.find((condition) => condition.type === type);

describe("a healthy node", () => {
  const node = build();

  test("says what the machine is", () => {
    expect(node.status?.nodeInfo).toEqual({
      machineID: "0123456789abcdef",
      systemUUID: "",
      bootID: "boot-1",
      kernelVersion: "6.1.0",
      osImage: "Debian GNU/Linux 12 (bookworm)",
      containerRuntimeVersion: "containerd://1.6.20",
      kubeletVersion: "v1.36.0",
      kubeProxyVersion: "",
      operatingSystem: "linux",
      architecture: "amd64",
    });
    expect(node.status?.daemonEndpoints).toEqual({ kubeletEndpoint: { Port: 10250 } });
    expect(node.status?.runtimeHandlers).toEqual([
      { features: { recursiveReadOnlyMounts: true, userNamespaces: false } },
    ]);
    expect(node.status?.features).toEqual({ supplementalGroupsPolicy: true });
    expect(node.metadata.labels).toMatchObject({ "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64" });
  });

  test("has conditions without problems, Ready last", () => {
    const at = { lastHeartbeatTime: "2026-01-01T00:00:00Z", lastTransitionTime: "2026-01-01T00:00:00Z" };
    expect(node.status?.conditions).toEqual([
      {
        type: "MemoryPressure",
        status: "False",
        reason: "KubeletHasSufficientMemory",
        message: "kubelet has sufficient memory available",
        ...at,
      },
      {
        type: "DiskPressure",
        status: "False",
        reason: "KubeletHasNoDiskPressure",
        message: "kubelet has no disk pressure",
        ...at,
      },
      {
        type: "PIDPressure",
        status: "False",
        reason: "KubeletHasSufficientPID",
        message: "kubelet has sufficient PID available",
        ...at,
      },
      { type: "Ready", status: "True", reason: "KubeletReady", message: "kubelet is posting ready status", ...at },
    ]);
  });

  test("has swap only if there is some", () => {
    expect(build({ facts: { ...facts, swapBytes: GiB } }).status?.nodeInfo?.swap).toEqual({ capacity: GiB });
  });

  test("leaves empty lists out, as the API server does", () => {
    expect(Object.keys(node.status ?? {})).not.toContain("images");
    expect(Object.keys(node.status ?? {})).not.toContain("declaredFeatures");
  });
});

describe("transition times", () => {
  test("stay while a status stays, heartbeats go on", () => {
    const later = build({}, build(), laterMs);
    expect(conditionOf(later, "Ready")).toMatchObject({
      lastHeartbeatTime: rfc3339(laterMs),
      lastTransitionTime: rfc3339(nowMs),
    });
  });

  test("move when it changes", () => {
    const later = build({ local: { pressure: { memory: true, disk: false, pid: false } } }, build(), laterMs);
    expect(conditionOf(later, "MemoryPressure")).toMatchObject({
      status: "True",
      lastTransitionTime: rfc3339(laterMs),
    });
    expect(conditionOf(later, "DiskPressure")).toMatchObject({ status: "False", lastTransitionTime: rfc3339(nowMs) });
  });

  test("conditions of others keep their place and content", () => {
    const other: Condition = { type: "NetworkUnavailable", status: "False", reason: "RouteCreated" };
    const existing: Node = { ...bare, status: { conditions: [other] } };
    const types = build({}, existing).status?.conditions?.map(({ type }) => type);
    expect(types).toEqual(["NetworkUnavailable", "MemoryPressure", "DiskPressure", "PIDPressure", "Ready"]);
    expect(conditionOf(build({}, existing), "NetworkUnavailable")).toBe(other);
  });
});

describe("Ready is False", () => {
  const notReady = { status: false, reason: "NetworkPluginNotReady", message: "cni plugin not initialized" };
  const cases: { name: string; inputs: Partial<NodeStatusInputs>; want: string }[] = [
    {
      name: "before the runtime answered",
      inputs: {
        runtime: { ...healthy(nowMs), lastReadyAtMs: undefined, runtimeReady: undefined, networkReady: undefined },
      },
      want: "[container runtime status check may not have completed yet, network state unknown]",
    },
    {
      name: "when the runtime is silent for 30 s",
      inputs: { runtime: healthy(nowMs - 30_000) },
      want: "container runtime is down",
    },
    {
      name: "when the network is not ready",
      inputs: { runtime: { ...healthy(nowMs), networkReady: notReady } },
      want: "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:cni plugin not initialized",
    },
    {
      name: "when the runtime says so",
      inputs: { runtime: { ...healthy(nowMs), runtimeReady: { status: false, reason: "X", message: "y" } } },
      want: "container runtime not ready: RuntimeReady=false reason:X message:y",
    },
    { name: "during a shutdown", inputs: { local: { isShuttingDown: true } }, want: "node is shutting down" },
    {
      name: "for several reasons, in order, each once",
      inputs: {
        runtime: { ...healthy(nowMs), networkReady: notReady },
        local: {
          podsProblem: "PLEG is not healthy: x",
          storageProblem: "CSINode is not yet initialized",
          isShuttingDown: true,
        },
      },
      want:
        "[PLEG is not healthy: x, container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady " +
        "message:cni plugin not initialized, CSINode is not yet initialized, node is shutting down]",
    },
    {
      name: "without a capacity",
      inputs: { capacity: { cpu: 1_000 } },
      want: "missing node capacity for resources: memory, pods, ephemeral-storage",
    },
  ];
  for (const { name, inputs, want } of cases) {
    test(name, () => {
      expect(conditionOf(build(inputs), "Ready")).toMatchObject({
        status: "False",
        reason: "KubeletNotReady",
        message: want,
      });
    });
  }

  test("a kernel without CPU quota is a warning only", () => {
    const none = { runtime: [], network: [], storage: [], shutdown: [], missingCapacity: [] };
    expect(readyCondition({ ...none, cpuCFSQuotaSupported: false })).toMatchObject({
      status: "True",
      message: "kubelet is posting ready status. WARNING: CPU hardcapping unsupported",
    });
  });
});

describe("capacity and allocatable", () => {
  const options = { maxPods: 110, podsPerCore: 0, localStorageCapacityIsolation: true };
  const none = { reserved: {}, evictionHard: {}, ignoreEviction: false };

  test("capacity is the machine's", () => {
    expect(resourceList(nodeCapacity(facts, options))).toEqual({
      cpu: "4",
      memory: "8Gi",
      pods: "110",
      "ephemeral-storage": "100Gi",
      "hugepages-2Mi": "0",
    });
    expect(nodeCapacity(facts, { ...options, podsPerCore: 10 }).pods).toBe(40);
    expect(
      nodeCapacity(facts, { ...options, localStorageCapacityIsolation: false })["ephemeral-storage"],
    ).toBeUndefined();
  });

  test("reservations and hard thresholds are taken away", () => {
    const reservations = {
      reserved: { cpu: 100, memory: GiB },
      evictionHard: { "memory.available": "100Mi", "nodefs.available": "10%", "imagefs.available": "15%" },
      ignoreEviction: false,
    };
    const capacity = { cpu: 4_000, memory: 8 * GiB, "ephemeral-storage": 85_886_742_528 };
    // 77298068148: what nodes with an 80 GiB disk report everywhere.
    expect(resourceList(nodeAllocatable(capacity, reservations))).toEqual({
      cpu: "3900m",
      memory: "7068Mi",
      "ephemeral-storage": "77298068148",
    });
    expect(nodeAllocatable(capacity, { ...reservations, ignoreEviction: true }).memory).toBe(7 * GiB);
  });

  test("huge pages come out of memory, and nothing goes below zero", () => {
    const capacity = { memory: 8 * GiB, "hugepages-1Gi": 2 * GiB };
    expect(nodeAllocatable(capacity, none)).toEqual({ memory: 6 * GiB, "hugepages-1Gi": 2 * GiB });
    expect(nodeAllocatable(capacity, { ...none, reserved: { memory: 9 * GiB } }).memory).toBe(0);
  });

  test("a reservation larger than the machine is refused", () => {
    expect(reservationProblem({ cpu: 1_000 }, { ...none, reserved: { cpu: 2_000 } })).toMatch(
      /invalid Node Allocatable .*"cpu"/,
    );
    expect(reservationProblem({ cpu: 1_000 }, { ...none, reserved: { cpu: 1_000 } })).toBeUndefined();
  });

  test("resources advertised by others stay, huge page sizes that are gone do not", () => {
    const existing: Node = {
      ...bare,
      status: { capacity: { "example.com/gpu": "2", "hugepages-64Ki": "0", cpu: "1" } },
    };
    const { capacity, allocatable } = build({}, existing).status ?? {};
    expect(capacity).toMatchObject({ cpu: "4", "example.com/gpu": "2" });
    expect(allocatable).toMatchObject({ "example.com/gpu": "2" });
    expect(capacity).not.toHaveProperty("hugepages-64Ki");
  });
});

test("an address that cannot be found leaves the rest of the status whole", () => {
  const existing: Node = { ...bare, status: { addresses: [{ type: "InternalIP", address: "10.0.0.1" }] } };
  const built = buildNodeStatus(
    existing,
    statusInputs(nowMs, { addresses: { kind: "failed", problem: "no address" } }),
    nowMs,
  );
  expect(built.problems).toEqual(["no address"]);
  expect(built.node.status?.addresses).toEqual([{ type: "InternalIP", address: "10.0.0.1" }]);
  expect(conditionOf(built.node, "Ready")?.status).toBe("True");
});

test("images: largest first, digests before tags, five names each", () => {
  const image = (id: string, sizeBytes: number, tags = 1) => ({
    id,
    sizeBytes,
    repoTags: Array.from({ length: tags }, (_, index) => `${id}:${index}`),
    repoDigests: [`${id}@sha256:1`],
    uid: undefined,
    username: "",
    pinned: false,
  });
  const images = [image("small", 1), image("large", 9, 7), image("middle", 5)];
  expect(buildNodeImages(images, 2)).toEqual([
    { names: ["large@sha256:1", "large:0", "large:1", "large:2", "large:3"], sizeBytes: 9 },
    { names: ["middle@sha256:1", "middle:0"], sizeBytes: 5 },
  ]);
  expect(buildNodeImages(images, -1)).toHaveLength(3);
});

describe("the patch", () => {
  test("is empty for the same status, whatever the server's spelling of amounts", () => {
    const node = build();
    const stored: Node = {
      ...node,
      status: { ...node.status, capacity: { ...node.status?.capacity, memory: "8192Mi" } },
    };
    expect(buildNodePatch(stored, node)).toBeUndefined();
  });

  test("of a mere heartbeat has the four conditions alone", () => {
    const patch = buildNodePatch(build(), build({}, build(), laterMs));
    expect(Object.keys(patch?.status ?? {})).toEqual(["conditions"]);
    expect(patch?.status?.conditions).toHaveLength(4);
    expect(buildNodePatch(build(), build({}, build(), laterMs), { ignoreHeartbeat: true })).toBeUndefined();
  });

  test("has only what changed", () => {
    const before = build();
    const after = build({ local: { pressure: { memory: false, disk: true, pid: false } } }, before);
    expect(buildNodePatch(before, after)).toEqual({ status: { conditions: [conditionOf(after, "DiskPressure")] } });
  });

  test("replaces addresses as a whole", () => {
    const addresses = [{ type: "InternalIP" as const, address: "10.0.0.7" }];
    const patch = buildNodePatch(build(), build({ addresses: { kind: "addresses", addresses } }, build()));
    expect(patch?.status?.addresses).toEqual([...addresses, { $patch: "replace" }]);
  });

  test("removes what is gone", () => {
    const before: Node = {
      metadata: { name: "n1", labels: { a: "1" }, annotations: { b: "2" } },
      status: { capacity: { cpu: "1", gone: "1" }, images: [{ names: ["a"], sizeBytes: 1 }] },
    };
    const after: Node = { metadata: { name: "n1" }, status: { capacity: { cpu: "1" } } };
    expect(buildNodePatch(before, after)).toEqual({
      metadata: { labels: { a: null }, annotations: { b: null } },
      status: { capacity: { gone: null }, images: null },
    });
  });
});

describe("events", () => {
  const reasons = (old: Node | undefined, now: Node) => nodeEvents("n1", old, now).map(({ reason }) => reason);

  test("a new node tells its lack of pressure, not that it is Ready", () => {
    expect(reasons(undefined, build())).toEqual([
      "NodeHasSufficientMemory",
      "NodeHasNoDiskPressure",
      "NodeHasSufficientPID",
    ]);
  });

  test("flips are told in the usual words", () => {
    const sick = build(
      { local: { isShuttingDown: true, pressure: { memory: true, disk: false, pid: false } } },
      build(),
    );
    expect(reasons(build(), sick)).toEqual(["NodeHasInsufficientMemory", "NodeNotReady"]);
    expect(nodeEvents("n1", sick, build({}, sick))).toContainEqual({
      type: "Normal",
      reason: "NodeReady",
      message: "Node n1 status is now: NodeReady",
    });
  });

  test("a heartbeat is not", () => expect(reasons(build(), build({}, build(), laterMs))).toEqual([]));
});

describe("registration", () => {
  const options: InitialNodeOptions = {
    nodeName: "n1",
    hostname: "n1",
    nodeLabels: {},
    registerWithTaints: [],
    cloudProvider: "",
    providerID: "",
    enableControllerAttachDetach: true,
  };
  const initial = (more: Partial<InitialNodeOptions> = {}) => buildInitialNode({ ...options, ...more }, facts);

  test("a new node has its labels, annotation and nothing else", () => {
    expect(initial()).toEqual({
      apiVersion: "v1",
      kind: "Node",
      metadata: {
        name: "n1",
        labels: {
          "kubernetes.io/hostname": "n1",
          "kubernetes.io/os": "linux",
          "kubernetes.io/arch": "amd64",
          "beta.kubernetes.io/os": "linux",
          "beta.kubernetes.io/arch": "amd64",
        },
        annotations: { "volumes.kubernetes.io/controller-managed-attach-detach": "true" },
      },
      spec: {},
    });
  });

  test("configured labels win, taints and provider ID are taken over", () => {
    const taint = { key: "a", effect: "NoSchedule" as const };
    const node = initial({
      nodeLabels: { "kubernetes.io/hostname": "x" },
      registerWithTaints: [taint],
      providerID: "p://1",
    });
    expect(node.metadata.labels?.["kubernetes.io/hostname"]).toBe("x");
    expect(node.spec).toEqual({ taints: [taint], providerID: "p://1" });
  });

  test("an external cloud provider finds the node tainted", () => {
    expect(initial({ cloudProvider: "external" }).spec?.taints).toEqual([
      { key: "node.cloudprovider.kubernetes.io/uninitialized", value: "true", effect: "NoSchedule" },
    ]);
  });

  test("an existing node: what is ours is corrected, what is others' stays", () => {
    const existing: Node = {
      metadata: {
        name: "n1",
        uid: "u",
        labels: { "kubernetes.io/hostname": "old", "kubernetes.io/arch": "arm64", team: "a" },
        annotations: { note: "b" },
      },
      spec: { unschedulable: true, taints: [{ key: "keep", effect: "NoExecute" }], providerID: "old" },
      status: {
        capacity: { "example.com/gpu": "2", "hugepages-64Ki": "1Gi", cpu: "4" },
        allocatable: { "example.com/gpu": "2" },
      },
    };
    const ours: Node = {
      ...initial({ nodeLabels: { team: "b" } }),
      status: { capacity: { "hugepages-2Mi": "0", cpu: "8" } },
    };
    const wanted = reconcileExistingNode(existing, ours, { resetExtendedResources: true });
    expect(wanted.metadata.labels).toMatchObject({
      "kubernetes.io/hostname": "n1",
      "kubernetes.io/arch": "amd64",
      team: "a",
    });
    expect(wanted.metadata.annotations).toEqual({
      note: "b",
      "volumes.kubernetes.io/controller-managed-attach-detach": "true",
    });
    expect(wanted.spec).toBe(existing.spec);
    expect(wanted.status?.capacity).toEqual({ "example.com/gpu": "0", cpu: "4", "hugepages-2Mi": "0" });
    expect(wanted.status?.allocatable).toEqual({ "example.com/gpu": "0" });
    const kept = reconcileExistingNode(existing, ours, { resetExtendedResources: false });
    expect(kept.status?.capacity?.["example.com/gpu"]).toBe("2");
  });

  test("an empty default label removes it; the annotation goes when detaching is the agent's", () => {
    const existing: Node = {
      metadata: {
        name: "n1",
        labels: { "topology.kubernetes.io/zone": "z" },
        annotations: { "volumes.kubernetes.io/controller-managed-attach-detach": "true" },
      },
    };
    const ours = initial({ nodeLabels: { "topology.kubernetes.io/zone": "" }, enableControllerAttachDetach: false });
    const wanted = reconcileExistingNode(existing, ours, { resetExtendedResources: false });
    expect(wanted.metadata.labels).not.toHaveProperty("topology.kubernetes.io/zone");
    expect(wanted.metadata.annotations).toEqual({});
  });
});
