import { expect, test } from "vitest";
import type { Node, Pod } from "../../../agent/kube/types.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { AdmissionGate, type GateDeps } from "../../../agent/pods/admission/gate.ts";
import { settle } from "../kube/fake-clock.ts";
import { podOf } from "./support.ts";

const node: Node = {
  metadata: { name: "node1", labels: { disk: "ssd" } },
  status: { allocatable: { cpu: "2", memory: "1Gi", pods: "10" } },
};

function setUp(changes: Partial<GateDeps> = {}) {
  const admitted: Pod[] = [];
  const told: string[] = [];
  const gate = new AdmissionGate({
    context: () => ({
      node,
      pressures: [],
      allowedUnsafeSysctls: [],
      kernelVersion: "6.1.0",
      isAppArmorEnabled: false,
      isShuttingDown: false,
    }),
    given: (pod) => pod,
    active: () => admitted,
    fetchNode: async () => await Promise.resolve(node),
    preempt: async (victim, resource) => {
      told.push(`${victim.metadata.name} preempted for ${resource}`);
      admitted.splice(admitted.indexOf(victim), 1);
      await Promise.resolve();
    },
    onAdmitted: (pod) => {
      admitted.push(pod);
      told.push(`${pod.metadata.name} admitted`);
    },
    onRejected: (pod, { reason }) => told.push(`${pod.metadata.name} ${reason}`),
    log: silentLogger,
    ...changes,
  });
  return { gate, told };
}

const asking = (name: string, cpu: string, more: Partial<Pod["spec"]> = {}, createdAt = 0) =>
  podOf(
    { containers: [{ name: "app", resources: { requests: { cpu } } }], ...more },
    { name, uid: name, creationTimestamp: new Date(createdAt).toISOString() },
  );

test("a pod is let in again with what it was given before, whatever it asks for by now", async () => {
  const given = (pod: Pod) => asking(pod.metadata.name, "1");
  const { gate, told } = setUp({ given });
  gate.open();
  gate.arrive(asking("resized", "64"));
  await settle();
  expect(told).toEqual(["resized admitted"]);
});

test("pods that arrive in one breath are all decided about", async () => {
  const { gate, told } = setUp();
  gate.open();
  for (const name of ["a", "b", "c"]) gate.arrive(asking(name, "100m"));
  await settle();
  expect(told).toEqual(["a admitted", "b admitted", "c admitted"]);
});

test("nobody is let in before all are known, and then the oldest comes first", async () => {
  const { gate, told } = setUp();
  gate.arrive(asking("young", "1500m", {}, 2_000));
  gate.arrive(asking("old", "1500m", {}, 1_000));
  await settle();
  expect(told).toEqual([]);
  gate.open();
  await settle();
  expect(told).toEqual(["old admitted", "young OutOfcpu"]);
});

test("a critical pod gets room from one that is not", async () => {
  const { gate, told } = setUp();
  gate.open();
  gate.arrive(asking("batch", "1500m", { priority: 0 }));
  await settle();
  gate.arrive(asking("dns", "1", { priority: 2_000_000_000 }));
  await settle();
  expect(told).toEqual(["batch admitted", "batch preempted for cpu", "dns admitted"]);
});

test("a label that the scheduler saw already counts, although we hear of it later", async () => {
  const newer: Node = { ...node, metadata: { name: "node1", labels: { disk: "nvme" } } };
  const { gate, told } = setUp({ fetchNode: async () => await Promise.resolve(newer) });
  gate.open();
  gate.arrive(asking("fast", "100m", { nodeSelector: { disk: "nvme" } }));
  gate.arrive(asking("wrong", "100m", { nodeSelector: { disk: "tape" } }));
  await settle();
  expect(told).toEqual(["fast admitted", "wrong NodeAffinity"]);
});

test("a pod that leaves while it is thought about is not started", async () => {
  const answer = Promise.withResolvers<Node>();
  const { gate, told } = setUp({ fetchNode: async () => await answer.promise });
  gate.open();
  gate.arrive(asking("gone", "100m", { nodeSelector: { disk: "nvme" } }));
  gate.leave("gone");
  answer.resolve(node);
  await settle();
  expect(told).toEqual([]);
});

test("while the API server is away, what is known of the node decides", async () => {
  const { gate, told } = setUp({ fetchNode: async () => await Promise.reject(new Error("away")) });
  gate.open();
  gate.arrive(asking("picky", "100m", { nodeSelector: { disk: "nvme" } }));
  await settle();
  expect(told).toEqual(["picky NodeAffinity"]);
});

test("static pods do not wait for what others are there", async () => {
  const { gate, told } = setUp();
  gate.arrive(asking("ordinary", "100m"));
  const annotations = { "kubernetes.io/config.source": "file" };
  gate.arrive(podOf({}, { name: "static", uid: "static", annotations }));
  await settle();
  expect(told).toEqual(["static admitted"]);
  gate.open();
  await settle();
  expect(told).toEqual(["static admitted", "ordinary admitted"]);
});

test("a pod of which nothing can be made is turned away and holds up nobody", async () => {
  const given = (pod: Pod) => {
    if (pod.metadata.name === "odd") throw new Error("cannot be");
    return pod;
  };
  const { gate, told } = setUp({ given });
  gate.open();
  gate.arrive(asking("odd", "100m", {}, 1_000));
  gate.arrive(asking("good", "100m", {}, 2_000));
  await settle();
  expect(told).toEqual(["odd UnexpectedAdmissionError", "good admitted"]);
});

test("what counts is the pod as it is when the thinking is over", async () => {
  const room = Promise.withResolvers<void>();
  const seen: (string | undefined)[] = [];
  const onAdmitted = (pod: Pod) => seen.push(pod.spec.containers[0]?.image);
  const { gate } = setUp({
    active: () => [asking("batch", "1500m", { priority: 0 })],
    preempt: async () => await room.promise,
    onAdmitted,
  });
  gate.open();
  const dns = asking("dns", "1", { priority: 2_000_000_000 });
  gate.arrive(dns);
  await settle();
  const containers = dns.spec.containers.map((container) => ({ ...container, image: "newer" }));
  gate.arrive({ ...dns, spec: { ...dns.spec, containers } });
  room.resolve();
  await settle();
  expect(seen).toEqual(["newer"]);
});

test("a pod for which room was made is turned away if the node has begun to shut down meanwhile", async () => {
  let isShuttingDown = false;
  const told: string[] = [];
  const context = () => ({
    node,
    pressures: [],
    allowedUnsafeSysctls: [],
    kernelVersion: "6.1.0",
    isAppArmorEnabled: false,
    isShuttingDown,
  });
  const { gate } = setUp({
    context,
    active: () => [asking("batch", "1500m", { priority: 0 })],
    preempt: async () => {
      isShuttingDown = true;
      await Promise.resolve();
    },
    onRejected: (_pod, { reason }) => told.push(reason),
  });
  gate.open();
  gate.arrive(asking("dns", "1", { priority: 2_000_000_000 }));
  await settle();
  expect(told).toEqual(["NodeShutdown"]);
});

test("a victim that does not end in its time holds up nobody for ever", async () => {
  const { gate, told } = setUp({
    active: () => [asking("stuck", "1500m", { priority: 0 })],
    preempt: async () => await Promise.resolve(),
    onAdmitted: (pod) => told.push(`${pod.metadata.name} admitted`),
  });
  gate.open();
  gate.arrive(asking("dns", "1", { priority: 2_000_000_000 }));
  await settle();
  expect(told).toEqual(["dns admitted"]);
});

test("a pod that leaves while room is made for it is not started", async () => {
  const room = Promise.withResolvers<void>();
  const { gate, told } = setUp({
    active: () => [asking("batch", "1500m", { priority: 0 })],
    preempt: async () => await room.promise,
  });
  gate.open();
  gate.arrive(asking("dns", "1", { priority: 2_000_000_000 }));
  await settle();
  gate.leave("dns");
  room.resolve();
  await settle();
  expect(told).toEqual([]);
});
