import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { nodes } from "../../agent/kube/resources.ts";
import { customImage } from "../support/images/images.ts";
import { isReady, until } from "./support/cluster.ts";
import { type BreakableCluster, identityOf, openBreakableCluster } from "./support/local.ts";
import { podOf, shell, sleeperOf } from "./support/pods.ts";

describe.skipIf(!inject("isLocal"))("a container runtime", () => {
  let env: BreakableCluster;

  beforeAll(async () => {
    env = await openBreakableCluster();
  });
  afterAll(() => env?.[Symbol.asyncDispose]());

  test("that restarts under running pods changes nothing, and new pods start", async () => {
    const { cluster, local } = env;
    await cluster.createPod(sleeperOf("steady"));
    const before = await cluster.waitForPod("steady", "ready", isReady);
    await local.runtime.restart();
    await cluster.createPod(sleeperOf("new"));
    await cluster.waitForPod("new", "ready", isReady);
    expect(identityOf(await cluster.getPod("steady"))).toEqual(identityOf(before));
  });

  test("that was away tells afterwards what ended meanwhile", async () => {
    const { cluster, local } = env;
    await cluster.createPod(podOf("ends-unseen", "sleep 4; exit 5", { restartPolicy: "Never" }));
    await cluster.waitForPod("ends-unseen", "ready", isReady);
    await local.runtime.stop();
    await sleep(5_000);
    await local.runtime.start();
    const pod = await cluster.waitForPod("ends-unseen", "failed", ({ status }) => status?.phase === "Failed");
    expect(pod.status?.containerStatuses?.[0]?.state?.terminated?.exitCode).toBe(5);
  });

  test("that is killed is survived, and the agent tells its events again", async () => {
    const { cluster, local } = env;
    await local.runtime.restart("SIGKILL");
    await cluster.createPod(podOf("restarts", "sleep 2; exit 1"));
    await cluster.waitForPod("restarts", "restarted", (pod) => pod.status?.containerStatuses?.[0]?.restartCount === 1);
  });

  test("that is away when the agent starts is waited for", async () => {
    const { cluster, local } = env;
    await local.agent.stop();
    await local.runtime.stop();
    await local.agent.start();
    await sleep(2_000);
    expect(local.agent.isRunning).toBe(true);
    await local.runtime.start();
    await cluster.createPod(sleeperOf("after-wait"));
    await cluster.waitForPod("after-wait", "ready", isReady);
  });

  test("that gets an image which could not be pulled starts the pod that waits for it", async () => {
    const { cluster, local } = env;
    const name = "127.0.0.1:1/late:1";
    await cluster.createPod(podOf("late-image", [shell("main", "while true; do sleep 1; done", { image: name })]));
    const waiting = (reason: string) => (pod: Parameters<typeof isReady>[0]) =>
      pod.status?.containerStatuses?.[0]?.state?.waiting?.reason === reason;
    await cluster.waitForPod("late-image", "backed off", waiting("ImagePullBackOff"));
    await local.runtime.loadImages([await customImage({ name })]);
    await cluster.waitForPod("late-image", "ready", isReady);
  });

  test("whose container is killed by somebody else has it made again", async () => {
    const { cluster, local } = env;
    await cluster.createPod(sleeperOf("meddled"));
    const before = await cluster.waitForPod("meddled", "ready", isReady);
    const id = before.status?.containerStatuses?.[0]?.containerID?.replace(/^.*:\/\//, "") ?? "";
    await local.runtime.kill(id);
    await cluster.waitForPod(
      "meddled",
      "restarted",
      (pod) => isReady(pod) && pod.status?.containerStatuses?.[0]?.restartCount === 1,
    );
  });
});

describe.skipIf(!inject("isLocal"))("a deleted Node", () => {
  test("is registered again by the next start of the agent", async () => {
    await using env = await openBreakableCluster();
    const { cluster, local } = env;
    await cluster.client.delete(nodes, { name: local.node.name });
    await until("the Node is gone", async () => (await cluster.client.list(nodes, {})).items.length === 0);
    await local.agent.stop();
    await local.agent.start();
    await until("the node is Ready", async () => (await cluster.readyNodes()).length === 1);
  });
});
