import { execFile } from "node:child_process";
import { stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { configMaps } from "../../agent/kube/resources.ts";
import { AgentError, messageOf } from "../../agent/lib/errors.ts";
import type { Explanation } from "../../agent/pods/explain.ts";
import { projectRoot } from "../support/cluster/local-cluster.ts";
import { freeze } from "../support/node/processes.ts";
import { isReady, isRunning, until } from "./support/cluster.ts";
import { type BreakableCluster, openBreakableCluster, restartAgent } from "./support/local.ts";
import { podOf, shell, sleeperOf } from "./support/pods.ts";

const nodelet = process.env["NODELET"] ?? join(projectRoot, "dist/nodelet");
const columns = 80;

interface Said {
  code: number;
  out: string;
  err: string;
}

async function say(...args: string[]): Promise<Said> {
  return await new Promise((resolve, reject) => {
    execFile(nodelet, args, (err, out, errText) => {
      const code = err === null ? 0 : err.code;
      if (typeof code === "number") resolve({ code, out, err: errText });
      else reject(err ?? new Error("killed"));
    });
  });
}

describe.skipIf(!inject("isLocal"))("nodelet explain", () => {
  let env: BreakableCluster;

  beforeAll(async () => {
    env = await openBreakableCluster();
  });
  afterAll(() => env?.[Symbol.asyncDispose]());

  const ask = async (...args: string[]) => await say(...args, "--root-dir", env.local.rootDir);
  const explain = async (name: string) => await ask("explain", "pod", `${env.cluster.namespace}/${name}`);
  const facts = async (name: string): Promise<Explanation> => {
    const { out } = await ask("explain", "pod", name, "-n", env.cluster.namespace, "-o", "json");
    const answer = JSON.parse(out) as Explanation | { kind: "unknown" };
    // Who asks at once may be quicker than the watch by which the agent hears of the pod.
    if ("kind" in answer) throw new AgentError("NotFound", `the agent does not know pod ${name}: ${out}`);
    return answer;
  };
  /** Asks until `answerOf` finds what it looks for; what was said instead is in the message when it does not. */
  const untilItSays = async <T>(name: string, what: string, answerOf: (said: Explanation) => T) => {
    let last: unknown = "nothing";
    try {
      return await until(`${name} ${what}`, async () => {
        const said = await facts(name);
        last = { state: said.state, waitsFor: said.waitsFor };
        return answerOf(said);
      });
    } catch (err) {
      throw new Error(`${messageOf(err)}; it said: ${JSON.stringify(last, undefined, 1)}`, { cause: err });
    }
  };
  /** Asks until it waits for something that matches; its first reason is what people see. */
  const untilItWaitsFor = async (name: string, what: RegExp) =>
    await untilItSays(name, `waits for ${what}`, ({ waitsFor: [first] }) =>
      first !== undefined && what.test(`${first.what}: ${first.why}`) ? first : undefined,
    );

  const untilNothing = async (name: string) =>
    await untilItSays(name, "waits for nothing", ({ waitsFor }) => waitsFor.length === 0);

  test("names the ConfigMap that a volume waits for, and what happens next", async () => {
    const { cluster } = env;
    const main = shell("main", "sleep 3600", { volumeMounts: [{ name: "settings", mountPath: "/settings" }] });
    await cluster.createPod(
      podOf("no-config", [main], { volumes: [{ name: "settings", configMap: { name: "app" } }] }),
    );
    await untilItWaitsFor("no-config", /volume settings \(configMap\): configmap "app" not found/);
    // Known once the pod's other volumes are there: all of them are tried again together.
    await untilItSays("no-config", "has its next try", ({ waitsFor }) => waitsFor[0]?.nextTry !== undefined);
    const { code, out } = await explain("no-config");
    expect(code).toBe(0);
    expect(out).toMatch(/^ContainerCreating for /m);
    expect(out).toMatch(/tried again at once when it appears/);
    expect(out.split("\n").every((line) => line.length <= columns)).toBe(true);

    await cluster.create(configMaps, {
      apiVersion: "v1",
      kind: "ConfigMap",
      metadata: { name: "app" },
      data: { a: "b" },
    });
    await cluster.waitForPod("no-config", "ready", isReady);
    const { timeline, waitsFor } = await facts("no-config");
    expect(waitsFor).toEqual([]);
    const steps = timeline.map(({ what, state }) => `${what} ${state}`);
    for (const step of ["volume failed", "volume done", "sandbox done", "image done", "create done", "start done"]) {
      expect(steps).toContain(step);
    }
    await cluster.deletePod("no-config", 0);
  });

  test("tells an image that cannot be had, with the registry's words and the next try", async () => {
    const { cluster } = env;
    const image = "127.0.0.1:1/nobody/nothing:1";
    await cluster.createPod(podOf("no-image", [{ name: "main", image }]));
    const first = await untilItWaitsFor("no-image", /container main: ImagePullBackOff/);
    expect(first.why).toContain(image);
    expect(first.why).toMatch(/connection refused|dial tcp/);
    expect(Date.parse(first.nextTry ?? "")).toBeGreaterThan(Date.now());
    await cluster.deletePod("no-image", 0);
  });

  test("tells how a container crashed, its last words, and when it starts again", async () => {
    const { cluster } = env;
    const main = shell("main", "echo no database >/dev/termination-log; exit 3");
    await cluster.createPod(podOf("crashes", [main]));
    const first = await untilItWaitsFor("crashes", /container main: crashed: exit code 3 \(Error\), "no database"/);
    expect(Date.parse(first.nextTry ?? "")).toBeGreaterThan(Date.now());
    const { out } = await explain("crashes");
    expect(out).toMatch(/^CrashLoopBackOff for .*0\/1 ready, 1 restart$/m);
    await cluster.deletePod("crashes", 0);
  });

  test("shows the steps of a pod that runs, with their times", async () => {
    const { cluster } = env;
    await cluster.createPod(sleeperOf("runs"));
    await cluster.waitForPod("runs", "ready", isReady);
    const { out, code } = await explain("runs");
    expect(code).toBe(0);
    expect(out).toMatch(/^Running for .*1\/1 ready$/m);
    expect(out).toMatch(/^Waits for nothing/m);
    const { timeline } = await facts("runs");
    const words = timeline.map(({ what }) => what);
    expect(words.slice(0, 2)).toEqual(["seen", "admitted"]);
    expect(words).toEqual(expect.arrayContaining(["sandbox", "image", "create", "start", "ready", "status"]));
    expect(timeline.find(({ what }) => what === "sandbox")?.tookMs).toBeGreaterThan(0);
  });

  test("quotes a readiness probe that fails", async () => {
    const { cluster } = env;
    const readinessProbe = { exec: { command: ["sh", "-c", "echo not yet; exit 1"] }, periodSeconds: 1 };
    await cluster.createPod(podOf("unready", [shell("main", "sleep 3600", { readinessProbe })]));
    await cluster.waitForPod("unready", "running", isRunning);
    const first = await untilItWaitsFor("unready", /container main: Readiness probe failed: not yet/);
    expect(first.next).toBe("probed every 1 s");
    expect((await explain("unready")).out).toMatch(/^NotReady for /m);
    await cluster.deletePod("unready", 0);
  });

  test("tells what a pod that ends waits for", async () => {
    const { cluster } = env;
    const lifecycle = { preStop: { exec: { command: ["sleep", "300"] } } };
    const main = shell("main", "sleep 3600", { lifecycle });
    await cluster.createPod(podOf("ending", [main], { terminationGracePeriodSeconds: 600 }));
    await cluster.waitForPod("ending", "running", isRunning);
    await cluster.deletePod("ending");
    const first = await untilItWaitsFor("ending", /container main: its preStop hook has not ended yet/);
    expect(first.next).toMatch(/^killed in (9m\d+s|10m(0s)?) at the latest$/);
    expect((await explain("ending")).out).toMatch(/^Terminating for /m);
    await cluster.deletePod("ending", 1);
    await cluster.waitForPodGone("ending");
    const gone = await until("its end", async () => {
      const said = await explain("ending");
      return said.code === 1 && said.err.includes("was here and is gone") ? said : undefined;
    });
    expect(gone.err).toMatch(/deleted: grace 600 s/);
  });

  test("tells what is wrong with the node: no API server, no runtime", async () => {
    const { cluster, local } = env;
    const readinessProbe = { exec: { command: ["test", "-e", "/tmp/ready"] }, periodSeconds: 1 };
    const main = shell("main", "sleep 5; touch /tmp/ready; sleep 3600", { readinessProbe });
    await cluster.createPod(podOf("unheard", [main]));
    await cluster.waitForPod("unheard", "running", isRunning);
    await freeze(local.apiServer.pid);
    try {
      await untilItWaitsFor("unheard", /API server: has not (taken|answered to) the pod's status/);
    } finally {
      process.kill(local.apiServer.pid, "SIGCONT");
    }
    await untilNothing("unheard");

    await local.runtime.stop();
    await cluster.createPod(sleeperOf("unmade"));
    await untilItWaitsFor("unmade", /container runtime: (has not said yet what it has of this pod: .|does not answer)/);
    await local.runtime.start();
    await cluster.waitForPod("unmade", "ready", isReady);
    await untilNothing("unmade");
    await cluster.deletePod("unmade", 0);
    await cluster.deletePod("unheard", 0);
  });

  test("lists all pods, one a line", async () => {
    const { cluster } = env;
    const { out, code } = await ask("pods", "-n", cluster.namespace);
    expect(code).toBe(0);
    const line = out.split("\n").find((text) => text.startsWith(`${cluster.namespace}/runs `));
    expect(line).toMatch(/ {2}Running +\S+ +1\/1$/);
    const { pods } = JSON.parse((await ask("pods", "-o", "json")).out) as { pods: { name: string }[] };
    expect(pods.map(({ name }) => name)).toContain("runs");
  });

  test("says of a pod that is not there how to find it", async () => {
    const { code, err, out } = await ask("explain", "pod", "elsewhere/runs");
    expect(code).toBe(1);
    expect(out).toBe("");
    expect(err).toContain(`Is one of these meant? ${env.cluster.namespace}/runs`);
    expect(err).toContain("kubectl get pod -n elsewhere runs -o wide");
  });

  test("answers root alone, again after a SIGKILL, and says so when nobody runs", async () => {
    const { local, cluster } = env;
    const socket = join(local.rootDir, "nodelet.sock");
    expect((await stat(socket)).mode & 0o777).toBe(0o600);
    await restartAgent(env, "SIGKILL");
    await until("an answer", async () => (await explain("runs")).code === 0);
    await untilItSays("runs", "has its state", ({ state }) => state === "Running");
    expect((await facts("runs")).timeline[0]?.detail).toBe("known before this agent started");

    await local.agent.stop("SIGKILL");
    const killed = await explain("runs");
    expect(killed).toMatchObject({ code: 1, out: "" });
    expect(killed.err).toMatch(/^nodelet: no agent answers at .*: it has ended without taking its socket away/m);
    await local.agent.start();
    await until("an answer", async () => (await explain("runs")).code === 0);
    await local.agent.stop();
    const ended = await explain("runs");
    expect(ended.code).toBe(1);
    expect(ended.err).toMatch(/^nodelet: no agent answers: there is no .*nodelet\.sock/m);
    await freeze(local.apiServer.pid);
    try {
      await local.agent.start();
      const said = await until("an answer without an API server", async () => {
        const { err } = await explain("runs");
        const said = err.replaceAll("\n", " ");
        return said.includes("does not know all of its pods yet: it waits for the API server") ? said : undefined;
      });
      expect(said).toMatch(/see its log/);
    } finally {
      process.kill(local.apiServer.pid, "SIGCONT");
    }
    await untilItSays("runs", "has its state", ({ state }) => state === "Running");
    await local.agent.stop();
    await writeFile(socket, "not a socket");
    await local.agent.start();
    await cluster.waitForPod("runs", "ready", isReady);
    expect((await explain("runs")).code).toBe(1);
  });
});
