import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { isReady, until } from "./support/cluster.ts";
import {
  type BreakableCluster,
  identityOf,
  mountsOf,
  openBreakableCluster,
  podCgroups,
  podDirs,
  restartAgent,
  statusIDOf,
} from "./support/local.ts";
import { podOf, shell, sleeperOf } from "./support/pods.ts";

const podsMax = 20;

describe.skipIf(!inject("isLocal"))("an agent that ends and starts again", () => {
  let env: BreakableCluster;

  beforeAll(async () => {
    env = await openBreakableCluster();
  });
  afterAll(() => env?.[Symbol.asyncDispose]());

  test("by SIGTERM: exit code 0, and its containers neither notice nor change", async () => {
    const { cluster, local } = env;
    await cluster.createPod(sleeperOf("steady"));
    const before = await cluster.waitForPod("steady", "ready", isReady);
    expect(await restartAgent(env, "SIGTERM")).toBe(0);
    await sleep(3_000);
    expect(identityOf(await cluster.getPod("steady"))).toEqual(identityOf(before));
    // It was Ready all the time, for everybody who watched.
    const versions = cluster.history("steady");
    expect(versions.slice(versions.findIndex(isReady)).every(isReady)).toBe(true);
    expect(local.agent.isRunning).toBe(true);
  });

  test("by SIGKILL at random moments of pod starts: no pod is lost, none is there twice, nothing is left", async () => {
    const { cluster, local } = env;
    await cluster.createPod(sleeperOf("witness"));
    const witness = await cluster.waitForPod("witness", "ready", isReady);
    const names = Array.from({ length: podsMax }, (_, i) => `killed-${i}`);
    for (const name of names) {
      const volumeMounts = [{ name: "memory", mountPath: "/memory" }];
      const main = shell("main", "trap 'exit 0' TERM; while true; do sleep 1 & wait $!; done", { volumeMounts });
      await cluster.createPod(podOf(name, [main], { volumes: [{ name: "memory", emptyDir: { medium: "Memory" } }] }));
      // A pod's start takes some 200 ms here; the moments are spread over it and what comes after.
      await sleep(Math.random() * 300);
      await restartAgent(env, "SIGKILL");
    }
    const pods = await Promise.all(names.map((name) => cluster.waitForPod(name, "ready", isReady)));
    expect(identityOf(await cluster.getPod("witness"))).toEqual(identityOf(witness));

    // Exactly one sandbox and one container each, and those that the status names.
    await until("one sandbox a pod", async () => {
      const { sandboxes } = await env.list();
      return sandboxes.filter(({ ready }) => ready).length === podsMax + 2;
    });
    const { containers } = await env.list();
    const toStatusID = ({ id }: { id: string }) => statusIDOf(env, id);
    for (const pod of pods) {
      const running = containers.filter(({ podUID, state }) => podUID === pod.metadata.uid && state === "running");
      expect(running.map(toStatusID)).toEqual([
        (await cluster.getPod(pod.metadata.name)).status?.containerStatuses?.[0]?.containerID,
      ]);
    }

    for (const name of [...names, "witness", "steady"]) await cluster.deletePod(name).catch(() => {});
    for (const name of [...names, "witness", "steady"]) await cluster.waitForPodGone(name);
    let left: string[] = [];
    const isNothingLeft = async () => {
      const { sandboxes } = await env.list();
      left = [
        ...(await podDirs(env)).map((dir) => `directory ${dir}`),
        ...(await mountsOf(env)).map((path) => `mount ${path}`),
        ...(await local.runtime.networks()).map((network) => `network ${network}`),
        ...(await podCgroups(env)).map((path) => `cgroup ${path}`),
        ...sandboxes.map(({ id, podUID, ready }) => `sandbox ${id} of ${podUID}${ready ? ", ready" : ""}`),
      ];
      return left.length === 0;
    };
    await until("everything of the pods is removed", isNothingLeft, 90_000).catch((err: unknown) => {
      throw new Error(`left: ${left.join("; ")}`, { cause: err });
    });
    expect(local.agent.isRunning).toBe(true);
  }, 240_000);

  test("while a pod ends: the pod is still brought to its end", async () => {
    const { cluster } = env;
    const script = "trap 'sleep 2; exit 0' TERM; while true; do sleep 1 & wait $!; done";
    await cluster.createPod(podOf("ending", script, { terminationGracePeriodSeconds: 20 }));
    await cluster.waitForPod("ending", "ready", isReady);
    await cluster.deletePod("ending");
    await sleep(500);
    await restartAgent(env, "SIGKILL");
    await cluster.waitForPodGone("ending", 30_000);
  });

  test("after a pod was deleted behind its back: what is left of it is removed", async () => {
    const { cluster, local } = env;
    const { metadata } = await cluster.createPod(sleeperOf("orphan"));
    await cluster.waitForPod("orphan", "ready", isReady);
    await local.agent.stop("SIGKILL");
    await cluster.deletePod("orphan", 0);
    await cluster.waitForPodGone("orphan");
    await local.agent.start();
    await until("its sandbox and directory are gone", async () => {
      const { sandboxes } = await env.list();
      const hasSandbox = sandboxes.some(({ podUID, ready }) => ready && podUID === metadata.uid);
      return !hasSandbox && !(await podDirs(env)).includes(metadata.uid ?? "");
    });
  });
});
