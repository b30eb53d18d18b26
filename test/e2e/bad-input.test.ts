import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { configMaps, pods } from "../../agent/kube/resources.ts";
import type { Pod } from "../../agent/kube/types.ts";
import { isReady, openNamespace, type TestNamespace, until } from "./support/cluster.ts";
import { image, podOf, shell, sleeperOf } from "./support/pods.ts";

let cluster: TestNamespace;

beforeAll(async () => {
  cluster = await openNamespace(inject("kubeconfig"));
});
afterAll(() => cluster[Symbol.asyncDispose]());

const waiting = (pod: Pod) => pod.status?.containerStatuses?.[0]?.state?.waiting;
const isWaitingFor = (reason: string) => (pod: Pod) => waiting(pod)?.reason === reason;

/** Resolves with the message of the first event of that reason. */
async function eventMessage(pod: string, reason: string): Promise<string> {
  return await until(`event ${reason} of ${pod}`, async () => {
    return (await cluster.eventsOf(pod)).find((event) => event.reason === reason)?.message;
  });
}

describe.concurrent("an image", () => {
  test("that cannot be pulled is reported, waited for, and replaced when the pod says another", async () => {
    const main = shell("main", "while true; do sleep 1; done", { image: "127.0.0.1:1/nothing:1" });
    await cluster.createPod(podOf("no-image", [main]));
    const backedOff = await cluster.waitForPod("no-image", "backed off", isWaitingFor("ImagePullBackOff"));
    const reasons = cluster.history("no-image").map((pod) => waiting(pod)?.reason);
    expect(reasons).toContain("ErrImagePull");
    expect(reasons.indexOf("ErrImagePull")).toBeLessThan(reasons.indexOf("ImagePullBackOff"));
    expect(waiting(backedOff)?.message).toContain("127.0.0.1:1/nothing:1");
    expect(backedOff.status?.phase).toBe("Pending");

    const key = { namespace: cluster.namespace, name: "no-image" };
    await cluster.client.patch(pods, key, { spec: { containers: [{ name: "main", image }] } }, { type: "strategic" });
    await cluster.waitForPod("no-image", "ready", isReady);
  });

  test("that must not be pulled and is not there is an error at once", async () => {
    const main = shell("main", "true", { image: "127.0.0.1:1/nothing:2", imagePullPolicy: "Never" });
    await cluster.createPod(podOf("never-pull", [main]));
    await cluster.waitForPod("never-pull", "refused", isWaitingFor("ErrImageNeverPull"));
  });

  test("with a name that is none is an error at once", async () => {
    await cluster.createPod(podOf("bad-name", [shell("main", "true", { image: "Not A Name" })]));
    await cluster.waitForPod("bad-name", "refused", isWaitingFor("InvalidImageName"));
  });

  test("that cannot be pulled does not hold up the pod's removal", async () => {
    const main = shell("main", "true", { image: "127.0.0.1:1/nothing:3" });
    await cluster.createPod(podOf("unwanted", [main], { terminationGracePeriodSeconds: 30 }));
    await cluster.waitForPod("unwanted", "waiting", (pod) => waiting(pod)?.reason !== undefined);
    await cluster.deletePod("unwanted");
    await cluster.waitForPodGone("unwanted", 10_000);
  });
});

describe.concurrent("a reference", () => {
  test("to a config map that is missing waits for it: as a variable", async () => {
    const env = [{ name: "X", valueFrom: { configMapKeyRef: { name: "later-env", key: "x" } } }];
    await cluster.createPod(podOf("missing-env", [shell("main", "while true; do sleep 1; done", { env })]));
    const pod = await cluster.waitForPod("missing-env", "refused", isWaitingFor("CreateContainerConfigError"));
    expect(waiting(pod)?.message).toContain("later-env");
    await cluster.create(configMaps, { metadata: { name: "later-env" }, data: { x: "1" } });
    await cluster.waitForPod("missing-env", "ready", isReady);
  });

  test("to a config map that is missing waits for it: as a volume", async () => {
    const main = shell("main", "while true; do sleep 1; done", { volumeMounts: [{ name: "v", mountPath: "/v" }] });
    const volumes = [{ name: "v", configMap: { name: "later-volume" } }];
    await cluster.createPod(podOf("missing-volume", [main], { volumes }));
    expect(await eventMessage("missing-volume", "FailedMount")).toContain("later-volume");
    expect(waiting(await cluster.getPod("missing-volume"))?.reason).toBe("ContainerCreating");
    await cluster.create(configMaps, { metadata: { name: "later-volume" }, data: { x: "1" } });
    await cluster.waitForPod("missing-volume", "ready", isReady);
  });

  test("to a host path of the wrong type is an event", async () => {
    const main = shell("main", "true", { volumeMounts: [{ name: "v", mountPath: "/v" }] });
    const volumes = [{ name: "v", hostPath: { path: "/etc/passwd", type: "Directory" } }];
    await cluster.createPod(podOf("wrong-type", [main], { volumes }));
    expect(await eventMessage("wrong-type", "FailedMount")).toContain("/etc/passwd");
  });
});

describe.concurrent("a container", () => {
  test("whose program does not exist says so", async () => {
    const main = { name: "main", image, command: ["/no/such/program"] };
    await cluster.createPod(podOf("no-program", [main], { restartPolicy: "Never" }));
    const pod = await cluster.waitForPod("no-program", "failed", ({ status }) => status?.phase === "Failed");
    const terminated = pod.status?.containerStatuses?.[0]?.state?.terminated;
    // CRI runtimes' word and number for it, and Docker's.
    const { exitCode, reason } = terminated ?? {};
    expect([
      { exitCode: 128, reason: "StartError" },
      { exitCode: 127, reason: "ContainerCannotRun" },
    ]).toContainEqual({
      exitCode,
      reason,
    });
    expect(terminated?.message).toContain("/no/such/program");
  });

  test("that must not run as root, but would, is not started", async () => {
    const main = shell("main", "true", { securityContext: { runAsNonRoot: true } });
    await cluster.createPod(podOf("root", [main]));
    const pod = await cluster.waitForPod("root", "refused", isWaitingFor("CreateContainerConfigError"));
    expect(waiting(pod)?.message).toContain("runAsNonRoot");
  });

  test("that cannot start leaves its neighbours alone", async () => {
    const bad = { name: "bad", image, command: ["/no/such/program"] };
    const good = shell("good", "while true; do sleep 1; done");
    await cluster.createPod(podOf("neighbours", [bad, good]));
    await cluster.waitForPod("neighbours", "half running", (pod) => {
      const status = pod.status?.containerStatuses?.find(({ name }) => name === "good");
      return status?.ready === true;
    });
  });

  test("of one pod that cannot start delays no other pod", async () => {
    for (let i = 0; i < 5; i++) {
      await cluster.createPod(podOf(`bad-${i}`, [shell("main", "true", { image: `127.0.0.1:1/nothing:${i}` })]));
    }
    const startedAt = performance.now();
    await cluster.createPod(sleeperOf("good"));
    await cluster.waitForPod("good", "ready", isReady);
    expect(performance.now() - startedAt).toBeLessThan(15_000);
  });
});
