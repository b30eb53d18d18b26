import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import type { ContainerStatus, Pod } from "../../agent/kube/types.ts";
import { isFinished, isReady, openNamespace, type TestNamespace, until } from "./support/cluster.ts";
import { type Kubectl, openKubectl } from "./support/kubectl.ts";
import { image, podOf, shell, sleeperOf } from "./support/pods.ts";

let cluster: TestNamespace;
let kubectl: Kubectl;

beforeAll(async () => {
  cluster = await openNamespace(inject("kubeconfig"));
  kubectl = openKubectl(inject("kubeconfig"), cluster.namespace);
});
afterAll(() => cluster[Symbol.asyncDispose]());

const debuggerOf = ({ status }: Pod, name: string): ContainerStatus | undefined =>
  status?.ephemeralContainerStatuses?.find((one) => one.name === name);

describe.concurrent("kubectl debug", () => {
  test("works in a container beside those of the pod, which go on as they are", async () => {
    await cluster.createPod(sleeperOf("plain"));
    const before = await cluster.waitForPod("plain", "ready", isReady);
    const flags = ["--image", image, "--container", "helper", "--quiet", "-i"];
    // What it says before kubectl is attached is in its log only; runtimes lose what is said just before the end.
    const script =
      "while read -r line; do test \"$line\" = quit && exit 0; echo told $line; hostname; ps -o args | grep -c '[s]leep 1'; done";
    const session = kubectl.start(["debug", "plain", ...flags, "--", "sh", "-c", script], { staysOpen: true });
    session.write("something\n");
    // The pod's name is its own, the pod's processes are not.
    await session.said("told something\nplain\n0\n");
    session.write("quit\n");
    expect(await session.ended).toMatchObject({ code: 0 });
    const after = await cluster.waitForPod(
      "plain",
      "debugged",
      (pod) => debuggerOf(pod, "helper")?.state?.terminated !== undefined,
    );
    expect(debuggerOf(after, "helper")).toMatchObject({ restartCount: 0, state: { terminated: { exitCode: 0 } } });
    expect(after.status?.containerStatuses?.[0]?.containerID).toBe(before.status?.containerStatuses?.[0]?.containerID);
    expect(isReady(after)).toBe(true);
  });

  test("with --target sees the processes of a container and may signal them", async () => {
    const main = shell("main", "trap 'exit 7' USR1; while true; do sleep 1 & wait $!; done");
    await cluster.createPod(podOf("target", [main, shell("other", "sleep 3600")], { restartPolicy: "Never" }));
    await cluster.waitForPod("target", "ready", isReady);
    const flags = ["--image", image, "--target", "main", "--profile", "general", "--container", "helper"];
    await kubectl.demand([
      "debug",
      "target",
      ...flags,
      "--",
      "sh",
      "-c",
      "tr '\\0' ' ' < /proc/1/cmdline; kill -USR1 1",
    ]);
    const pod = await cluster.waitForPod(
      "target",
      "signalled",
      ({ status }) => status?.containerStatuses?.find(({ name }) => name === "main")?.state?.terminated !== undefined,
    );
    const ended = pod.status?.containerStatuses?.find(({ name }) => name === "main")?.state?.terminated;
    expect(ended?.exitCode).toBe(7);
    expect(await kubectl.demand(["logs", "target", "--container", "helper"])).toContain("trap 'exit 7' USR1");
  });

  test("of a target that is not there says why its container waits", async () => {
    await cluster.createPod(sleeperOf("lonely"));
    await cluster.waitForPod("lonely", "ready", isReady);
    await kubectl.demand([
      "debug",
      "lonely",
      "--image",
      image,
      "--target",
      "nobody",
      "--container",
      "helper",
      "--",
      "true",
    ]);
    const pod = await cluster.waitForPod(
      "lonely",
      "waiting",
      (one) => debuggerOf(one, "helper")?.state?.waiting?.reason === "CreateContainerConfigError",
    );
    expect(debuggerOf(pod, "helper")?.state?.waiting?.message).toContain("nobody");
    expect(isReady(pod)).toBe(true);
  });

  test("of a node works in its namespaces, with its files below /host", async () => {
    const node = await until("a node", async () => (await cluster.readyNodes())[0]);
    const nodeName = node.metadata.name;
    const address = node.status?.addresses?.find(({ type }) => type === "InternalIP")?.address;
    const script = "ls -d /host/proc/1; cat /proc/1/comm; ip -o addr";
    // The pod that kubectl makes; kubectl itself sends it in a format that test API servers do not know.
    const pod = podOf(
      "node-debugger",
      [shell("debugger", script, { volumeMounts: [{ name: "host-root", mountPath: "/host" }] })],
      {
        nodeName,
        hostNetwork: true,
        hostPID: true,
        hostIPC: true,
        restartPolicy: "Never",
        tolerations: [{ operator: "Exists" }],
        volumes: [{ name: "host-root", hostPath: { path: "/" } }],
      },
    );
    await cluster.createPod(pod);
    const ended = await cluster.waitForPod("node-debugger", "finished", isFinished);
    expect(ended.status?.phase).toBe("Succeeded");
    const output = await kubectl.demand(["logs", "node-debugger"]);
    expect(output).toContain("/host/proc/1\n");
    expect(output).toContain(` ${address}/`);
  });
});
