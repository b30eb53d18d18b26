import { readFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import type { Condition, Container, ContainerStatus, Pod, ResourceRequirements } from "../../agent/kube/types.ts";
import { quantityMilli, quantityValue } from "../../agent/kube/quantity.ts";
import { isFinished, isReady, openNamespace, type TestNamespace, until } from "./support/cluster.ts";
import { type Kubectl, openKubectl } from "./support/kubectl.ts";
import { type BreakableCluster, identityOf, openBreakableCluster, podCgroups, restartAgent } from "./support/local.ts";
import { podOf, shell } from "./support/pods.ts";

const waits = "trap 'exit 0' TERM; while true; do sleep 1 & wait $!; done";
const mib = 1 << 20;

const both = (cpu: string, memory: string): ResourceRequirements => ({
  requests: { cpu, memory },
  limits: { cpu, memory },
});
const sized = (name: string, resources: ResourceRequirements, more: Partial<Container> = {}) =>
  shell(name, waits, { resources, ...more });
const statusOf = (pod: Pod, name = "main"): ContainerStatus | undefined =>
  [...(pod.status?.initContainerStatuses ?? []), ...(pod.status?.containerStatuses ?? [])].find(
    (status) => status.name === name,
  );
const conditionOf = (pod: Pod, type: "PodResizePending" | "PodResizeInProgress"): Condition | undefined =>
  pod.status?.conditions?.find((condition) => condition.type === type);
const isSettled = (pod: Pod) =>
  conditionOf(pod, "PodResizePending") === undefined && conditionOf(pod, "PodResizeInProgress") === undefined;
const has = (resources: ResourceRequirements, name = "main") => {
  const isEqual = (a: ResourceRequirements | undefined, part: "requests" | "limits") =>
    quantityMilli(a?.[part]?.["cpu"]) === quantityMilli(resources[part]?.["cpu"]) &&
    quantityValue(a?.[part]?.["memory"]) === quantityValue(resources[part]?.["memory"]);
  return (pod: Pod) => {
    const shown = statusOf(pod, name)?.resources;
    return isSettled(pod) && isReady(pod) && isEqual(shown, "requests") && isEqual(shown, "limits");
  };
};

/** What the kernel gives a container, as it sees it itself. Works with both versions of cgroups. */
async function limitsInside(kubectl: Kubectl, pod: string, container = "main") {
  const script = [
    "cd /sys/fs/cgroup; if [ -e memory.max ]",
    "then cat cpu.max | tr ' ' '\\n' | head -1; cat memory.max",
    "else cat cpu/cpu.cfs_quota_us memory/memory.limit_in_bytes; fi",
  ].join("; ");
  const [quotaUs, memoryBytes] = (await kubectl.demand(["exec", pod, "-c", container, "--", "sh", "-c", script]))
    .trim()
    .split("\n");
  return { milliCPU: Number(quotaUs) / 100, memoryBytes: Number(memoryBytes) };
}

async function resize(kubectl: Kubectl, pod: string, resources: ResourceRequirements, container = "main") {
  const list = container.startsWith("side") ? "initContainers" : "containers";
  const patch = JSON.stringify({ spec: { [list]: [{ name: container, resources }] } });
  await kubectl.demand(["patch", "pod", pod, "--subresource", "resize", "--patch", patch]);
}

const reasonsOf = async (cluster: TestNamespace, pod: string) =>
  (await cluster.eventsOf(pod)).map(({ reason }) => reason).filter((reason) => reason?.startsWith("Resize") === true);

describe("a pod that is resized in place", () => {
  let cluster: TestNamespace;
  let kubectl: Kubectl;

  beforeAll(async () => {
    cluster = await openNamespace(inject("kubeconfig"));
    kubectl = openKubectl(inject("kubeconfig"), cluster.namespace);
  });
  afterAll(() => cluster[Symbol.asyncDispose]());

  test("gets more and less of cpu and memory, and its containers do not notice", async () => {
    await cluster.createPod(podOf("grows", [sized("main", both("100m", "64Mi"))]));
    const before = await cluster.waitForPod("grows", "ready", isReady);
    for (const [cpu, memory] of [
      ["200m", "128Mi"],
      ["50m", "128Mi"],
      ["150m", "96Mi"],
    ] as const) {
      const wanted = both(cpu, memory);
      await resize(kubectl, "grows", wanted);
      const pod = await cluster.waitForPod("grows", `resized to ${cpu} and ${memory}`, has(wanted));
      expect(await limitsInside(kubectl, "grows")).toEqual({
        milliCPU: quantityMilli(cpu),
        memoryBytes: quantityValue(memory),
      });
      expect(statusOf(pod)?.allocatedResources).toEqual(wanted.requests);
      expect(pod.status?.observedGeneration).toBe(pod.metadata.generation);
    }
    expect(identityOf(await cluster.getPod("grows"))).toEqual(identityOf(before));
    expect(before.status?.qosClass).toBe("Guaranteed");
    await until("its events", async () => (await reasonsOf(cluster, "grows")).includes("ResizeCompleted"));
    expect(await reasonsOf(cluster, "grows")).toEqual(expect.arrayContaining(["ResizeStarted", "ResizeCompleted"]));
    // For each step, who watched saw that it was under way, and of which spec.
    const generations = cluster
      .history("grows")
      .flatMap((pod) => conditionOf(pod, "PodResizeInProgress")?.observedGeneration ?? []);
    expect(new Set(generations).size).toBeGreaterThanOrEqual(1);
  });

  test("restarts the container whose policy says so, and only that one", async () => {
    const resizePolicy: Container["resizePolicy"] = [
      { resourceName: "cpu", restartPolicy: "NotRequired" },
      { resourceName: "memory", restartPolicy: "RestartContainer" },
    ];
    const containers = [sized("main", both("50m", "64Mi"), { resizePolicy }), sized("other", both("50m", "32Mi"))];
    await cluster.createPod(podOf("restarts", containers));
    const before = await cluster.waitForPod("restarts", "ready", isReady);
    await resize(kubectl, "restarts", both("100m", "64Mi"));
    const faster = await cluster.waitForPod("restarts", "given more cpu", has(both("100m", "64Mi")));
    expect(identityOf(faster)).toEqual(identityOf(before));
    await resize(kubectl, "restarts", both("100m", "96Mi"));
    const after = await cluster.waitForPod(
      "restarts",
      "restarted",
      (pod) => has(both("100m", "96Mi"))(pod) && statusOf(pod)?.restartCount === 1,
    );
    expect(statusOf(after, "other")).toMatchObject({ restartCount: 0 });
    expect(await limitsInside(kubectl, "restarts")).toEqual({ milliCPU: 100, memoryBytes: 96 * mib });
    await until("the event", async () => {
      const messages = (await cluster.eventsOf("restarts")).map(({ message }) => message);
      return messages.includes("Container main resize requires restart");
    });
  });

  test("resizes sidecars, too", async () => {
    const side = sized("side", both("50m", "32Mi"), { restartPolicy: "Always" });
    await cluster.createPod(podOf("with-sidecar", [sized("main", both("50m", "32Mi"))], { initContainers: [side] }));
    await cluster.waitForPod("with-sidecar", "ready", isReady);
    await resize(kubectl, "with-sidecar", both("80m", "48Mi"), "side");
    const pod = await cluster.waitForPod("with-sidecar", "resized", has(both("80m", "48Mi"), "side"));
    expect(statusOf(pod, "side")?.restartCount).toBe(0);
    expect(await limitsInside(kubectl, "with-sidecar", "side")).toEqual({ milliCPU: 80, memoryBytes: 48 * mib });
  });

  test("has its own resources resized, and with them what containers have that have none", async () => {
    const resources = both("100m", "64Mi");
    await cluster.createPod(podOf("whole", waits, { resources }));
    const before = await cluster.waitForPod("whole", "ready", isReady);
    const wanted = both("150m", "96Mi");
    const patch = JSON.stringify({ spec: { resources: wanted } });
    await kubectl.demand(["patch", "pod", "whole", "--subresource", "resize", "--patch", patch]);
    const pod = await cluster.waitForPod(
      "whole",
      "resized",
      (p) => isSettled(p) && p.status?.resources?.limits?.["memory"] === "96Mi",
    );
    expect(pod.status).toMatchObject({ resources: wanted, allocatedResources: wanted.requests });
    expect(await limitsInside(kubectl, "whole")).toEqual({ milliCPU: 150, memoryBytes: 96 * mib });
    expect(identityOf(pod)).toEqual(identityOf(before));
  });

  test("waits while others have what it wants, and gets it when they are gone", async () => {
    const [node] = await cluster.readyNodes();
    const allocatable = quantityValue(node?.status?.allocatable?.["memory"]);
    const most = String(Math.floor(allocatable * 0.6));
    const requests = (memory: string): ResourceRequirements => ({ requests: { cpu: "10m", memory } });
    await cluster.createPod(podOf("big", [sized("main", requests(most))]));
    await cluster.waitForPod("big", "ready", isReady);
    await cluster.createPod(podOf("waits", [sized("main", requests("32Mi"))]));
    await cluster.waitForPod("waits", "ready", isReady);
    await resize(kubectl, "waits", requests(most));
    const waiting = await cluster.waitForPod(
      "waits",
      "deferred",
      (pod) => conditionOf(pod, "PodResizePending")?.reason === "Deferred",
    );
    const pending = conditionOf(waiting, "PodResizePending");
    expect(pending).toMatchObject({ status: "True", observedGeneration: waiting.metadata.generation });
    expect(pending?.message).toMatch(
      /^Node didn't have enough resource: memory, requested: \d+, used: \d+, capacity: /,
    );
    expect(quantityValue(statusOf(waiting)?.allocatedResources?.["memory"])).toBe(32 * mib);
    await cluster.deletePod("big");
    await cluster.waitForPodGone("big");
    const pod = await cluster.waitForPod(
      "waits",
      "resized",
      (p) => isSettled(p) && quantityValue(statusOf(p)?.allocatedResources?.["memory"]) === Number(most),
    );
    expect(statusOf(pod)?.restartCount).toBe(0);
    await until("its events", async () => (await reasonsOf(cluster, "waits")).includes("ResizeCompleted"));
    expect(await reasonsOf(cluster, "waits")).toEqual(
      expect.arrayContaining(["ResizeDeferred", "ResizeStarted", "ResizeCompleted"]),
    );
    await cluster.deletePod("waits");
  });

  test("never gets more than its node has, says so, and forgets it with the next spec", async () => {
    const requests = (cpu: string): ResourceRequirements => ({ requests: { cpu, memory: "16Mi" } });
    await cluster.createPod(podOf("dreams", [sized("main", requests("20m"))]));
    await cluster.waitForPod("dreams", "ready", isReady);
    await resize(kubectl, "dreams", requests("1000"));
    const pod = await cluster.waitForPod(
      "dreams",
      "refused",
      (p) => conditionOf(p, "PodResizePending")?.reason === "Infeasible",
    );
    expect(conditionOf(pod, "PodResizePending")?.message).toMatch(
      /^Node didn't have enough capacity: cpu, requested: 1000000, capacity: \d+$/,
    );
    await resize(kubectl, "dreams", requests("20m"));
    await cluster.waitForPod("dreams", "as before", has(requests("20m")));
    await until("its event", async () => (await reasonsOf(cluster, "dreams")).includes("ResizeInfeasible"));
    expect(await reasonsOf(cluster, "dreams")).not.toContain("ResizeStarted");
  });

  test("keeps its memory while it uses more than it is to have, and loses it when it does not", async () => {
    const fill = "dd if=/dev/zero of=/memory/file bs=1M count=40 2>/dev/null";
    const script = `${fill}; trap 'exit 0' TERM; until [ -e /memory/go ]; do sleep 0.2; done; rm /memory/file; ${waits}`;
    const volumeMounts = [{ name: "memory", mountPath: "/memory" }];
    const main = shell("main", script, { resources: both("100m", "96Mi"), volumeMounts });
    await cluster.createPod(podOf("full", [main], { volumes: [{ name: "memory", emptyDir: { medium: "Memory" } }] }));
    await cluster.waitForPod("full", "ready", isReady);
    await until("its memory is in use", async () => {
      const { code } = await kubectl.run([
        "exec",
        "full",
        "--",
        "sh",
        "-c",
        "[ $(stat -c %s /memory/file) = 41943040 ]",
      ]);
      return code === 0;
    });
    await resize(kubectl, "full", both("100m", "24Mi"));
    const failed = await cluster.waitForPod(
      "full",
      "refused",
      (pod) => conditionOf(pod, "PodResizeInProgress")?.reason === "Error",
    );
    expect(conditionOf(failed, "PodResizeInProgress")?.message).toMatch(
      /memory limit \(25165824\) below current usage/,
    );
    expect((await limitsInside(kubectl, "full")).memoryBytes).toBe(96 * mib);
    await kubectl.demand(["exec", "full", "--", "touch", "/memory/go"]);
    const pod = await cluster.waitForPod("full", "resized", has(both("100m", "24Mi")));
    expect(statusOf(pod)?.restartCount).toBe(0);
    expect((await limitsInside(kubectl, "full")).memoryBytes).toBe(24 * mib);
  });

  test("has what it was given when a container of it starts anew", async () => {
    await cluster.createPod(podOf("again", [sized("main", both("50m", "32Mi"))]));
    await cluster.waitForPod("again", "ready", isReady);
    await resize(kubectl, "again", both("70m", "48Mi"));
    await cluster.waitForPod("again", "resized", has(both("70m", "48Mi")));
    await kubectl.run(["exec", "again", "--", "sh", "-c", "kill 1"]); // which may end with it
    await cluster.waitForPod("again", "restarted", (pod) => statusOf(pod)?.restartCount === 1 && isReady(pod));
    expect(await limitsInside(kubectl, "again")).toEqual({ milliCPU: 70, memoryBytes: 48 * mib });
  });
});

describe.skipIf(!inject("isLocal"))("an agent that is killed while it resizes", () => {
  let env: BreakableCluster;
  let kubectl: Kubectl;

  beforeAll(async () => {
    env = await openBreakableCluster();
    kubectl = openKubectl(env.local.kubeconfig, env.cluster.namespace);
  });
  afterAll(() => env?.[Symbol.asyncDispose]());

  const memoryOfPod = async () => {
    const paths = await podCgroups(env);
    const path = paths.find((one) => one.startsWith("/sys/fs/cgroup/memory/")) ?? paths[0] ?? "";
    const v1 = await readFile(`${path}/memory.limit_in_bytes`, "utf8").catch(() => undefined);
    return Number((v1 ?? (await readFile(`${path}/memory.max`, "utf8"))).trim());
  };

  test("at any moment: containers end up with what was asked for, none restarts, and the pod's cgroup fits", async () => {
    const { cluster } = env;
    await cluster.createPod(
      podOf("witness", [sized("main", both("50m", "48Mi")), sized("other", both("50m", "16Mi"))]),
    );
    const before = await cluster.waitForPod("witness", "ready", isReady);
    const sizes = ["64Mi", "32Mi", "96Mi", "40Mi", "80Mi", "24Mi"];
    for (const [i, memory] of sizes.entries()) {
      await resize(kubectl, "witness", both(`${50 + i}m`, memory));
      await sleep(Math.random() * 80); // a resize takes some 50 ms here
      await restartAgent(env, "SIGKILL");
    }
    const wanted = both("55m", "24Mi");
    const after = await cluster.waitForPod("witness", "resized", has(wanted));
    expect(identityOf(after)).toEqual(identityOf(before));
    expect(await limitsInside(kubectl, "witness")).toEqual({ milliCPU: 55, memoryBytes: 24 * mib });
    expect(await memoryOfPod()).toBe(40 * mib);
  });

  test("at any moment of a restart that a resize needs: as many restarts as resizes, at most", async () => {
    const { cluster } = env;
    const resizePolicy: Container["resizePolicy"] = [{ resourceName: "memory", restartPolicy: "RestartContainer" }];
    await cluster.createPod(podOf("restarts", [sized("main", both("50m", "16Mi"), { resizePolicy })]));
    await cluster.waitForPod("restarts", "ready", isReady);
    const sizes = ["24Mi", "20Mi", "32Mi", "28Mi"];
    for (const memory of sizes) {
      await resize(kubectl, "restarts", both("50m", memory));
      await sleep(Math.random() * 300);
      await restartAgent(env, "SIGKILL");
    }
    const pod = await cluster.waitForPod("restarts", "resized", has(both("50m", "28Mi")));
    expect(statusOf(pod)?.restartCount).toBeGreaterThanOrEqual(1);
    expect(statusOf(pod)?.restartCount).toBeLessThanOrEqual(sizes.length);
    expect((await limitsInside(kubectl, "restarts")).memoryBytes).toBe(28 * mib);
    const before = identityOf(pod);
    await restartAgent(env, "SIGKILL");
    await sleep(2_000);
    expect(identityOf(await cluster.getPod("restarts"))).toEqual(before);
    await cluster.deletePod("restarts");
    await cluster.waitForPodGone("restarts");
  });

  test("with damaged records, it goes by the specs and restarts nothing", async () => {
    const { cluster, local } = env;
    const before = await cluster.getPod("witness");
    await local.agent.stop("SIGKILL");
    for (const name of ["allocated_pods_state", "actuated_pods_state"]) {
      await local.node.exec("truncate", ["--size", "20", `${local.rootDir}/${name}`]);
    }
    await local.agent.start();
    await resize(kubectl, "witness", both("60m", "32Mi"));
    const after = await cluster.waitForPod("witness", "resized", has(both("60m", "32Mi")));
    expect(identityOf(after)).toEqual(identityOf(before));
    expect(await limitsInside(kubectl, "witness")).toEqual({ milliCPU: 60, memoryBytes: 32 * mib });
    expect(isFinished(after)).toBe(false);
  });
});
