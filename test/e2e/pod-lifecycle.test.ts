import { lstat, readFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { pods } from "../../agent/kube/resources.ts";
import type { ContainerStatus, Pod } from "../../agent/kube/types.ts";
import {
  isFinished,
  isReady,
  isRunning,
  openNamespace,
  runsDocker,
  type TestNamespace,
  until,
} from "./support/cluster.ts";
import { jobOf, podOf, shell, sleeperOf } from "./support/pods.ts";

let cluster: TestNamespace;

beforeAll(async () => {
  cluster = await openNamespace(inject("kubeconfig"));
});
afterAll(() => cluster[Symbol.asyncDispose]());

const statusOf = (pod: Pod): ContainerStatus | undefined => pod.status?.containerStatuses?.[0];
const waitingReason = (pod: Pod) => statusOf(pod)?.state?.waiting?.reason;
const conditionsOf = ({ status }: Pod) =>
  Object.fromEntries((status?.conditions ?? []).map(({ type, status: is }) => [type, is]));

describe.concurrent("a pod", () => {
  test("starts, and its status tells everything about it", async () => {
    await cluster.createPod(sleeperOf("starts"));
    const pod = await cluster.waitForPod("starts", "ready", isReady);
    const nodes = await cluster.readyNodes();
    const nodeIPs = nodes.flatMap(({ status }) => (status?.addresses ?? []).map(({ address }) => address));
    const { hostIP, podIP, podIPs, phase, startTime, qosClass } = pod.status ?? {};
    expect({ phase, qosClass }).toEqual({ phase: "Running", qosClass: "BestEffort" });
    expect(nodeIPs).toContain(hostIP);
    expect(podIP).toMatch(/^[0-9a-f.:]+$/);
    expect(podIPs?.[0]).toEqual({ ip: podIP });
    expect(Math.abs(Date.parse(startTime ?? "") - Date.parse(pod.metadata.creationTimestamp ?? ""))).toBeLessThan(
      60_000,
    );
    const conditions = ["PodScheduled", "PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready"];
    expect(conditionsOf(pod)).toMatchObject(Object.fromEntries(conditions.map((type) => [type, "True"])));
    expect(statusOf(pod)).toMatchObject({ name: "main", ready: true, started: true, restartCount: 0 });
    expect(statusOf(pod)?.containerID).toMatch(/^[a-z-]+:\/\/[0-9a-f]{64}$/);
    expect(statusOf(pod)?.imageID).not.toBe("");
    expect(Date.parse(statusOf(pod)?.state?.running?.startedAt ?? "")).toBeGreaterThan(0);
    const reasons = await until("its events", async () => {
      const found = (await cluster.eventsOf("starts")).map(({ reason }) => reason);
      return found.includes("Started") ? found : undefined;
    });
    expect(reasons).toEqual(expect.arrayContaining(["Pulled", "Created", "Started"]));
  });

  test("that ends well has Succeeded and is never started again", async () => {
    await cluster.createPod(jobOf("succeeds", "echo done"));
    const pod = await cluster.waitForPod("succeeds", "finished", isFinished);
    expect(pod.status?.phase).toBe("Succeeded");
    expect(statusOf(pod)?.state?.terminated).toMatchObject({ exitCode: 0, reason: "Completed", message: "done\n" });
    const ready = pod.status?.conditions?.find(({ type }) => type === "Ready");
    expect(ready).toMatchObject({ status: "False", reason: "PodCompleted" });
  });

  test("that ends badly has Failed", async () => {
    await cluster.createPod(jobOf("fails", "exit 3"));
    const pod = await cluster.waitForPod("fails", "finished", isFinished);
    expect(pod.status?.phase).toBe("Failed");
    expect(statusOf(pod)?.state?.terminated).toMatchObject({ exitCode: 3, reason: "Error" });
    expect(statusOf(pod)?.restartCount).toBe(0);
  });

  test("with restartPolicy OnFailure is started until it ends well", async () => {
    const script = "test -e /data/seen && exit 0; touch /data/seen; exit 1";
    const main = shell("main", script, { volumeMounts: [{ name: "data", mountPath: "/data" }] });
    await cluster.createPod(
      podOf("on-failure", [main], { restartPolicy: "OnFailure", volumes: [{ name: "data", emptyDir: {} }] }),
    );
    const pod = await cluster.waitForPod("on-failure", "finished", isFinished);
    expect(pod.status?.phase).toBe("Succeeded");
    expect(statusOf(pod)?.restartCount).toBe(1);
  });

  test("with restartPolicy Always is started again after a good end, too", async () => {
    await cluster.createPod(podOf("always", "sleep 1"));
    const pod = await cluster.waitForPod("always", "restarted", (p) => (statusOf(p)?.restartCount ?? 0) >= 1);
    expect(statusOf(pod)?.lastState?.terminated).toMatchObject({ exitCode: 0, reason: "Completed" });
  });

  test("that has done its work ends, although its sidecar would run for ever", async () => {
    const sidecar = shell("sidecar", "trap 'exit 0' TERM; while true; do sleep 1 & wait $!; done", {
      restartPolicy: "Always",
    });
    await cluster.createPod(podOf("with-sidecar", "sleep 1", { restartPolicy: "Never", initContainers: [sidecar] }));
    const pod = await cluster.waitForPod("with-sidecar", "finished", isFinished);
    expect(pod.status?.phase).toBe("Succeeded");
    expect(pod.status?.initContainerStatuses?.[0]?.state?.terminated?.exitCode).toBe(0);
  });

  test("whose init container fails for good never starts its other containers", async () => {
    const init = shell("init", "exit 1");
    await cluster.createPod(podOf("bad-init", "true", { restartPolicy: "Never", initContainers: [init] }));
    const pod = await cluster.waitForPod("bad-init", "finished", isFinished);
    expect(pod.status?.phase).toBe("Failed");
    expect(statusOf(pod)?.state).toEqual({ waiting: { reason: "PodInitializing" } });
    expect(pod.status?.conditions?.find(({ type }) => type === "Initialized")?.status).toBe("False");
  });

  test("shows new labels in its downward API volume", async () => {
    const items = [{ path: "labels", fieldRef: { fieldPath: "metadata.labels" } }];
    const script = "until grep -q after /info/labels; do sleep 0.2; done";
    const main = shell("main", script, { volumeMounts: [{ name: "info", mountPath: "/info" }] });
    const volumes = [{ name: "info", downwardAPI: { items } }];
    await cluster.createPod(podOf("labels", [main], { restartPolicy: "Never", volumes }));
    await cluster.waitForPod("labels", "running", isRunning);
    await cluster.client.patch(
      pods,
      { namespace: cluster.namespace, name: "labels" },
      { metadata: { labels: { step: "after" } } },
      { type: "merge" },
    );
    await cluster.waitForPod("labels", "finished", isFinished);
  });

  test("that crashes waits 10 s, then 20 s", async () => {
    await cluster.createPod(podOf("crashes", "exit 1"));
    const restarted = (count: number) => (pod: Pod) => (statusOf(pod)?.restartCount ?? 0) >= count;
    await cluster.waitForPod("crashes", "restarted three times", restarted(3));
    await cluster.waitForPod("crashes", "waiting", (pod) => waitingReason(pod) === "CrashLoopBackOff");
    const versions = cluster.history("crashes");
    const messages = versions.flatMap((pod) => statusOf(pod)?.state?.waiting?.message ?? []);
    expect(messages.some((text) => text.startsWith("back-off 10s restarting failed container=main pod="))).toBe(true);
    expect(messages.some((text) => text.startsWith("back-off 20s restarting failed container=main pod="))).toBe(true);

    // Each run that a status showed: when it began and when it ended. Times have whole seconds.
    const runs = new Map<string, { startedAt: number; finishedAt: number }>();
    for (const pod of versions) {
      for (const state of [statusOf(pod)?.state, statusOf(pod)?.lastState]) {
        const { containerID = "", startedAt = "", finishedAt = "" } = state?.terminated ?? {};
        if (containerID === "") continue;
        runs.set(containerID, { startedAt: Date.parse(startedAt ?? ""), finishedAt: Date.parse(finishedAt ?? "") });
      }
    }
    const [first, second, third, fourth] = [...runs.values()].sort((a, b) => a.startedAt - b.startedAt);
    const gaps = [
      (second?.startedAt ?? Number.NaN) - (first?.finishedAt ?? 0),
      (third?.startedAt ?? Number.NaN) - (second?.finishedAt ?? 0),
      (fourth?.startedAt ?? Number.NaN) - (third?.finishedAt ?? 0),
    ];
    expect(gaps[0]).toBeGreaterThanOrEqual(0);
    expect(gaps[1]).toBeGreaterThanOrEqual(9_000);
    expect(gaps[2]).toBeGreaterThanOrEqual(19_000);
    // The first restart waits for nothing.
    const ofFirst = versions.filter((pod) => statusOf(pod)?.restartCount === 0);
    expect(ofFirst.map(waitingReason)).not.toContain("CrashLoopBackOff");
  }, 90_000);

  test("that is deleted gets SIGTERM and time to end", async () => {
    const script = "trap 'sleep 2; exit 7' TERM; touch /up; while true; do sleep 1 & wait $!; done";
    // Until it has set its trap, the kernel keeps SIGTERM from it.
    const main = shell("main", script, {
      readinessProbe: { exec: { command: ["test", "-e", "/up"] }, periodSeconds: 1, timeoutSeconds: 10 },
    });
    await cluster.createPod(podOf("graceful", [main], { terminationGracePeriodSeconds: 30 }));
    await cluster.waitForPod("graceful", "ready", isReady);
    const startedAt = performance.now();
    await cluster.deletePod("graceful");
    await cluster.waitForPodGone("graceful");
    const tookMs = performance.now() - startedAt;
    expect(tookMs).toBeGreaterThan(1_900); // it was waited for
    const last = cluster.history("graceful").at(-1);
    expect(statusOf(last as Pod)?.state?.terminated?.exitCode).toBe(7);
    expect(last?.metadata.deletionGracePeriodSeconds).toBe(30);
  });

  test("that ignores SIGTERM is killed when its time is over", async () => {
    await cluster.createPod(
      podOf("stubborn", "trap '' TERM; while true; do sleep 1; done", { terminationGracePeriodSeconds: 3 }),
    );
    await cluster.waitForPod("stubborn", "ready", isReady);
    const startedAt = performance.now();
    await cluster.deletePod("stubborn");
    await cluster.waitForPodGone("stubborn");
    const tookMs = performance.now() - startedAt;
    expect(tookMs).toBeGreaterThan(2_500);
    expect(statusOf(cluster.history("stubborn").at(-1) as Pod)?.state?.terminated?.exitCode).toBe(137);
  });

  test("that is deleted by force is gone at once, and its name is free", async () => {
    const old = await cluster.createPod(sleeperOf("forced", { terminationGracePeriodSeconds: 30 }));
    await cluster.waitForPod("forced", "ready", isReady);
    await cluster.deletePod("forced", 0);
    await cluster.waitForPodGone("forced", 5_000);
    const fresh = await cluster.createPod(sleeperOf("forced"));
    expect(fresh.metadata.uid).not.toBe(old.metadata.uid);
    const pod = await cluster.waitForPod("forced", "ready", (p) => p.metadata.uid === fresh.metadata.uid && isReady(p));
    expect(statusOf(pod)?.restartCount).toBe(0);
  });

  test("keeps its address and its other containers when one of them ends", async () => {
    const steady = shell("steady", "while true; do sleep 1; done");
    const ending = shell("ending", "sleep 2; exit 0");
    await cluster.createPod(podOf("partial", [steady, ending]));
    const before = await cluster.waitForPod("partial", "running", isRunning);
    const stateOf = (pod: Pod, name: string) => pod.status?.containerStatuses?.find((status) => status.name === name);
    const after = await cluster.waitForPod(
      "partial",
      "restarted",
      (p) => (stateOf(p, "ending")?.restartCount ?? 0) === 1,
    );
    expect(after.status?.podIP).toBe(before.status?.podIP);
    expect(stateOf(after, "steady")?.restartCount).toBe(0);
    expect(stateOf(after, "steady")?.containerID).toBe(
      cluster
        .history("partial")
        .map((p) => stateOf(p, "steady")?.containerID)
        .find((id) => id !== undefined && id !== ""),
    );
  });

  test("that uses too much memory is killed, and the status says why", async () => {
    const main = shell("main", "tail /dev/zero", { resources: { limits: { memory: "24Mi" } } });
    await cluster.createPod(podOf("greedy", [main], { restartPolicy: "Never" }));
    const pod = await cluster.waitForPod("greedy", "finished", isFinished);
    expect(statusOf(pod)?.state?.terminated).toMatchObject({ exitCode: 137, reason: "OOMKilled" });
  });

  test.skipIf(!inject("isLocal"))("leaves its log where log collectors look", async () => {
    await cluster.createPod(podOf("logs", "echo to stdout; echo to stderr >&2; while true; do sleep 1; done"));
    const pod = await cluster.waitForPod("logs", "ready", isReady);
    const dir = join(inject("podLogsDir"), `${cluster.namespace}_logs_${pod.metadata.uid}`, "main");
    const text = await until("two lines", async () => {
      const lines = (await readFile(join(dir, "0.log"), "utf8")).trim().split("\n");
      return lines.length === 2 ? lines : undefined;
    });
    const words = ["stdout", "stderr"];
    if (await runsDocker(cluster)) {
      const lines = text.map((line) => JSON.parse(line) as unknown);
      for (const stream of words) {
        expect(lines).toContainEqual(expect.objectContaining({ stream, log: `to ${stream}\n` }));
      }
    } else {
      const lines = words.map((stream) => expect.stringMatching(`^\\d{4}-\\S+ ${stream} F to ${stream}$`) as string);
      expect(text).toEqual(expect.arrayContaining(lines));
    }
    const id = statusOf(pod)?.containerID?.replace(/^.*\/\//, "");
    const link = `/var/log/containers/logs_${cluster.namespace}_main-${id}.log`;
    await until("the link", async () => (await lstat(link).catch(() => undefined))?.isSymbolicLink());
  });
});
