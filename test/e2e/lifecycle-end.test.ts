import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import type { Container, ContainerStatus, Pod } from "../../agent/kube/types.ts";
import { isFinished, isReady, openNamespace, type TestNamespace, until } from "./support/cluster.ts";
import { podOf, shell } from "./support/pods.ts";

let cluster: TestNamespace;

beforeAll(async () => {
  cluster = await openNamespace(inject("kubeconfig"));
});
afterAll(() => cluster[Symbol.asyncDispose]());

// Writes what happened to the termination log, which the pod's last status shows.
const says = (what: string) => `read up idle < /proc/uptime; echo ${what} $up >> /dev/termination-log`;
const onTerm = (handler: string) => `trap '${handler}; exit 0' TERM; while true; do sleep 1 & wait $!; done`;
const preStop = (script: string): Partial<Container> => ({
  lifecycle: { preStop: { exec: { command: ["sh", "-c", script] } } },
});
const last = (name: string) => cluster.history(name).at(-1) as Pod;
const statusOf = ({ status }: Pod, name = "main"): ContainerStatus | undefined =>
  [...(status?.initContainerStatuses ?? []), ...(status?.containerStatuses ?? [])].find((one) => one.name === name);
const wordsOf = (pod: Pod, name?: string) =>
  Object.fromEntries(
    (statusOf(pod, name)?.state?.terminated?.message ?? "")
      .trim()
      .split("\n")
      .map((line) => line.split(" "))
      .map(([what = "", at]) => [what, Number(at)]),
  );

async function gone(name: string, withinMs: number): Promise<number> {
  const beganMs = performance.now();
  await cluster.waitForPodGone(name, withinMs);
  return performance.now() - beganMs;
}

describe.concurrent("a pod that is deleted", () => {
  test("runs its preStop hook before SIGTERM", async () => {
    const main = shell("main", onTerm(says("term")), preStop(`${says("hook")}; sleep 1`));
    await cluster.createPod(podOf("hooked", [main], { terminationGracePeriodSeconds: 20 }));
    await cluster.waitForPod("hooked", "ready", isReady);
    await cluster.deletePod("hooked");
    await gone("hooked", 60_000);
    const { hook = Number.NaN, term = Number.NaN } = wordsOf(last("hooked"));
    expect(term - hook).toBeGreaterThan(0.9);
  });

  test("stops sidecars last and in reverse, and begins their hooks with the others'", async () => {
    const always = { restartPolicy: "Always" } as const;
    const first = shell("first", onTerm(says("term")), { ...always, ...preStop(says("hook")) });
    const second = shell("second", onTerm(`sleep 1; ${says("term")}`), always);
    const main = shell("main", onTerm(`sleep 1; ${says("term")}`));
    await cluster.createPod(
      podOf("in-order", [main], { initContainers: [first, second], terminationGracePeriodSeconds: 20 }),
    );
    await cluster.waitForPod("in-order", "ready", isReady);
    await cluster.deletePod("in-order");
    await gone("in-order", 60_000);
    const pod = last("in-order");
    const [ofFirst, ofSecond, ofMain] = ["first", "second", "main"].map((name) => wordsOf(pod, name));
    const order = [ofFirst?.["hook"], ofMain?.["term"], ofSecond?.["term"], ofFirst?.["term"]];
    expect(order.every(Number.isFinite)).toBe(true);
    expect(order).toEqual(order.toSorted((a = 0, b = 0) => a - b));
  });

  test("waits no longer for a hook than its grace", async () => {
    await cluster.createPod(
      podOf("hangs", [shell("main", onTerm("true"), preStop("sleep 1000"))], { terminationGracePeriodSeconds: 3 }),
    );
    await cluster.waitForPod("hangs", "ready", isReady);
    await cluster.deletePod("hangs");
    const tookMs = await gone("hangs", 60_000);
    expect(tookMs).toBeGreaterThan(2_500);
  });

  test("waits less when it is deleted again with a shorter grace", async () => {
    await cluster.createPod(
      podOf("impatient", [shell("main", onTerm("true"), preStop("sleep 1000"))], {
        terminationGracePeriodSeconds: 600,
      }),
    );
    await cluster.waitForPod("impatient", "ready", isReady);
    await cluster.deletePod("impatient");
    await sleep(1_500);
    await cluster.deletePod("impatient", 1);
    await gone("impatient", 60_000);
  });

  test("while a postStart hook hangs goes all the same", async () => {
    const lifecycle = { postStart: { exec: { command: ["sleep", "1000"] } } };
    await cluster.createPod(podOf("stuck", [shell("main", onTerm("true"), { lifecycle })]));
    await until("its start", async () => (await cluster.eventsOf("stuck")).some(({ reason }) => reason === "Started"));
    expect(statusOf(await cluster.getPod("stuck"))?.state?.waiting?.reason).toBe("ContainerCreating");
    await cluster.deletePod("stuck");
    await gone("stuck", 60_000);
  });

  test("before it could start has failed, and its containers never ran", async () => {
    const init = shell("init", onTerm("exit 7"));
    await cluster.createPod(podOf("early", "true", { initContainers: [init] }));
    await cluster.waitForPod("early", "initializing", (pod) => statusOf(pod, "init")?.state?.running !== undefined);
    await cluster.deletePod("early");
    await gone("early", 60_000);
    const pod = last("early");
    expect(pod.status?.phase).toBe("Failed");
    expect(statusOf(pod, "init")?.state?.terminated?.exitCode).toBe(7);
    expect(statusOf(pod)?.state?.waiting?.reason).toBe("PodInitializing");
  });

  test("in a crash loop goes at once, and is shown as it ended", async () => {
    await cluster.createPod(podOf("looping", "exit 5"));
    await cluster.waitForPod(
      "looping",
      "in a crash loop",
      (pod) => statusOf(pod)?.state?.waiting?.reason === "CrashLoopBackOff",
    );
    await cluster.deletePod("looping");
    await gone("looping", 60_000);
    expect(last("looping").status?.phase).toBe("Failed");
    expect(statusOf(last("looping"))?.state?.terminated?.exitCode).toBe(5);
  });
});

test("a pod ends at its deadline", async () => {
  await cluster.createPod(podOf("deadline", onTerm("true"), { activeDeadlineSeconds: 3 }));
  const pod = await cluster.waitForPod("deadline", "finished", isFinished);
  expect(pod.status).toMatchObject({
    phase: "Failed",
    reason: "DeadlineExceeded",
    message: "Pod was active on the node longer than the specified deadline",
  });
  const ranMs = Date.now() - Date.parse(pod.status?.startTime ?? "");
  expect(ranMs).toBeGreaterThan(2_900);
  await until("its event", async () =>
    (await cluster.eventsOf("deadline")).some(({ reason, type }) => reason === "DeadlineExceeded" && type === "Normal"),
  );
});

test("many pods that are deleted at once all go", async () => {
  const names = Array.from({ length: inject("isLocal") ? 20 : 5 }, (_, i) => `many-${i}`);
  await Promise.all(names.map(async (name) => await cluster.createPod(podOf(name, onTerm("true")))));
  await Promise.all(names.map(async (name) => await cluster.waitForPod(name, "ready", isReady)));
  await Promise.all(names.map(async (name) => await cluster.deletePod(name)));
  await Promise.all(names.map(async (name) => await cluster.waitForPodGone(name, 30_000)));
});
