import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { pods } from "../../agent/kube/resources.ts";
import type { Pod } from "../../agent/kube/types.ts";
import { webImageName } from "../support/images/images.ts";
import { isFinished, isReady, until } from "./support/cluster.ts";
import { type BreakableCluster, openBreakableCluster } from "./support/local.ts";
import { podOf, shell } from "./support/pods.ts";

const statusOf = ({ status }: Pod) => status?.containerStatuses?.[0];

describe.skipIf(!inject("isLocal"))("dead containers", () => {
  let env: BreakableCluster;
  // As often as the reference's flag allows: all but one of each container are too many at once.
  beforeAll(async () => {
    env = await openBreakableCluster({ crashLoopBackOff: { maxContainerRestartPeriod: "1s" } });
  });
  afterAll(() => env?.[Symbol.asyncDispose]());

  const ofPod = async ({ metadata }: Pod) => {
    const { containers, sandboxes } = await env.list();
    const isOwn = ({ podUID }: { podUID: string }) => podUID === metadata.uid;
    return {
      dead: containers.filter(isOwn).filter(({ state }) => state === "exited"),
      all: containers.filter(isOwn),
      sandboxes: sandboxes.filter(isOwn),
    };
  };

  test("are kept one of a container while it lives, for its last logs, and none once the pod is gone", async () => {
    const { cluster } = env;
    const main = shell("main", "sleep 0.2; exit 1");
    const pod = await cluster.createPod(podOf("crashes", [main, shell("beside", "sleep 3600")]));
    const restarts = ({ status }: Pod) =>
      status?.containerStatuses?.find(({ name }) => name === "main")?.restartCount ?? 0;
    await cluster.waitForPod("crashes", "restarted four times", (one) => restarts(one) >= 4);
    await until("one dead container", async () => (await ofPod(pod)).dead.length === 1);
    await cluster.deletePod("crashes", 1);
    await cluster.waitForPodGone("crashes");
    await until("nothing of the pod", async () => {
      const { all, sandboxes } = await ofPod(pod);
      return all.length + sandboxes.length === 0;
    });
  });

  test("of a pod that has ended stay, so that its logs can be read", async () => {
    const { cluster } = env;
    const pod = await cluster.createPod(podOf("ended", "echo last words", { restartPolicy: "Never" }));
    await cluster.waitForPod("ended", "finished", isFinished);
    const { dead } = await ofPod(pod);
    expect(dead.map(({ name }) => name)).toEqual(["main"]);
    await cluster.deletePod("ended", 0);
  });
});

describe.skipIf(!inject("isLocal"))("containers that end while the agent is away", () => {
  let env: BreakableCluster;

  beforeAll(async () => {
    env = await openBreakableCluster();
  });
  afterAll(() => env?.[Symbol.asyncDispose]());

  // As if they had crashed: the runtime sees to it, not the agent.
  async function endAll(): Promise<void> {
    const runtime = await env.local.runtime.connect();
    try {
      const { containers } = await runtime.list();
      await Promise.all(containers.map(async ({ id }) => await runtime.stopContainer(id, 2)));
    } finally {
      await runtime.close();
    }
  }

  test("are told of as they ended, and started again only where that is wanted", async () => {
    const { cluster, local } = env;
    const script = "trap 'exit 3' TERM; while true; do sleep 1 & wait $!; done";
    await cluster.createPod(podOf("once", script, { restartPolicy: "Never" }));
    await cluster.createPod(podOf("always", script));
    const before = await cluster.waitForPod("once", "ready", isReady);
    await cluster.waitForPod("always", "ready", isReady);
    await local.agent.stop("SIGTERM");
    await endAll();
    await local.agent.start();

    const once = await cluster.waitForPod("once", "finished", isFinished);
    expect(once.status?.phase).toBe("Failed");
    expect(statusOf(once)).toMatchObject({
      restartCount: 0,
      containerID: statusOf(before)?.containerID,
      state: { terminated: { exitCode: 3, reason: "Error" } },
    });
    const always = await cluster.waitForPod(
      "always",
      "restarted",
      (pod) => isReady(pod) && statusOf(pod)?.restartCount === 1,
    );
    expect(statusOf(always)?.lastState?.terminated?.exitCode).toBe(3);
    // The end of a pod is never taken back, neither by this agent nor by the next.
    await local.agent.stop("SIGKILL");
    await local.agent.start();
    await cluster.createPod(podOf("later", "exit 0", { restartPolicy: "Never" }));
    await cluster.waitForPod("later", "finished", isFinished);
    const { phase, containerStatuses, startTime } = once.status ?? {};
    expect((await cluster.getPod("once")).status).toMatchObject({ phase, containerStatuses, startTime });
    const versions = cluster.history("once");
    expect(versions.slice(versions.findIndex(isFinished)).every(isFinished)).toBe(true);
  });

  test("because their image changed are replaced by the next agent, although they took their end well", async () => {
    const { cluster, local } = env;
    const script = "trap 'sleep 1; exit 0' TERM; while true; do sleep 1 & wait $!; done";
    const pod = podOf("renewed", script, { restartPolicy: "OnFailure", terminationGracePeriodSeconds: 30 });
    await cluster.createPod(pod);
    await cluster.waitForPod("renewed", "ready", isReady);
    const { namespace } = cluster;
    const containers = [{ name: "main", image: webImageName }];
    await cluster.client.patch(pods, { namespace, name: "renewed" }, { spec: { containers } }, { type: "strategic" });
    await until("the stop signal", async () =>
      (await cluster.eventsOf("renewed")).some(({ reason }) => reason === "Killing"),
    );
    await local.agent.stop("SIGKILL");
    await until("its end", async () => {
      const { containers: all } = await env.list();
      return all.some(({ podName, state }) => podName === "renewed" && state === "exited");
    });
    await local.agent.start();
    const isRenewed = (one: Pod) => isReady(one) && statusOf(one)?.image === webImageName;
    const after = await cluster.waitForPod("renewed", "replaced", isRenewed);
    expect(statusOf(after)).toMatchObject({ restartCount: 1, lastState: { terminated: { exitCode: 0 } } });
    expect(cluster.history("renewed").filter(isFinished)).toEqual([]);
    await cluster.deletePod("renewed", 0);
  });
});
