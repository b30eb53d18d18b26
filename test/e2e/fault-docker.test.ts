import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import type { ContainerStatus, Pod } from "../../agent/kube/types.ts";
import { type ProxyMode, type SocketProxy, startSocketProxy } from "../support/runtime/socket-proxy.ts";
import { isReady, until } from "./support/cluster.ts";
import { openKubectl } from "./support/kubectl.ts";
import { type BreakableCluster, identityOf, openBreakableCluster, podCgroups, podDirs } from "./support/local.ts";
import { podOf, sleeperOf } from "./support/pods.ts";

// What happens to a Docker daemon and to its containers, whatever the other files run with.

const statusOf = ({ status }: Pod): ContainerStatus | undefined => status?.containerStatuses?.[0];
const containerIDOf = (pod: Pod) => statusOf(pod)?.containerID?.replace(/^docker:\/\//, "") ?? "";
const restartsOf = (pod: Pod) => statusOf(pod)?.restartCount ?? 0;

/** Removed or killed as by hand, past the agent. */
async function dockerAPI({ local }: BreakableCluster, method: string, path: string): Promise<void> {
  await local.docker?.api(method, path);
}

/** The sandboxes that the daemon has of a pod, and whether they run. */
async function sandboxesOf(env: BreakableCluster, { metadata }: Pod): Promise<{ id: string; ready: boolean }[]> {
  const { sandboxes } = await env.list();
  return sandboxes.filter(({ podUID }) => podUID === metadata.uid).map(({ id, ready }) => ({ id, ready }));
}

describe.skipIf(!inject("isLocal"))("a Docker daemon without live-restore", () => {
  let env: BreakableCluster;

  beforeAll(async () => {
    env = await openBreakableCluster({}, [], { runtime: "docker", docker: { liveRestore: false } });
  });
  afterAll(() => env?.[Symbol.asyncDispose]());

  test.each(["SIGTERM", "SIGKILL"] as const)(
    "that ends by %s: its pods start again, those that may",
    async (signal) => {
      const { cluster, local } = env;
      const name = (word: string) => `${word}-${signal.toLowerCase()}`;
      await cluster.createPod(sleeperOf(name("always")));
      await cluster.createPod(sleeperOf(name("never"), { restartPolicy: "Never" }));
      const before = await cluster.waitForPod(name("always"), "ready", isReady);
      await cluster.waitForPod(name("never"), "ready", isReady);
      await local.runtime.restart(signal);
      const isAgain = (pod: Pod) => isReady(pod) && restartsOf(pod) === 1;
      const after = await cluster.waitForPod(name("always"), "started again", isAgain);
      expect(containerIDOf(after)).not.toBe(containerIDOf(before));
      const never = await cluster.waitForPod(name("never"), "ended", ({ status }) => {
        return status?.phase === "Succeeded" || status?.phase === "Failed";
      });
      expect(restartsOf(never)).toBe(0);
      // A sandbox that went down with the daemon has lost its network: the pod has another one, and only that.
      expect((await sandboxesOf(env, after)).filter(({ ready }) => ready)).toHaveLength(1);
      const kubectl = openKubectl(local.kubeconfig, cluster.namespace);
      expect(await kubectl.demand(["exec", name("always"), "--", "ip", "-4", "address"])).toContain(
        after.status?.podIP,
      );
      for (const pod of [name("always"), name("never")]) {
        await cluster.deletePod(pod);
        await cluster.waitForPodGone(pod);
      }
    },
  );

  test("whose pause container is killed by hand: the pod gets a new sandbox, address and containers", async () => {
    const { cluster } = env;
    await cluster.createPod(sleeperOf("headless"));
    const before = await cluster.waitForPod("headless", "ready", isReady);
    const [sandbox] = await sandboxesOf(env, before);
    await dockerAPI(env, "POST", `/containers/${sandbox?.id}/kill`);
    const isAnew = (pod: Pod) => isReady(pod) && containerIDOf(pod) !== containerIDOf(before);
    const after = await cluster.waitForPod("headless", "made anew", isAnew);
    expect(after.status?.podIP).not.toBe("");
    const running = (await sandboxesOf(env, before)).filter(({ ready }) => ready);
    expect(running).toHaveLength(1);
    expect(running[0]?.id).not.toBe(sandbox?.id);
    await until("the old one's container gone", async () => {
      const { containers } = await env.list();
      const alive = containers.filter(({ podUID, state }) => podUID === before.metadata.uid && state === "running");
      return alive.length === 1;
    });
    await cluster.deletePod("headless");
    await cluster.waitForPodGone("headless");
  });

  test.each([
    { what: "pause container", victim: async (pod: Pod) => (await sandboxesOf(env, pod))[0]?.id },
    { what: "app container", victim: async (pod: Pod) => containerIDOf(pod) },
  ])("whose $what is removed by `docker rm -f`: the pod runs again", async ({ what, victim }) => {
    const { cluster } = env;
    const name = `removed-${what.replace(" ", "-")}`;
    await cluster.createPod(sleeperOf(name));
    const before = await cluster.waitForPod(name, "ready", isReady);
    await dockerAPI(env, "DELETE", `/containers/${await victim(before)}?force=1`);
    const isAnew = (pod: Pod) => isReady(pod) && containerIDOf(pod) !== containerIDOf(before);
    const after = await cluster.waitForPod(name, "made anew", isAnew);
    if (what === "app container") expect(after.status?.podIP).toBe(before.status?.podIP);
    expect((await sandboxesOf(env, before)).filter(({ ready }) => ready)).toHaveLength(1);
    await cluster.deletePod(name);
    await cluster.waitForPodGone(name);
  });

  test("has nothing left of its pods", async () => {
    await until("all of it gone", async () => {
      const { sandboxes, containers } = await env.list();
      return [...sandboxes, ...containers, ...(await env.local.runtime.networks())].length === 0;
    });
  });
});

describe.skipIf(!inject("isLocal"))("a Docker daemon with live-restore", () => {
  let env: BreakableCluster;

  beforeAll(async () => {
    env = await openBreakableCluster({}, [], { runtime: "docker" });
  });
  afterAll(() => env?.[Symbol.asyncDispose]());

  test("that is killed in the middle of ten pod starts, once together with the agent: all end well, nothing is doubled or left", async () => {
    const { cluster, local } = env;
    await cluster.createPod(sleeperOf("witness"));
    const witness = await cluster.waitForPod("witness", "ready", isReady);
    const names = Array.from({ length: 10 }, (_, i) => `interrupted-${i}`);
    for (const [i, name] of names.entries()) {
      await cluster.createPod(sleeperOf(name));
      if (i % 3 !== 2) continue;
      // Three pods take about a second to start; the moments are spread over that.
      await sleep(Math.random() * 1_000);
      if (i === 5) await local.agent.stop("SIGKILL");
      await local.runtime.restart("SIGKILL");
      if (i === 5) await local.agent.start();
    }
    const pods = await Promise.all(names.map((name) => cluster.waitForPod(name, "ready", isReady)));
    expect(identityOf(await cluster.getPod("witness"))).toEqual(identityOf(witness));
    await until("one sandbox and one container a pod", async () => {
      const { sandboxes, containers } = await env.list();
      const ready = sandboxes.filter((sandbox) => sandbox.ready).map(({ podUID }) => podUID);
      const running = containers.filter(({ state }) => state === "running").map(({ podUID }) => podUID);
      const wanted = [...pods, witness].map(({ metadata }) => metadata.uid ?? "").toSorted();
      return [ready, running].every((uids) => uids.toSorted().join() === wanted.join());
    });
    const addresses = await Promise.all(names.map(async (name) => (await cluster.getPod(name)).status?.podIP));
    expect(new Set(addresses).size).toBe(names.length);
    for (const name of [...names, "witness"]) await cluster.deletePod(name);
    for (const name of [...names, "witness"]) await cluster.waitForPodGone(name);
    const left = async () => {
      const { sandboxes, containers } = await env.list();
      return [
        ...sandboxes.map(({ id, podName }) => `sandbox ${id} of ${podName}`),
        ...containers.map(({ id, podName }) => `container ${id} of ${podName}`),
        ...(await local.runtime.networks()).map((network) => `network ${network}`),
        ...(await podDirs(env)).map((path) => `directory ${path}`),
        ...(await podCgroups(env)).map((path) => `cgroup ${path}`),
      ];
    };
    await expect.poll(left, { timeout: 60_000 }).toEqual([]);
  });
});

describe.skipIf(!inject("isLocal"))("a Docker daemon that misbehaves for a while", () => {
  let env: BreakableCluster;
  let proxy: SocketProxy;
  let dir: string;

  beforeAll(async () => {
    dir = await mkdtemp(join(tmpdir(), "docker-proxy-"));
    const socketPath = join(dir, "docker.sock");
    env = await openBreakableCluster({ runtimeRequestTimeout: "3s" }, [], {
      runtime: "docker",
      endpointFor: async ({ endpoint }) => {
        proxy = await startSocketProxy(socketPath, endpoint.replace("unix://", ""));
        return `docker://${socketPath}`;
      },
    });
  });
  afterAll(async () => {
    await env?.[Symbol.asyncDispose]();
    await proxy?.[Symbol.asyncDispose]();
    await rm(dir, { recursive: true, force: true });
  });

  test.each<{ mode: ProxyMode; lasting: number }>([
    { mode: "500", lasting: 4_000 },
    { mode: "cut", lasting: 4_000 },
    { mode: "hang", lasting: 8_000 }, // longer than a call's deadline
  ])(
    "($mode): pods go on and stay as they were; what was asked for meanwhile comes to pass",
    async ({ mode, lasting }) => {
      const { cluster, local } = env;
      const name = (word: string) => `${word}-${mode}`;
      await cluster.createPod(sleeperOf(name("steady")));
      await cluster.createPod(sleeperOf(name("leaving")));
      await cluster.createPod(podOf(name("ending"), "sleep 2; exit 7", { restartPolicy: "Never" }));
      const before = await cluster.waitForPod(name("steady"), "ready", isReady);
      await cluster.waitForPod(name("leaving"), "ready", isReady);
      await cluster.waitForPod(name("ending"), "ready", isReady);
      proxy.turn(mode);
      await cluster.createPod(sleeperOf(name("new")));
      await cluster.deletePod(name("leaving"));
      await sleep(lasting);
      expect(proxy.troubled).toBeGreaterThan(0);
      expect(local.agent.isRunning).toBe(true);
      const { stdout } = await local.node.exec("wget", ["-qO-", "http://127.0.0.1:10248/healthz"]);
      expect(stdout).toBe("ok");
      proxy.turn("pass");
      await cluster.waitForPod(name("new"), "ready", isReady);
      await cluster.waitForPodGone(name("leaving"));
      const ended = await cluster.waitForPod(name("ending"), "failed", ({ status }) => status?.phase === "Failed");
      expect(statusOf(ended)?.state?.terminated?.exitCode).toBe(7);
      const after = await cluster.getPod(name("steady"));
      expect(identityOf(after)).toEqual(identityOf(before));
      const versions = cluster.history(name("steady"));
      expect(versions.slice(versions.findIndex(isReady)).every(isReady)).toBe(true);
      // One sandbox and one container, however often they were tried.
      const made = await cluster.getPod(name("new"));
      const { sandboxes, containers } = await env.list();
      const isOf = ({ podUID }: { podUID: string }) => podUID === made.metadata.uid;
      expect(sandboxes.filter(isOf).filter(({ ready }) => ready)).toHaveLength(1);
      expect(containers.filter(isOf).filter(({ state }) => state === "running")).toHaveLength(1);
      for (const word of ["steady", "ending", "new"]) await cluster.deletePod(name(word));
      for (const word of ["steady", "ending", "new"]) await cluster.waitForPodGone(name(word));
      await until("nothing left", async () => {
        const left = await env.list();
        return [...left.sandboxes, ...left.containers, ...(await local.runtime.networks())].length === 0;
      });
    },
  );
});
