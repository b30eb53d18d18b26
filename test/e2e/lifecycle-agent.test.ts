import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import type { Pod } from "../../agent/kube/types.ts";
import { silentLogger } from "../../agent/lib/log.ts";
import { connectCRI } from "../../agent/runtime/cri/connect.ts";
import { isFinished, isReady } from "./support/cluster.ts";
import { type BreakableCluster, openBreakableCluster } from "./support/local.ts";
import { podOf } from "./support/pods.ts";

const statusOf = ({ status }: Pod) => status?.containerStatuses?.[0];

describe.skipIf(!inject("isLocal"))("containers that end while the agent is away", () => {
  let env: BreakableCluster;

  beforeAll(async () => {
    env = await openBreakableCluster();
  });
  afterAll(() => env?.[Symbol.asyncDispose]());

  // As if they had crashed: the runtime sees to it, not the agent.
  async function endAll(): Promise<void> {
    const { runtimeEndpoint } = env.local.node;
    const runtime = await connectCRI({ runtimeEndpoint, requestTimeoutMs: 10_000, log: silentLogger });
    try {
      const { containers } = await runtime.list();
      await Promise.all(containers.map(async ({ id }) => await runtime.stopContainer(id, 2)));
    } finally {
      runtime.close();
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
});
