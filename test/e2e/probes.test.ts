import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { endpointSlices, services } from "../../agent/kube/resources.ts";
import type { Container, ContainerStatus, Pod, Probe } from "../../agent/kube/types.ts";
import { isReady, isRunning, openNamespace, type TestNamespace, until } from "./support/cluster.ts";
import { type BreakableCluster, identityOf, openBreakableCluster, restartAgent } from "./support/local.ts";
import { podOf, serviceOf, shell } from "./support/pods.ts";

let cluster: TestNamespace;

beforeAll(async () => {
  cluster = await openNamespace(inject("kubeconfig"));
});
afterAll(() => cluster[Symbol.asyncDispose]());

const statusOf = (pod: Pod): ContainerStatus | undefined => pod.status?.containerStatuses?.[0];
const restarts = (pod: Pod) => statusOf(pod)?.restartCount ?? 0;
const isRestarted = (pod: Pod) => restarts(pod) > 0 && statusOf(pod)?.state?.running !== undefined;
const startedAt = (pod: Pod) => Date.parse(statusOf(pod)?.state?.running?.startedAt ?? "");

// Ends at once on SIGTERM.
const stay = "trap 'exit 0' TERM; while true; do sleep 0.2 & wait $!; done";
// One failure counts, so that a machine under load must not make one.
const quick: Probe = { periodSeconds: 1, timeoutSeconds: 5, failureThreshold: 1 };
const exec = (command: string): Probe => ({ ...quick, exec: { command: ["sh", "-c", command] } });

/** Shell: serves /tmp/www on port 8080 until SIGTERM; /healthz is there from the start. */
const web = `mkdir -p /tmp/www; echo ok > /tmp/www/healthz; httpd -p 8080 -h /tmp/www`;
const webPorts: Partial<Container> = { ports: [{ name: "web", containerPort: 8080 }] };

/** Messages of a pod's events with this reason, once there is one. */
const messages = async (pod: string, reason: string) =>
  await until(`event ${reason} of ${pod}`, async () => {
    const found = (await cluster.eventsOf(pod)).filter((event) => event.reason === reason);
    return found.length > 0 ? found.map(({ message = "" }) => message) : undefined;
  });

/**
 * Shell: a gRPC server on port 9090 that says `cat /tmp/grpc` (a byte as three octal digits) to the first request of each
 * connection: frames SETTINGS; then HEADERS, DATA and trailers of the stream.
 */
const grpcServer = [
  `printf 001 > /tmp/grpc`,
  `cat > /tmp/serve <<'END'`,
  `printf '\\0\\0\\0\\4\\0\\0\\0\\0\\0'`,
  `sleep 0.2`,
  `printf '\\0\\0\\023\\1\\4\\0\\0\\0\\1\\210\\137\\020application/grpc'`,
  `printf '\\0\\0\\7\\0\\0\\0\\0\\0\\1\\0\\0\\0\\0\\2\\10'; printf "\\\\$(cat /tmp/grpc)"`,
  `printf '\\0\\0\\017\\1\\5\\0\\0\\0\\1\\100\\013grpc-status\\0010'`,
  `sleep 0.5`,
  `END`,
  `nc -ll -p 9090 -e sh /tmp/serve &`,
].join("\n");

describe.concurrent("liveness: a container is started anew when", () => {
  const grace = { terminationGracePeriodSeconds: 1 };
  // What fails does so once, in the first instance, some time after it was seen well.
  const once = (then: string) => `if mkdir /data/first 2>/dev/null; then sleep 3; ${then}; fi`;
  const data = { volumeMounts: [{ name: "data", mountPath: "/data" }] };
  const volumes = [{ name: "data", emptyDir: {} }];
  const cases: { name: string; script: string; livenessProbe: Probe; message: RegExp }[] = [
    {
      name: "exec",
      script: `touch /tmp/alive; ${once("rm /tmp/alive")}; ${stay}`,
      livenessProbe: exec("cat /tmp/alive"),
      message: /^Liveness probe failed: cat: can't open '\/tmp\/alive': No such file or directory\n$/,
    },
    {
      name: "http",
      script: `${web}; ${once("rm /tmp/www/healthz")}; ${stay}`,
      livenessProbe: { ...quick, initialDelaySeconds: 1, httpGet: { path: "/healthz", port: "web" } },
      message: /^Liveness probe failed: HTTP probe failed with statuscode: 404$/,
    },
    {
      name: "tcp",
      script: `nc -ll -p 8080 -e true & ${once("kill $!")}; ${stay}`,
      livenessProbe: { ...quick, initialDelaySeconds: 1, tcpSocket: { port: "web" } },
      message: /^Liveness probe failed: dial tcp \S+:8080: connect: connection refused$/,
    },
    {
      name: "grpc",
      script: `${grpcServer}\n${once("printf 002 > /tmp/grpc")}; ${stay}`,
      livenessProbe: { ...quick, initialDelaySeconds: 1, grpc: { port: 9090 } },
      message: /^Liveness probe failed: service unhealthy \(responded with "NOT_SERVING"\)$/,
    },
    {
      name: "silent",
      script: `nc -ll -p 8080 -e sleep 1000 & ${once("true")}; ${stay}`,
      livenessProbe: { ...quick, timeoutSeconds: 1, initialDelaySeconds: 3, httpGet: { port: "web" } },
      message:
        /^Liveness probe failed: Get "http:\/\/\S+:8080\/": context deadline exceeded \(Client\.Timeout exceeded while awaiting headers\)$/,
    },
    {
      name: "stuck",
      script: `${once("true")}; ${stay}`,
      livenessProbe: {
        ...quick,
        timeoutSeconds: 1,
        failureThreshold: 2,
        exec: { command: ["sh", "-c", "trap '' TERM; sleep 1000"] },
      },
      message: /^Liveness probe failed: command timed out: "sh -c trap '' TERM; sleep 1000" timed out after 1s$/,
    },
  ];
  test.each(cases)("its $name probe fails", async ({ name, script, livenessProbe, message }) => {
    const main = shell("main", script, { ...webPorts, ...data, livenessProbe });
    const pod = `liveness-${name}`;
    await cluster.createPod(podOf(pod, [main], { ...grace, volumes }));
    const first = await cluster.waitForPod(pod, "ready", isReady);
    const second = await cluster.waitForPod(pod, "restarted", isRestarted);
    expect(second.status?.podIP).toBe(first.status?.podIP);
    expect(statusOf(second)?.containerID).not.toBe(statusOf(first)?.containerID);
    expect(statusOf(second)?.lastState?.terminated?.containerID).toBe(statusOf(first)?.containerID);
    for (const text of await messages(pod, "Unhealthy")) expect(text).toMatch(message);
    expect(await messages(pod, "Killing")).toContain("Container main failed liveness probe, will be restarted");
  });

  test("a sidecar's probe fails: the sidecar alone", async () => {
    const side = shell("side", `touch /tmp/alive; ${once("rm /tmp/alive")}; ${stay}`, {
      ...data,
      restartPolicy: "Always",
      livenessProbe: exec("cat /tmp/alive"),
    });
    await cluster.createPod(podOf("liveness-sidecar", stay, { ...grace, initContainers: [side], volumes }));
    const pod = await cluster.waitForPod(
      "liveness-sidecar",
      "its sidecar restarted",
      ({ status }) => (status?.initContainerStatuses?.[0]?.restartCount ?? 0) > 0,
    );
    expect(restarts(pod)).toBe(0);
    expect((await messages("liveness-sidecar", "Killing"))[0]).toMatch(/^Init container side failed liveness probe/);
  });

  test("but not while the probe passes", async () => {
    const main = shell("main", `touch /tmp/alive; ${stay}`, { livenessProbe: exec("cat /tmp/alive") });
    await cluster.createPod(podOf("liveness-good", [main]));
    await cluster.waitForPod("liveness-good", "ready", isReady);
    await sleep(5_000);
    expect(restarts(await cluster.getPod("liveness-good"))).toBe(0);
  });

  test("the probe's grace counts, not the pod's", async () => {
    const main = shell("main", "trap '' TERM; while true; do sleep 1; done", {
      livenessProbe: { ...exec("false"), initialDelaySeconds: 1, terminationGracePeriodSeconds: 2 },
    });
    await cluster.createPod(podOf("probe-grace", [main], { terminationGracePeriodSeconds: 300 }));
    const pod = await cluster.waitForPod("probe-grace", "restarted", isRestarted, 30_000);
    const { startedAt: begin = "", finishedAt: end = "", exitCode } = statusOf(pod)?.lastState?.terminated ?? {};
    expect(exitCode).toBe(137);
    expect(Date.parse(end ?? "") - Date.parse(begin ?? "")).toBeGreaterThanOrEqual(2_000);
    expect(Date.parse(end ?? "") - Date.parse(begin ?? "")).toBeLessThan(60_000);
    await cluster.deletePod("probe-grace", 0);
  });
});

describe.concurrent("readiness", () => {
  test("turns the pod Ready and back, and its endpoints with it", async () => {
    const script = `${web}; sleep 3; rm /tmp/www/healthz; sleep 4; echo ok > /tmp/www/healthz; ${stay}`;
    const readinessProbe: Probe = { ...quick, httpGet: { path: "/healthz", port: 8080 } };
    const pod = podOf("flips", [shell("main", script, { ...webPorts, readinessProbe })]);
    await cluster.create(services, serviceOf("flips", { selector: { app: "flips" }, ports: [{ port: 80 }] }));
    await cluster.createPod({ ...pod, metadata: { name: "flips", labels: { app: "flips" } } });
    const isEndpointReady = async () => {
      const { items } = await cluster.client.list(endpointSlices, { namespace: cluster.namespace });
      const slice = items.find(({ metadata }) => metadata.labels?.["kubernetes.io/service-name"] === "flips");
      return slice?.endpoints?.[0]?.conditions?.ready;
    };
    const ready = await cluster.waitForPod("flips", "ready", isReady);
    await until("the endpoint ready", async () => (await isEndpointReady()) === true);
    const isDown = (seen: Pod) => !isReady(seen) && isRunning(seen) && statusOf(seen)?.started === true;
    const seen = cluster.history("flips").length;
    const down = await cluster.waitForPod(
      "flips",
      "not ready",
      (p) => isDown(p) && cluster.history("flips").length > seen,
    );
    expect(down.status?.conditions?.find(({ type }) => type === "Ready")).toMatchObject({
      status: "False",
      reason: "ContainersNotReady",
      message: "containers with unready status: [main]",
    });
    await until("the endpoint not ready", async () => (await isEndpointReady()) === false);
    const again = await cluster.waitForPod("flips", "ready again", isReady);
    await until("the endpoint ready again", async () => (await isEndpointReady()) === true);
    expect([down, again].map(restarts)).toEqual([0, 0]);
    expect(statusOf(again)?.containerID).toBe(statusOf(ready)?.containerID);
    expect(await messages("flips", "Unhealthy")).toEqual(
      expect.arrayContaining(["Readiness probe failed: HTTP probe failed with statuscode: 404"]),
    );
  });

  test("waits for the initial delay", async () => {
    const main = shell("main", stay, { readinessProbe: { ...exec("true"), initialDelaySeconds: 5 } });
    await cluster.createPod(podOf("delayed", [main]));
    const pod = await cluster.waitForPod("delayed", "ready", isReady);
    const readyAt = Date.parse(pod.status?.conditions?.find(({ type }) => type === "Ready")?.lastTransitionTime ?? "");
    expect(readyAt - startedAt(pod)).toBeGreaterThanOrEqual(5_000);
  });

  test("never fails a container, however long it is missing", async () => {
    await cluster.createPod(podOf("never-ready", [shell("main", stay, { readinessProbe: exec("false") })]));
    await cluster.waitForPod("never-ready", "running", isRunning);
    await sleep(5_000);
    const pod = await cluster.getPod("never-ready");
    expect([isReady(pod), restarts(pod)]).toEqual([false, 0]);
  });

  test("is still looked at while the pod ends", async () => {
    const script =
      "touch /tmp/ready; trap 'rm /tmp/ready; sleep 4; exit 0' TERM; while true; do sleep 0.2 & wait $!; done";
    const main = shell("main", script, { readinessProbe: exec("cat /tmp/ready") });
    await cluster.createPod(podOf("ending", [main], { terminationGracePeriodSeconds: 20 }));
    await cluster.waitForPod("ending", "ready", isReady);
    await cluster.deletePod("ending");
    await cluster.waitForPodGone("ending");
    const ending = cluster.history("ending").filter(({ metadata }) => metadata.deletionTimestamp !== undefined);
    expect(ending.some((pod) => isReady(pod))).toBe(true);
    expect(ending.some((pod) => !isReady(pod) && statusOf(pod)?.state?.running !== undefined)).toBe(true);
  });

  test("of a pod in the node's network is asked at the node's address", async () => {
    const port = 18_099;
    const script = `mkdir /tmp/www; echo ok > /tmp/www/index.html; httpd -p ${port} -h /tmp/www; ${stay}`;
    const main = shell("main", script, { readinessProbe: { ...quick, httpGet: { port } } });
    await cluster.createPod(podOf("host-network", [main], { hostNetwork: true }));
    await cluster.waitForPod("host-network", "ready", isReady);
  });

  test("with a command that outlives its timeout never runs it twice at once", async () => {
    const count = "ps | grep -c '[s]leep 4321'";
    const main = shell(
      "main",
      `most=0; for i in $(seq 80); do n=$(${count}); [ $n -gt $most ] && most=$n; sleep 0.1; done; echo $most > /dev/termination-log`,
      { readinessProbe: { ...quick, timeoutSeconds: 1, exec: { command: ["sleep", "4321"] } } },
    );
    const { output } = await cluster.run(podOf("overlap", [main], { restartPolicy: "Never" }));
    expect(output).toBe("1\n");
  });
});

describe.concurrent("a startup probe", () => {
  test("holds back the others", async () => {
    const script = `sleep 4; touch /tmp/started; ${stay}`;
    const main = shell("main", script, {
      startupProbe: { ...exec("cat /tmp/started"), failureThreshold: 60 },
      livenessProbe: exec("cat /tmp/started"),
      readinessProbe: exec("cat /tmp/started"),
    });
    await cluster.createPod(podOf("slow-start", [main]));
    const pod = await cluster.waitForPod("slow-start", "ready", isReady);
    expect(restarts(pod)).toBe(0);
    const running = cluster.history("slow-start").filter((seen) => statusOf(seen)?.state?.running !== undefined);
    expect(running.length).toBeGreaterThan(0);
    expect(statusOf(running[0] as Pod)).toMatchObject({ started: false, ready: false });
    for (const text of await messages("slow-start", "Unhealthy")) expect(text).toMatch(/^Startup probe failed: /);
  });

  test("that passes lets a pod be Ready at once, not a period later", async () => {
    const main = shell("main", `sleep 2; touch /tmp/started; ${stay}`, {
      startupProbe: { ...exec("cat /tmp/started"), failureThreshold: 60 },
      readinessProbe: { ...exec("true"), periodSeconds: 60 },
    });
    await cluster.createPod(podOf("prompt", [main]));
    const pod = await cluster.waitForPod("prompt", "ready", isReady);
    const readyAt = Date.parse(pod.status?.conditions?.find(({ type }) => type === "Ready")?.lastTransitionTime ?? "");
    expect(readyAt - startedAt(pod)).toBeLessThan(60_000);
  });

  test("that fails too often has the container started anew", async () => {
    const main = shell("main", stay, { startupProbe: { ...exec("false"), failureThreshold: 2 } });
    await cluster.createPod(podOf("no-start", [main]));
    await cluster.waitForPod("no-start", "restarted", isRestarted);
    expect(await messages("no-start", "Killing")).toContain("Container main failed startup probe, will be restarted");
    expect(cluster.history("no-start").some(isReady)).toBe(false);
  });

  test("of a sidecar holds back the containers after it", async () => {
    const side = shell("side", `sleep 3; touch /tmp/started; ${stay}`, {
      restartPolicy: "Always",
      startupProbe: { ...exec("cat /tmp/started"), failureThreshold: 60 },
    });
    await cluster.createPod(podOf("sidecar-start", stay, { initContainers: [side] }));
    const pod = await cluster.waitForPod("sidecar-start", "ready", isReady);
    const sideStartedAt = Date.parse(pod.status?.initContainerStatuses?.[0]?.state?.running?.startedAt ?? "");
    expect(startedAt(pod) - sideStartedAt).toBeGreaterThanOrEqual(2_000);
  });
});

describe.skipIf(!inject("isLocal"))("an agent that is killed under ready pods", () => {
  let env: BreakableCluster;

  beforeAll(async () => {
    env = await openBreakableCluster();
  });
  afterAll(() => env?.[Symbol.asyncDispose]());

  test("comes back without anybody seeing them not ready, young ones and old", async () => {
    const ready = { ...quick, periodSeconds: 2, failureThreshold: 3 };
    const pods = [
      podOf("old", [
        shell("main", `${web}; ${stay}`, { readinessProbe: { ...ready, httpGet: { port: 8080, path: "/healthz" } } }),
      ]),
      podOf("slow", [
        shell("main", `touch /tmp/ready; ${stay}`, {
          startupProbe: exec("cat /tmp/ready"),
          livenessProbe: exec("cat /tmp/ready"),
          readinessProbe: exec("cat /tmp/ready"),
        }),
      ]),
    ];
    for (const pod of pods) await env.cluster.createPod(pod);
    const before = await Promise.all(["old", "slow"].map((name) => env.cluster.waitForPod(name, "ready", isReady)));
    // Each round finds a pod that has only just become ready, too.
    for (const round of [1, 2, 3]) {
      const name = `young-${round}`;
      const main = shell("main", stay, { readinessProbe: { ...exec("true"), periodSeconds: 5 } });
      await env.cluster.createPod(podOf(name, [main]));
      await env.cluster.waitForPod(name, "ready", isReady);
      await restartAgent(env, "SIGKILL");
      await sleep(4_000);
    }
    for (const name of ["old", "slow", "young-1", "young-2", "young-3"]) {
      const versions = env.cluster.history(name);
      const wasReady = versions.slice(versions.findIndex(isReady)).map(isReady);
      expect({ name, wasReady: [...new Set(wasReady)] }).toEqual({ name, wasReady: [true] });
    }
    const after = await Promise.all(["old", "slow"].map((name) => env.cluster.getPod(name)));
    expect(after.map(identityOf)).toEqual(before.map(identityOf));
  });
});
