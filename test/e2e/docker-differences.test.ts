import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { runtimeClasses, secrets } from "../../agent/kube/resources.ts";
import type { ContainerStatus, Pod, PodSpec, RuntimeClass, Secret } from "../../agent/kube/types.ts";
import { differences } from "../../agent/runtime/docker/refusals.ts";
import { isFinished, isReady, isRunning, until } from "./support/cluster.ts";
import { openKubectl } from "./support/kubectl.ts";
import { type BreakableCluster, openBreakableCluster } from "./support/local.ts";
import { image, jobOf, podOf, shell, sleeperOf } from "./support/pods.ts";

// What the README's table says of Docker, as somebody sees it who does not know the table.

const statusOf = ({ status }: Pod): ContainerStatus | undefined => status?.containerStatuses?.[0];
const containerIDOf = (pod: Pod) => statusOf(pod)?.containerID?.replace(/^docker:\/\//, "") ?? "";

/** A pod for each row that rejects one. */
const rejected: { row: string; pod: Pod; message: RegExp; reason?: string }[] = [
  {
    row: "`hostUsers: false` (user namespaces, ID-mapped mounts)",
    pod: sleeperOf("users", { hostUsers: false }),
    message: /container runtime cannot run the pod: hostUsers: false needs a CRI runtime/,
  },
  {
    row: "`supplementalGroupsPolicy: Strict`",
    pod: sleeperOf("strict", { securityContext: { supplementalGroupsPolicy: "Strict" } }),
    // The node does not declare the feature, which is looked at first.
    reason: "SupplementalGroupsPolicyNotSupported",
    message: /SupplementalGroupsPolicy=Strict is not supported in this node/,
  },
  {
    row: "Volumes of type `image`",
    pod: podOf("image", [shell("main", "true", { volumeMounts: [{ name: "tools", mountPath: "/tools" }] })], {
      volumes: [{ name: "tools", image: { reference: image } }],
    }),
    message: /volume "tools": image volumes need a CRI runtime/,
  },
  {
    row: "`recursiveReadOnly: Enabled`",
    pod: podOf(
      "read-only",
      [
        shell("main", "true", {
          volumeMounts: [{ name: "v", mountPath: "/v", readOnly: true, recursiveReadOnly: "Enabled" }],
        }),
      ],
      { volumes: [{ name: "v", emptyDir: {} }] },
    ),
    message: /volumeMount "v": recursive read-only mounts need Docker Engine 25 or later/,
  },
  {
    row: "A memory limit below 6 MiB",
    pod: podOf("little", [shell("main", "true", { resources: { limits: { memory: "4Mi" } } })]),
    message: /container "main": a memory limit of 4194304 bytes is below 6291456 \(6Mi\)/,
  },
];

describe.skipIf(!inject("isLocal"))("with Docker", () => {
  let env: BreakableCluster;

  beforeAll(async () => {
    env = await openBreakableCluster({}, [], { runtime: "docker" });
  });
  afterAll(() => env?.[Symbol.asyncDispose]());

  test("every row that says so rejects a pod", () => {
    const rows = differences.filter(({ outcome }) => /pod (is )?rejected/i.test(outcome));
    expect(rejected.map(({ row }) => row)).toEqual(rows.map(({ subject }) => subject));
  });

  test.each(rejected)("a pod is rejected that asks for: $row", async ({ pod, message, reason }) => {
    const { cluster } = env;
    const { name } = pod.metadata;
    const [node] = await cluster.readyNodes();
    const handler = node?.status?.runtimeHandlers?.find((one) => (one.name ?? "") === "");
    await cluster.createPod(pod);
    if (name === "read-only" && handler?.features?.recursiveReadOnlyMounts === true) {
      await cluster.waitForPod(name, "running", isRunning); // with a newer Engine
      return;
    }
    const { status } = await cluster.waitForPod(name, "finished", isFinished);
    expect(status).toMatchObject({ phase: "Failed", reason: reason ?? "PodFeatureUnsupported" });
    expect(status?.message).toMatch(message);
    const isToldByEvent = async () => (await cluster.eventsOf(name)).some((event) => message.test(event.message ?? ""));
    await until("its event", isToldByEvent);
  });

  test("a RuntimeClass is one of the daemon's runtimes, or an event says that it is not", async () => {
    const { cluster } = env;
    const create = async (name: string, handler: string) =>
      await cluster.client.create<RuntimeClass>(runtimeClasses, {
        apiVersion: "node.k8s.io/v1",
        kind: "RuntimeClass",
        metadata: { name },
        handler,
      });
    await create("usual", "runc");
    await create("odd", "gvisor");
    await cluster.createPod(sleeperOf("of-usual", { runtimeClassName: "usual" }));
    await cluster.createPod(sleeperOf("of-odd", { runtimeClassName: "odd" }));
    await cluster.waitForPod("of-usual", "ready", isReady);
    const event = await until("an event that says why not", async () =>
      (await cluster.eventsOf("of-odd")).find(({ reason }) => reason === "FailedCreatePodSandBox"),
    );
    expect(event.message).toMatch(/gvisor/);
    expect((await cluster.getPod("of-odd")).status?.phase).toBe("Pending");
  });

  test("a variable that is not text is named where the container waits, without its value", async () => {
    const { cluster } = env;
    await cluster.create<Secret>(secrets, {
      apiVersion: "v1",
      kind: "Secret",
      metadata: { name: "bytes" },
      data: { key: Buffer.from("s3cr3t\xff", "latin1").toString("base64") },
    });
    const main = shell("main", "true", {
      env: [{ name: "BYTES", valueFrom: { secretKeyRef: { name: "bytes", key: "key" } } }],
    });
    await cluster.createPod(podOf("bytes", [main]));
    const waitingOf = (pod: Pod) => statusOf(pod)?.state?.waiting;
    const pod = await cluster.waitForPod("bytes", "held up", (seen) => waitingOf(seen)?.message !== undefined);
    expect(waitingOf(pod)?.message).toMatch(/environment variable "BYTES" is no UTF-8 text/);
    expect(JSON.stringify([pod.status, await cluster.eventsOf("bytes")])).not.toContain("s3cr3t");
  });

  test("a checkpoint is refused, and the container runs on", async () => {
    const { cluster, local } = env;
    await cluster.createPod(sleeperOf("kept"));
    const before = await cluster.waitForPod("kept", "ready", isReady);
    const path = `/api/v1/nodes/${local.node.name}/proxy/checkpoint/${cluster.namespace}/kept/main`;
    const kubectl = openKubectl(local.kubeconfig, cluster.namespace);
    const { code, stderr } = await kubectl.run(["create", "--raw", path, "-f", "-"], { stdin: "{}" });
    expect(code).not.toBe(0);
    expect(stderr).toMatch(/checkpointing of \S+\/kept\/main failed .*needs a CRI runtime, this is Docker/);
    expect(containerIDOf(await cluster.getPod("kept"))).toBe(containerIDOf(before));
  });

  test("a pod that mounts Docker's own directory keeps no other pod from its end", async () => {
    const { cluster, local } = env;
    await cluster.createPod(sleeperOf("before"));
    await cluster.waitForPod("before", "ready", isReady);
    const volumes = [{ name: "docker", hostPath: { path: `${local.node.dir}/docker` } }];
    const looks = "ls /docker > /dev/termination-log; trap 'exit 0' TERM; while true; do sleep 1 & wait $!; done";
    const main = shell("main", looks, { volumeMounts: [{ name: "docker", mountPath: "/docker", readOnly: true }] });
    await cluster.createPod(podOf("looker", [main], { volumes }));
    await cluster.waitForPod("looker", "ready", isReady);
    await cluster.deletePod("before");
    await cluster.waitForPodGone("before");
    await until("nothing of it left", async () => {
      const { sandboxes, containers } = await env.list();
      return [...sandboxes, ...containers].every(({ podName }) => podName !== "before");
    });
    await cluster.deletePod("looker");
    await cluster.waitForPodGone("looker");
  });

  test("a renamed container is the pod's no more: it gets another, and the renamed one ends with it", async () => {
    const { cluster, local } = env;
    await cluster.createPod(sleeperOf("renamed"));
    const before = await cluster.waitForPod("renamed", "ready", isReady);
    const id = containerIDOf(before);
    await local.docker?.api("POST", `/containers/${id}/rename?name=mine`);
    const isReplaced = (pod: Pod) => isReady(pod) && containerIDOf(pod) !== id;
    await cluster.waitForPod("renamed", "given another container", isReplaced);
    await cluster.deletePod("renamed");
    await cluster.waitForPodGone("renamed");
    await until("the renamed one has ended", async () => {
      const found = (await local.docker?.api("GET", `/containers/${id}/json`)) as { State: { Running: boolean } };
      return !found.State.Running;
    });
    // Its owner removes it.
    await local.docker?.api("DELETE", `/containers/${id}?force=1`);
  });

  test("the hostname is that of all containers of the pod, from the start", async () => {
    const { cluster } = env;
    const says = "hostname > /dev/termination-log";
    await cluster.createPod(podOf("host", [shell("one", says), shell("two", says)], { restartPolicy: "Never" }));
    const { status } = await cluster.waitForPod("host", "finished", isFinished);
    const said = (status?.containerStatuses ?? []).map(({ state }) => state?.terminated?.message);
    expect(said).toEqual(["host\n", "host\n"]);
  });

  test("RuntimeDefault is Docker's own seccomp profile; without a word there is none", async () => {
    const { cluster } = env;
    const filterOf = async (name: string, spec: Partial<PodSpec> = {}) =>
      (await cluster.run(jobOf(name, "sed -n 's/^Seccomp:.//p' /proc/self/status", spec))).output;
    expect(await filterOf("unfiltered")).toBe("0\n");
    expect(await filterOf("filtered", { securityContext: { seccompProfile: { type: "RuntimeDefault" } } })).toBe("2\n");
  });
});
