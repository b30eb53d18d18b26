import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { pods } from "../../agent/kube/resources.ts";
import type { Container, ContainerStatus, Pod } from "../../agent/kube/types.ts";
import { isFinished, isReady, isRunning, openNamespace, type TestNamespace, until } from "./support/cluster.ts";
import { webImageName } from "../support/images/images.ts";
import { image, podOf, shell, sleeperOf } from "./support/pods.ts";

let cluster: TestNamespace;

beforeAll(async () => {
  cluster = await openNamespace(inject("kubeconfig"));
});
afterAll(() => cluster[Symbol.asyncDispose]());

const untilTerminated = "trap 'exit 0' TERM; while true; do sleep 1 & wait $!; done";
const data = { volumes: [{ name: "data", emptyDir: {} }] };
const mounted: Partial<Container> = { volumeMounts: [{ name: "data", mountPath: "/data" }] };
const statusOf = ({ status }: Pod, name = "main"): ContainerStatus | undefined =>
  [
    ...(status?.initContainerStatuses ?? []),
    ...(status?.containerStatuses ?? []),
    ...(status?.ephemeralContainerStatuses ?? []),
  ].find((one) => one.name === name);
const restartsOf = (pod: Pod, name?: string) => statusOf(pod, name)?.restartCount ?? 0;
const conditionOf = ({ status }: Pod, type: string) => status?.conditions?.find((condition) => condition.type === type);
const untilEvent = async (pod: string, reason: string) =>
  await until(`event ${reason} of ${pod}`, async () =>
    (await cluster.eventsOf(pod)).find((event) => event.reason === reason),
  );

describe.concurrent("a container", () => {
  test("that fails its liveness probe is restarted, and events say why", async () => {
    const livenessProbe = {
      exec: { command: ["test", "!", "-e", "/tmp/sick"] },
      periodSeconds: 1,
      failureThreshold: 1,
    };
    const main = shell("main", `(sleep 1; touch /tmp/sick) & ${untilTerminated}`, { livenessProbe });
    await cluster.createPod(podOf("sick", [main]));
    const pod = await cluster.waitForPod("sick", "restarted", (p) => restartsOf(p) === 1 && isRunning(p));
    expect(pod.status?.phase).toBe("Running");
    const killing = await untilEvent("sick", "Killing");
    expect(killing.message).toBe("Container main failed liveness probe, will be restarted");
    expect((await untilEvent("sick", "Unhealthy")).message).toMatch(/^Liveness probe failed: /);
  });

  test("that fails its liveness probe under Never has failed", async () => {
    const livenessProbe = { exec: { command: ["false"] }, periodSeconds: 1, failureThreshold: 1 };
    const main = shell("main", "trap 'exit 9' TERM; while true; do sleep 1 & wait $!; done", { livenessProbe });
    await cluster.createPod(podOf("sick-once", [main], { restartPolicy: "Never" }));
    const pod = await cluster.waitForPod("sick-once", "finished", isFinished);
    expect(pod.status?.phase).toBe("Failed");
    expect(statusOf(pod)).toMatchObject({ restartCount: 0, state: { terminated: { exitCode: 9 } } });
  });

  test("with a rule for its exit code is restarted although the pod never restarts", async () => {
    const main = shell("main", "test -e /data/seen && exit 0; touch /data/seen; exit 42", {
      ...mounted,
      restartPolicy: "Never",
      restartPolicyRules: [{ action: "Restart", exitCodes: { operator: "In", values: [42] } }],
    });
    await cluster.createPod(podOf("by-rule", [main], { restartPolicy: "Never", ...data }));
    const pod = await cluster.waitForPod("by-rule", "finished", isFinished);
    expect(pod.status?.phase).toBe("Succeeded");
    expect(restartsOf(pod)).toBe(1);
  });

  test("with a rule for all restarts all of them, from the first init container on", async () => {
    const once = (script: string) => `if mkdir /data/${script} 2>/dev/null; then`;
    const init = shell("init", "echo x >> /data/inits", mounted);
    const main = shell("main", untilTerminated, mounted);
    const watch = shell("watch", `${once("fired")} sleep 1; exit 42; fi; ${untilTerminated}`, {
      ...mounted,
      restartPolicy: "Never",
      restartPolicyRules: [{ action: "RestartAllContainers", exitCodes: { operator: "In", values: [42] } }],
    });
    await cluster.createPod(podOf("all", [main, watch], { restartPolicy: "Never", initContainers: [init], ...data }));
    const before = await cluster.waitForPod("all", "ready", isReady);
    const after = await cluster.waitForPod("all", "restarted", (pod) => isReady(pod) && restartsOf(pod, "watch") === 1);
    expect(["init", "main", "watch"].map((name) => restartsOf(after, name))).toEqual([1, 1, 1]);
    expect(statusOf(after, "main")?.lastState?.terminated).toMatchObject({
      exitCode: 137,
      reason: "RestartingAllContainers",
    });
    expect(after.status?.podIP).toBe(before.status?.podIP);
    const versions = cluster.history("all");
    const restarting = versions.find((pod) => conditionOf(pod, "AllContainersRestarting")?.status === "True");
    expect(conditionOf(restarting as Pod, "AllContainersRestarting")?.reason).toBe("RestartAllContainersStarted");
    expect(conditionOf(after, "AllContainersRestarting")?.status).toBe("False");
    const initialized = versions.map((pod) => conditionOf(pod, "Initialized")?.status);
    expect(initialized.slice(initialized.indexOf("True"))).not.toContain("False");
    if (!inject("isLocal")) return;
    const dir = join(inject("podLogsDir"), `${cluster.namespace}_all_${after.metadata.uid}`, "main");
    expect(await readdir(dir)).toEqual(expect.arrayContaining(["0.log", "1.log"]));
  });

  test("that cannot be started says so, and fails a pod that never restarts", async () => {
    const main: Container = { name: "main", image, command: ["/no/such/program"] };
    await cluster.createPod(podOf("no-program", [main], { restartPolicy: "Never" }));
    const pod = await cluster.waitForPod("no-program", "finished", isFinished);
    expect(pod.status?.phase).toBe("Failed");
    const { exitCode, reason, message } = statusOf(pod)?.state?.terminated ?? {};
    expect(["StartError", "ContainerCannotRun"]).toContain(reason);
    expect(exitCode).toBeGreaterThan(0);
    expect(message).toContain("/no/such/program");
  });

  test("that cannot be started is tried again, slower and slower", async () => {
    const main: Container = { name: "main", image, command: ["/no/such/program"] };
    await cluster.createPod(podOf("no-program-yet", [main]));
    const reasons = () =>
      cluster.history("no-program-yet").flatMap((pod) => statusOf(pod)?.state?.waiting?.reason ?? []);
    await until("a crash loop", async () => reasons().includes("CrashLoopBackOff"));
    expect(reasons()).toContain("RunContainerError");
    expect((await untilEvent("no-program-yet", "Failed")).message).toContain("/no/such/program");
  });

  test("whose postStart hook fails is stopped and started again", async () => {
    const lifecycle = { postStart: { exec: { command: ["sh", "-c", "mkdir /data/failed && exit 1; exit 0"] } } };
    await cluster.createPod(podOf("post-start", [shell("main", untilTerminated, { ...mounted, lifecycle })], data));
    const pod = await cluster.waitForPod("post-start", "ready", (p) => isReady(p) && restartsOf(p) === 1);
    expect(pod.status?.phase).toBe("Running");
    await untilEvent("post-start", "FailedPostStartHook");
  });

  test("leaves the end of what it wrote, as far as a status has room", async () => {
    const write =
      "head -c 1048576 /dev/zero | tr '\\0' x > /dev/termination-log; echo end >> /dev/termination-log; exit 1";
    await cluster.createPod(podOf("talks", write, { restartPolicy: "Never" }));
    const pod = await cluster.waitForPod("talks", "finished", isFinished);
    const message = statusOf(pod)?.state?.terminated?.message ?? "";
    expect(message).toHaveLength(4_096);
    expect(message.endsWith("end\n")).toBe(true);
  });

  test("that wrote nothing and failed leaves the end of its log, if asked to", async () => {
    const main = shell("main", "echo first; echo last; exit 1", { terminationMessagePolicy: "FallbackToLogsOnError" });
    await cluster.createPod(podOf("logs-only", [main], { restartPolicy: "Never" }));
    const pod = await cluster.waitForPod("logs-only", "finished", isFinished);
    expect(statusOf(pod)?.state?.terminated?.message).toBe("first\nlast\n");
  });

  test("tells its mounts, resources and user", async () => {
    const resources = { requests: { cpu: "20m", memory: "16Mi" }, limits: { cpu: "200m", memory: "64Mi" } };
    await cluster.createPod(podOf("told", [shell("main", untilTerminated, { ...mounted, resources })], data));
    const pod = await cluster.waitForPod("told", "ready", isReady);
    expect(statusOf(pod)?.volumeMounts).toContainEqual({ name: "data", mountPath: "/data" });
    expect(statusOf(pod)).toMatchObject({ resources, allocatedResources: resources.requests });
  });
});

describe.concurrent("beside a running container", () => {
  test("a sidecar that ends is started again", async () => {
    const sidecar = shell("side", "test -e /data/seen && exec sleep 1000; touch /data/seen; exit 3", {
      ...mounted,
      restartPolicy: "Always",
    });
    await cluster.createPod(
      podOf("sidecar", untilTerminated, { restartPolicy: "Never", initContainers: [sidecar], ...data }),
    );
    const pod = await cluster.waitForPod("sidecar", "restarted", (p) => restartsOf(p, "side") === 1 && isReady(p));
    expect(statusOf(pod, "side")?.lastState?.terminated?.exitCode).toBe(3);
    expect(restartsOf(pod, "main")).toBe(0);
  });

  test("an ephemeral one sees its processes, ends, and is never started again", async () => {
    await cluster.createPod(sleeperOf("debugged"));
    await cluster.waitForPod("debugged", "ready", isReady);
    const debug = {
      ...shell("debug", "cat /proc/1/cmdline > /dev/termination-log; exit 4"),
      targetContainerName: "main",
    };
    await cluster.client.patch(
      pods,
      { namespace: cluster.namespace, name: "debugged" },
      { spec: { ephemeralContainers: [debug] } },
      { type: "strategic", subresource: "ephemeralcontainers" },
    );
    const ended = await cluster.waitForPod(
      "debugged",
      "debugged",
      (pod) => statusOf(pod, "debug")?.state?.terminated !== undefined,
    );
    const { exitCode, message } = statusOf(ended, "debug")?.state?.terminated ?? {};
    expect(exitCode).toBe(4);
    expect(message).toContain("trap");
    expect(restartsOf(ended, "debug")).toBe(0);
    expect(isReady(ended)).toBe(true);
  });
});

// Another image is there without a registry on test nodes only.
test.skipIf(!inject("isLocal")).for(["Never", "OnFailure", "Always"] as const)(
  "a container whose image changes is replaced, whatever the restart policy says: %s",
  async (restartPolicy) => {
    const name = `renewed-${restartPolicy.toLowerCase()}`;
    await cluster.createPod(podOf(name, untilTerminated, { restartPolicy }));
    const before = await cluster.waitForPod(name, "ready", isReady);
    await cluster.client.patch(
      pods,
      { namespace: cluster.namespace, name },
      { spec: { containers: [{ name: "main", image: webImageName }] } },
      { type: "strategic" },
    );
    const isRenewed = (pod: Pod) => isReady(pod) && statusOf(pod)?.image === webImageName;
    const after = await cluster.waitForPod(name, "replaced", isRenewed);
    expect(statusOf(after)).toMatchObject({
      restartCount: 1,
      lastState: { terminated: { exitCode: 0, containerID: statusOf(before)?.containerID } },
    });
    expect(after.status?.podIP).toBe(before.status?.podIP);
    expect((await untilEvent(name, "Killing")).message).toBe("Container main definition changed, will be restarted");
    // It was never told to have ended.
    const phases = cluster.history(name).map(({ status }) => status?.phase);
    expect(phases.filter((phase) => phase === "Succeeded" || phase === "Failed")).toEqual([]);
    await cluster.deletePod(name, 0);
  },
);

test("a readiness gate keeps a pod from being ready until somebody opens it", async () => {
  const conditionType = "example.com/gate";
  await cluster.createPod(sleeperOf("gated", { readinessGates: [{ conditionType }] }));
  const closed = await cluster.waitForPod(
    "gated",
    "running",
    (pod) => conditionOf(pod, "ContainersReady")?.status === "True",
  );
  expect(conditionOf(closed, "Ready")).toMatchObject({ status: "False", reason: "ReadinessGatesNotReady" });
  await cluster.client.patch(
    pods,
    { namespace: cluster.namespace, name: "gated" },
    { status: { conditions: [{ type: conditionType, status: "True" }] } },
    { type: "strategic", subresource: "status" },
  );
  const open = await cluster.waitForPod("gated", "ready", isReady);
  expect(conditionOf(open, conditionType)?.status).toBe("True");
});
